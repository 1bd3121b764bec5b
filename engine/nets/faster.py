"""The same net without gradients, computed faster.

CLIPSeg's activation, x · sigmoid(1.702 · x), is three operations over the widest features of all. With 1.702 inside
the weights around it, it is SiLU, which is one.

On a CPU, PyTorch multiplies fp32 matrices by MKL, which on AMD's CPUs reaches half of what oneDNN does, and lays
out the weights anew in every bf16 product. Its fused attention in bf16 takes twice as long as two products with a
softmax between.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.activations import GELUActivation, QuickGELUActivation
from transformers.models.clipseg.modeling_clipseg import CLIPSegAttention, CLIPSegMLP

QUICK_GELU_SCALE = 1.702
PLAIN_ATTENTION = "plain"
ONEDNN_NAMES = {nn.SiLU: ("swish", ""), GELUActivation: ("gelu", "none")}  # none: the exact function
ROWS = 2048  # of the products for which weights are laid out; others are possible


@torch.no_grad()
def fold_activations(net: nn.Module) -> None:
    """Move the scale of CLIPSeg's activations into the weights around them; the net gives what it gave, but for
    rounding."""
    for block in net.modules():
        if isinstance(block, CLIPSegMLP) and isinstance(block.activation_fn, QuickGELUActivation):
            for parameter in block.fc1.parameters():
                parameter.mul_(QUICK_GELU_SCALE)
            block.fc2.weight.div_(QUICK_GELU_SCALE)
            block.activation_fn = nn.SiLU()


def pack_for_cpu(net: nn.Module) -> None:
    """Let a net on the CPU multiply and attend faster, where this build of PyTorch and this CPU can.

    The net gives what it gave, but for rounding. Its linear layers keep their weights in oneDNN's own layout alone,
    so it can be neither trained nor moved nor saved any more. It must have no transformer layers of PyTorch's own,
    which reach for the weights of their linear layers.
    """
    dtype = next(net.parameters()).dtype
    if not _can_pack(dtype):
        return
    for layer in net.modules():
        if isinstance(layer, CLIPSegMLP) and type(layer.activation_fn) in ONEDNN_NAMES:
            _pack(layer.fc1, *ONEDNN_NAMES[type(layer.activation_fn)])
            layer.activation_fn = nn.Identity()
        elif isinstance(layer, CLIPSegAttention) and dtype is torch.bfloat16:
            layer.config._attn_implementation = PLAIN_ATTENTION
        elif type(layer) is nn.Linear and layer.weight is not None:
            _pack(layer)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(layer: nn.Linear, then: str = "none", kind: str = "") -> None:
    """Keep a layer's weights in oneDNN's layout and multiply by them there, with what follows; hooks on the layer
    stay."""
    layer.forward = _product(layer.weight.detach(), layer.bias, then, kind)
    layer.weight = None


def _product(weight: Tensor, bias: Tensor | None, then: str, kind: str) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return lambda features: torch.ops.mkldnn._linear_pointwise(features, packed, bias, then, [], kind)


def _plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attend as an attention function of Hugging Face: from (batch, heads, tokens, width) to (batch, tokens, heads,
    width)."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


AttentionInterface.register(PLAIN_ATTENTION, _plain_attention)
