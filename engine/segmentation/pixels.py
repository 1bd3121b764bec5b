"""From slices to what a base reads, and from its logits back to the slices' own size."""

import torch
from torch import Tensor
from torch.nn import functional as F


def to_pixel_values(slices: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Resize and normalise slices for a base.

    Args:
        slices: (n, height, width) grey or (n, height, width, 3) RGB, float in 0..1.
        side: the side of the square that the base reads, in pixels. Slices are stretched to it.
        mean, std: of the three channels.

    Returns:
        (n, 3, side, side), the dtype of `slices`.
    """
    channels = slices[:, None] if slices.ndim == 3 else slices.permute(0, 3, 1, 2)
    channels = F.interpolate(channels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    shape = (1, 3, 1, 1)
    return (channels - slices.new_tensor(mean).view(shape)) / slices.new_tensor(std).view(shape)


def to_slice_size(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits (n, side, side) to probabilities (n, height, width) in 0..1."""
    resized = F.interpolate(logits[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return torch.sigmoid(resized[:, 0])
