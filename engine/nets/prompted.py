"""What every prompted net here can do, whatever it is built of."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class PromptedNet(nn.Module, ABC):
    """A net that answers prompts about slices, in three parts: a slice is encoded once for all its prompts.

    Attributes:
        patch_size: the side of what `encode_images` takes is a multiple of it.
        trained: the part that training changes and that a bundle holds; the rest is frozen.
        frozen_encoder: what an image costs most is the same all through the training; such a net also has
            `activations`, and its `forward` takes them in place of pixel values (see `CLIPSeg`).
    """

    patch_size: int
    trained: nn.Module
    frozen_encoder: bool = False

    @abstractmethod
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode slices.

        Args:
            pixel_values: (slices, 3, side, side), normalised by the base's mean and standard deviation.

        Returns:
            (slices, …): all that `decode` needs of them.
        """

    @abstractmethod
    def encode_prompts(self, input_ids: Tensor) -> Any:
        """Encode prompts (prompts, tokens) int64, each with an end-of-text token; what follows it is ignored."""

    @abstractmethod
    def decode(self, maps: Tensor, condition: Any) -> Tensor:
        """Decode encoded slices under one prompt each, or all under a single one.

        Returns:
            (slices, side, side): logits.
        """

    @abstractmethod
    def values_per_slice(self, side: int) -> int:
        """Return roughly how many numbers are held at a time while one slice is encoded."""

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Return logits (prompts, side, side) for slices with one or more prompts each, slice by slice."""
        maps = repeat_for_prompts(self.encode_images(pixel_values), input_ids)
        return self.decode(maps, self.encode_prompts(input_ids))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def repeat_for_prompts(maps: Tensor, input_ids: Tensor) -> Tensor:
    """Repeat each slice's maps for as many prompts as there are a slice."""
    return maps.repeat_interleave(len(input_ids) // len(maps), dim=0)
