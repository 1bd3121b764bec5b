"""The weights of a DINOv2 as those of a CLIPSeg's vision tower, which then gives the same features.

The towers differ in four things. DINOv2 scales what each layer adds: that goes into the layer's last weights. It
has a bias on its patches: that goes into the positions. Its patches have 14 pixels. And CLIP normalises the
embeddings before the first layer, where DINOv2 does not.

That norm, (x − mean) / √(variance + ε), divides by √ε where the variance is far below ε. So the embeddings are made
small and the norm's gain large. What stays is that each token loses its mean over the channels, which every later
norm takes away anyway. Up to that mean, the features have 1 − cosine = 4e-5 at most with the original's in fp16;
computing the original itself in bf16 costs 1e-4.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPSILON = 1e-5  # of all of CLIP's norms
SMALLNESS = 2e-3  # of the embeddings: larger ones change the norm, smaller ones fall below what fp16 can tell apart


def clip_weights(weights: Mapping[str, Tensor], layers: int, patch_size: int, side: int) -> dict[str, Tensor]:
    """Return the weights of a `CLIPSegVisionModel` with `hidden_act` "gelu", without its last norm.

    Args:
        weights: by Hugging Face's older names for DINOv2 ("encoder.layer.0.norm1.weight" …), with
            "embeddings.class_position" (width,) and "embeddings.patch_positions" (grid², width) as its positions.
        layers: how many are taken.
        patch_size, side: of the CLIPSeg, in pixels.
    """
    out = {
        "pre_layrnorm.weight": torch.full_like(
            weights["encoder.layer.0.norm1.bias"], NORM_EPSILON**0.5 / SMALLNESS
        ),
        "pre_layrnorm.bias": torch.zeros_like(weights["encoder.layer.0.norm1.bias"]),
    }
    for name, embedding in _embeddings(weights, patch_size, side // patch_size).items():
        out[f"embeddings.{name}"] = embedding * SMALLNESS
    for index in range(layers):
        prefix = f"encoder.layer.{index}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        out |= {f"encoder.layers.{index}.{name}": weight for name, weight in _layer(layer).items()}
    return out


def _embeddings(weights: Mapping[str, Tensor], patch_size: int, grid: int) -> dict[str, Tensor]:
    positions = weights["embeddings.patch_positions"]
    square = positions.T.unflatten(1, (round(len(positions) ** 0.5), -1))[None]
    patches = F.interpolate(square, (grid, grid), mode="bicubic")[0].flatten(1).T
    patches = patches + weights["embeddings.patch_embeddings.projection.bias"]
    return {
        "class_embedding": weights["embeddings.cls_token"].flatten() + weights["embeddings.class_position"],
        "patch_embedding.weight": resize_patches(
            weights["embeddings.patch_embeddings.projection.weight"], patch_size
        ),
        "position_embedding.weight": torch.cat([torch.zeros_like(patches[:1]), patches]),
    }


def resize_patches(weight: Tensor, side: int) -> Tensor:
    """Return patch weights (width, 3, side, side) that see in an enlarged image what the old ones saw in the
    original (FlexiViT's resize by the pseudo-inverse)."""
    old = weight.shape[-1]
    pixels = torch.eye(old * old).view(-1, 1, old, old)
    enlarge = F.interpolate(pixels, (side, side), mode="bilinear").flatten(1)
    shrink = torch.linalg.pinv(enlarge.double()).float()
    return (weight.flatten(2) @ shrink.T).unflatten(2, (side, side))


def _layer(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "self_attn.q_proj": "attention.attention.query",
        "self_attn.k_proj": "attention.attention.key",
        "self_attn.v_proj": "attention.attention.value",
        "self_attn.out_proj": "attention.output.dense",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    scales = {"self_attn.out_proj": layer["layer_scale1.lambda1"], "mlp.fc2": layer["layer_scale2.lambda1"]}
    out = {}
    for new, old in names.items():
        scale = scales.get(new, torch.ones(()))
        out[f"{new}.bias"] = layer[f"{old}.bias"] * scale
        out[f"{new}.weight"] = layer[f"{old}.weight"] * (scale[:, None] if scale.ndim else scale)
    return out
