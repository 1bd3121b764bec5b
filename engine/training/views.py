"""Views: what a frozen encoder makes of changed pictures, kept in files, so that it runs once for each view."""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import UserError
from engine.nets.clipseg import CLIPSeg
from engine.nets.faster import fold_activations, pack_for_cpu

ENCODED_AT_ONCE = 8  # on a CPU, more pictures take longer each


class KeptView:
    """The activations of all pictures under one change each, as fp16 in a file that grows until it holds them all.

    Args:
        path: of the file; what an interrupted run wrote of it is kept.
        shape: (pictures, …) of the activations.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self._path = path
        self._shape = shape
        self._picture_bytes = 2 * int(np.prod(shape[1:]))
        self._mapped: np.ndarray | None = None

    @property
    def done(self) -> int:
        """How many pictures the file holds."""
        return self._path.stat().st_size // self._picture_bytes if self._path.is_file() else 0

    def fill(self, encode: Callable[[Tensor], Tensor], on_picture: Callable[[int], None]) -> None:
        """Encode the pictures that are missing.

        Args:
            encode: returns the activations (n, …) of the pictures with the given numbers (n,) int64.
            on_picture: called with the pictures done; what it raises ends the work, which may go on later.

        Raises:
            UserError: the disk is full.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.truncate(self.done * self._picture_bytes)  # a picture that was cut off
            for start in range(self.done, self._shape[0], ENCODED_AT_ONCE):
                numbers = torch.arange(start, min(start + ENCODED_AT_ONCE, self._shape[0]))
                try:
                    file.write(encode(numbers).to("cpu", torch.float16).contiguous().numpy().data)
                    file.flush()
                except OSError as error:
                    raise UserError(f"cannot write {self._path}: {error.strerror}") from error
                on_picture(int(numbers[-1]) + 1)

    def __getitem__(self, pictures: Tensor) -> Tensor:
        """Return the activations (n, …) float16 of pictures by their numbers (n,) int64."""
        if self._mapped is None:
            self._mapped = np.memmap(self._path, np.float16, "r", shape=self._shape)
        return torch.from_numpy(self._mapped[pictures.numpy()])


def frozen_encoder(model: CLIPSeg) -> Callable[[Tensor], Tensor]:
    """Return a copy of `model.activations` as it is now, in bf16 and without gradients."""
    copy = deepcopy(model).requires_grad_(False).eval().to(torch.bfloat16)
    if model.device.type == "cpu":
        fold_activations(copy)
        pack_for_cpu(copy)

    def encode(pixel_values: Tensor) -> Tensor:
        with torch.inference_mode():
            return copy.activations(pixel_values.to(torch.bfloat16))

    return encode


def hash_of_tower(model: CLIPSeg) -> str:
    """Return a hash of the vision encoder's weights."""
    digest = hashlib.sha256()
    for parameter in model.vision.parameters():
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
