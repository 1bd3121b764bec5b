"""Segments: named masks with a colour, and the few operations on masks that people ask for."""

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

# Easy to tell apart, and legible on grey; the first that is free is taken, beginning with the name's own.
PALETTE_HUES = (0.02, 0.33, 0.58, 0.13, 0.80, 0.48, 0.92, 0.07, 0.68, 0.22)
SMOOTHING = 1.5  # standard deviation in voxels
SMOOTHING_MARGIN = 6  # voxels around what is smoothed: four times the deviation


@dataclass(frozen=True)
class Algorithm:
    """What found a segment.

    Attributes:
        sha256: of the weights, as 64 hexadecimal digits.
    """

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Segment:
    """One structure.

    Attributes:
        name: shown to people; the prompt.
        mask: (z, y, x) bool.
        color: red, green, blue in 0..1.
        tags: further facts that `.seg.nrrd` and DICOM keep beside the segment.
        algorithm: what found it; DICOM must say.
    """

    name: str
    mask: np.ndarray
    color: tuple[float, float, float]
    tags: dict[str, str] = field(default_factory=dict)
    algorithm: Algorithm | None = None


def segment_colors(names: Sequence[str]) -> list[tuple[float, float, float]]:
    """Return a colour for each name: the same for a name every time, unless another took it before."""
    taken: list[int] = []
    for name in names:
        own = int(hashlib.sha256(name.lower().encode()).hexdigest(), 16) % len(PALETTE_HUES)
        order = [(own + step) % len(PALETTE_HUES) for step in range(len(PALETTE_HUES))]
        taken.append(min(order, key=taken.count))
    return [colorsys.hsv_to_rgb(PALETTE_HUES[index], 0.75, 0.95) for index in taken]


def keep_largest(mask: np.ndarray) -> np.ndarray:
    """Keep the largest part (z, y, x) whose voxels touch by faces."""
    parts = sitk.ConnectedComponent(_image(mask))
    return sitk.GetArrayFromImage(sitk.RelabelComponent(parts)) == 1


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what a mask encloses: in 3-D, or in the slice where there is a single one."""
    if 1 in mask.shape:
        plane = mask.squeeze(axis=mask.shape.index(1))
        return sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(plane))).reshape(mask.shape) > 0
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(mask))) > 0


def smooth(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Round off a mask's surface: where a Gaussian mean of it exceeds one half.

    Its width is `SMOOTHING` times the finest spacing (x, y, z) in every direction, so that slices that lie far
    apart are not mixed; what is thinner than a few voxels goes.
    """
    if not mask.any():
        return mask
    box = box_of(mask, margin=SMOOTHING_MARGIN)
    image = sitk.Cast(_image(mask[box]), sitk.sitkFloat32)
    image.SetSpacing([float(spacing) for spacing in spacing_mm])
    mean = sitk.DiscreteGaussian(image, (SMOOTHING * min(spacing_mm)) ** 2)
    smoothed = np.zeros_like(mask)
    smoothed[box] = sitk.GetArrayFromImage(mean) > 0.5
    return smoothed


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Return the smallest box (z, y, x) around the voxels of a mask that has some, with a margin."""
    ranges = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(0, r[0] - margin), r[-1] + 1 + margin) for r in ranges)


def drop_small(mask: np.ndarray, minimum_ml: float, voxel_volume_ml: float) -> np.ndarray:
    """Drop parts, connected by faces, that are smaller than `minimum_ml`."""
    parts = sitk.ConnectedComponent(_image(mask))
    labels = sitk.GetArrayFromImage(parts)
    sizes_ml = np.bincount(labels.ravel()) * voxel_volume_ml
    return mask & (sizes_ml >= minimum_ml)[labels]


def most_probable(masks: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Give every voxel that several masks claim to the most probable one, the first of equals."""
    highest = np.full(masks[0].shape, -1.0, np.float32)
    owner = np.full(masks[0].shape, -1, np.int16)
    for index, (mask, probability) in enumerate(zip(masks, probabilities, strict=True)):
        better = mask & (probability > highest)
        owner[better] = index
        highest[better] = probability[better]
    return [owner == index for index in range(len(masks))]


def _image(mask: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(mask.astype(np.uint8))
