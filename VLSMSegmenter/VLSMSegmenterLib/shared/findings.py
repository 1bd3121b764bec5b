"""What is asked for, and what was found, with all that is needed to make its segment anew."""

import hashlib
from dataclasses import dataclass

import numpy as np
import slicer

from engine.client import Result
from engine.imaging.volumes.segments import fill_holes, keep_largest, smooth
from VLSMSegmenterLib.shared import words
from VLSMSegmenterLib.shared.volumes import Box, Grid


@dataclass(frozen=True)
class Request:
    """What to segment and how; what is None is the adapter's own.

    Attributes:
        replace: whether a prompt that was run before replaces its own segment; otherwise it gets another one.
        roi: a region of interest outside which nothing is looked at.
    """

    prompts: tuple[str, ...]
    adapter: str | None = None
    base: str | None = None
    plane: str | None = None
    window: str | None = None
    threshold: float | None = None
    largest_only: bool = False
    holes_filled: bool = False
    smoothed: bool = False
    replace: bool = False
    roi: "slicer.vtkMRMLMarkupsROINode | None" = None


@dataclass(frozen=True, eq=False)
class Finding:
    """A segment with all that is needed to make it anew at another threshold.

    Attributes:
        result: with the probability in the box.
        grid: of the whole volume.
        box: the voxels that were looked at.
        geometry: of the segmentation, as it was.
        digest: of the mask that was written last, to notice edits by hand.
        device: where it was found.
    """

    segment_id: str
    result: Result
    grid: Grid
    box: Box
    geometry: str
    threshold: float
    largest_only: bool
    holes_filled: bool
    smoothed: bool
    voxels: int = 0
    digest: bytes = b""
    device: str = ""

    @property
    def size(self) -> str:
        return words.size(self.voxels, self.result.voxel_volume_ml, self.grid.shape[0] == 1)

    @property
    def answer(self) -> str:
        """The size, or "not found"."""
        return self.size if self.result.found else "not found"

    def mask(self) -> np.ndarray:
        """Return the mask (z, y, x) bool on the whole grid."""
        part = self.result.mask(self.threshold)
        if self.smoothed:
            part = smooth(part, self.grid.spacing_mm)
        if part.any():
            part = keep_largest(part) if self.largest_only else part
            part = fill_holes(part) if self.holes_filled else part
        mask = np.zeros(self.grid.shape, bool)
        mask[self.box] = part
        return mask

    def describe(self) -> str:
        """Say it as "liver: 1 423 ml, presence 0.98, 4.1 s on CPU", or "spleen: not found"."""
        if not self.result.found:
            return f"{self.result.prompt}: not found"
        if not self.voxels:
            return (
                f"{self.result.prompt}: nothing reaches the threshold {self.threshold:g} "
                f"(presence {self.result.presence:.2f}); lower it"
            )
        took = f", {words.duration(self.result.seconds)} on {words.device(self.device)}" if self.device else ""
        return f"{self.result.prompt}: {self.size}, presence {self.result.presence:.2f}{took}"


def digest_of(mask: np.ndarray) -> bytes:
    """Return a fingerprint of a mask (z, y, x) bool."""
    return hashlib.blake2b(np.packbits(mask).data, digest_size=16).digest()
