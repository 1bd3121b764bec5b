"""What a frozen encoder makes of images, kept so that it runs once for each image and not in every epoch."""

import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from shutil import disk_usage

import psutil
import torch
from torch import Tensor

SHARE = 0.5  # of what is free, which may be taken


class ActivationCache:
    """Keeps activations as fp16 by the images that they are of.

    Args:
        folder: where a temporary file holds them; in memory when None. The file vanishes with the process.
    """

    def __init__(self, folder: Path | None = None):
        self._file = tempfile.TemporaryFile(dir=folder) if folder else None  # noqa: SIM115 - open as long as this
        self._kept: dict[Hashable, Tensor | int] = {}
        self._shape: torch.Size | None = None

    def __contains__(self, image: Hashable) -> bool:
        return image in self._kept

    def fetch(self, images: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the activations of images (images, …) float16 on the CPU.

        Args:
            compute: returns those at the given positions of `images`, for the ones that are not kept yet.
        """
        missing = [i for i, image in enumerate(images) if image not in self._kept and image not in images[:i]]
        if missing:
            for position, activations in zip(missing, compute(missing).to("cpu", torch.float16), strict=True):
                self._keep(images[position], activations)
        return torch.stack([self._read(image) for image in images])

    def _keep(self, image: Hashable, activations: Tensor) -> None:
        self._shape = activations.shape
        if self._file is None:
            self._kept[image] = activations.clone()
            return
        offset = self._file.seek(0, 2)
        self._file.write(activations.contiguous().numpy().data)
        self._file.flush()  # a full disk is told here
        self._kept[image] = offset

    def _read(self, image: Hashable) -> Tensor:
        kept = self._kept[image]
        if self._file is None:
            return kept
        self._file.seek(kept)
        content = bytearray(self._file.read(2 * self._shape.numel()))
        return torch.frombuffer(content, dtype=torch.float16).view(self._shape)


def choose_place(wanted: str, needed_bytes: int, folder: Path) -> str:
    """Return where to keep that many bytes: for "auto" memory, else a file in `folder`, else "none"."""
    if wanted != "auto":
        return wanted
    if needed_bytes < SHARE * psutil.virtual_memory().available:
        return "memory"
    return "disk" if needed_bytes < SHARE * disk_usage(folder).free else "none"
