"""The same products and attention without gradients, computed faster on a CPU.

PyTorch multiplies fp32 matrices by MKL, which on AMD's CPUs reaches half of what oneDNN does, and lays out the
weights anew in every bf16 product. Its fused attention in bf16 takes twice as long as two products with a softmax
between.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.clipseg.modeling_clipseg import CLIPSegAttention

from engine.model.clipseg import CLIPSeg
from engine.model.prompted import PromptedNet

PLAIN_ATTENTION = "plain"
ROWS = 2048  # of the products for which weights are laid out; others are possible


def prepare_for_cpu(net: PromptedNet) -> None:
    """Let a net on the CPU compute faster, where this build of PyTorch and this CPU can.

    The net gives what it gave before, but for rounding. Its linear layers keep their weights in oneDNN's own layout
    alone, so it can be neither trained nor moved nor saved any more. Other nets than CLIPSegs stay as they are:
    PyTorch's transformer layers reach for the weights of their linear layers.
    """
    if not (isinstance(net, CLIPSeg) and _can_pack(net.dtype)):
        return
    for layer in net.modules():
        if type(layer) is nn.Linear and layer.weight is not None:
            _pack(layer)
        elif isinstance(layer, CLIPSegAttention) and net.dtype is torch.bfloat16:
            layer.config._attn_implementation = PLAIN_ATTENTION


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(layer: nn.Linear) -> None:
    """Keep a layer's weights in oneDNN's layout and multiply by them there; hooks on the layer stay."""
    layer.forward = _product(layer.weight.detach(), layer.bias)
    layer.weight = None


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return lambda features: torch.ops.mkldnn._linear_pointwise(features, packed, bias, "none", [], "")


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
