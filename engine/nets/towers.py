"""CLIP's two towers, as open_clip builds them: what the baselines SAN and CRIS stand on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPSegForImageSegmentation
from transformers.utils import is_torchvision_available

from engine.errors import UserError
from engine.nets.clipseg import LEGACY_END_OF_TEXT

KNOWN_SETTINGS = {
    "": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "norm_kwargs"},
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
        *("norm_kwargs", "pool_type", "eos_id"),
    },
}
TORCHVISION_PARTS = (  # that open_clip names; a package before its parts
    "torchvision",
    *("torchvision.ops", "torchvision.ops.misc"),
    *("torchvision.transforms", "torchvision.transforms.functional"),
)
INSTALL = 'pip install "vlsm-segmenter[baselines]" && pip install --no-deps "open-clip-torch>=3.0"'


def new_clip(config: dict) -> nn.Module:
    """Build open_clip's `CLIP` with random weights.

    Args:
        config: `model_cfg` of an open_clip configuration: embed_dim, quick_gelu, vision_cfg (a vision transformer
            where `layers` is a number, a ResNet where it is a list of four) and text_cfg.

    Raises:
        UserError: open_clip is not installed, or the configuration asks for more than plain CLIP towers.
    """
    unknown = sorted(
        f"{part} {key}".strip()
        for part, known in KNOWN_SETTINGS.items()
        for key in (config.get(part, {}) if part else config).keys() - known
    )
    if unknown:
        raise UserError(f"only plain CLIPs are supported, without {', '.join(unknown)}")
    try:
        return _open_clip().CLIP(**config)
    except (TypeError, KeyError) as error:
        raise UserError(f"the configuration of the CLIP is incomplete ({error}); get the base again") from error


def towers_of(network: nn.Module) -> nn.Module:
    """Return open_clip's `CLIP`: the network itself, or a copy of the CLIP inside a CLIPSeg with equal outputs."""
    if not isinstance(network, CLIPSegForImageSegmentation):
        return network
    clip = new_clip(_open_clip_config(network))
    clip.load_state_dict(dict(_open_clip_weights(network.clip)))
    return clip


def end_of_text(clip: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the position of the end-of-text token of each prompt (prompts,) int64."""
    if clip.text_pool_type == "eos":
        return (input_ids == clip.text_eos_id).int().argmax(dim=1)
    return input_ids.argmax(dim=1)


def encode_text(clip: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encode prompts, cut at the last end-of-text token.

    Args:
        input_ids: (prompts, tokens) int64, each with an end-of-text token; what follows it is ignored.

    Returns:
        The features of all tokens (prompts, tokens, width), the projected end-of-text token (prompts,
        embed_dim), and its position (prompts,).
    """
    end = end_of_text(clip, input_ids)
    length = int(end.max()) + 1
    features = clip.token_embedding(input_ids[:, :length]) + clip.positional_embedding[:length]
    features = clip.ln_final(clip.transformer(features, attn_mask=clip.attn_mask[:length, :length]))
    rows = torch.arange(len(end), device=end.device)
    return features, features[rows, end] @ clip.text_projection, end


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings of a square (tokens, width) to another grid."""
    side = round(len(positions) ** 0.5)
    if (side, side) == grid:
        return positions
    square = positions.T.unflatten(1, (side, side))[None]
    return F.interpolate(square, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T


def _open_clip_config(network: CLIPSegForImageSegmentation) -> dict:
    vision, text = network.config.vision_config, network.config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(f"a CLIP with {vision.hidden_act} and {text.hidden_act} is not supported; use another base")
    end = text.eos_token_id
    return {
        "embed_dim": network.config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
            "pool_type": "argmax" if end == LEGACY_END_OF_TEXT else "eos",
            "eos_id": end,
        },
    }


def _open_clip_weights(clip: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of Hugging Face's CLIP under open_clip's names and in its shapes."""
    vision, text = clip.vision_model, clip.text_model
    yield "logit_scale", clip.logit_scale
    yield "visual.class_embedding", vision.embeddings.class_embedding
    yield "visual.positional_embedding", vision.embeddings.position_embedding.weight
    yield "visual.conv1.weight", vision.embeddings.patch_embedding.weight
    yield "visual.proj", clip.visual_projection.weight.T
    yield from _renamed("visual.ln_pre", vision.pre_layrnorm)
    yield from _renamed("visual.ln_post", vision.post_layernorm)
    yield from _blocks("visual.transformer", vision.encoder.layers)
    yield "token_embedding.weight", text.embeddings.token_embedding.weight
    yield "positional_embedding", text.embeddings.position_embedding.weight
    yield "text_projection", clip.text_projection.weight.T
    yield from _renamed("ln_final", text.final_layer_norm)
    yield from _blocks("transformer", text.encoder.layers)


def _blocks(name: str, layers: nn.ModuleList) -> Iterator[tuple[str, Tensor]]:
    for index, layer in enumerate(layers):
        block = f"{name}.resblocks.{index}"
        attention = layer.self_attn
        for kind in ("weight", "bias"):
            parts = [getattr(p, kind) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            yield f"{block}.attn.in_proj_{kind}", torch.cat(parts)
        yield from _renamed(f"{block}.attn.out_proj", attention.out_proj)
        yield from _renamed(f"{block}.ln_1", layer.layer_norm1)
        yield from _renamed(f"{block}.ln_2", layer.layer_norm2)
        yield from _renamed(f"{block}.mlp.c_fc", layer.mlp.fc1)
        yield from _renamed(f"{block}.mlp.c_proj", layer.mlp.fc2)


def _renamed(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, weight in module.state_dict().items():
        yield f"{name}.{key}", weight


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except (ImportError, RuntimeError):  # a torchvision built for another torch raises a RuntimeError
        try:
            with _torchvision_left_out():
                import open_clip
        except ImportError as error:
            raise UserError(f"this needs the package open-clip-torch ({error}); install it: {INSTALL}") from error
    return open_clip


@contextmanager
def _torchvision_left_out() -> Iterator[None]:
    """Let a package be imported that names torchvision's parts at import, but is not asked to use them.

    open_clip imports torchvision for its image transforms and a frozen batch norm; the towers need neither,
    and torchvision exists only beside the very torch that it was built for. Its names stand for an empty class
    while open_clip is imported; afterwards `import torchvision` does what it did before.
    """
    is_torchvision_available()  # transformers remembers its answer, which must be the true one
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in TORCHVISION_PARTS:
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = []
        module.__getattr__ = _left_out
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in TORCHVISION_PARTS:
            del sys.modules[name]
        sys.modules.update(before)


class _LeftOut:
    BILINEAR = BICUBIC = None  # named in open_clip's signatures


def _left_out(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _LeftOut
