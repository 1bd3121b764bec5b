"""Slices of a volume in a plane of the patient, shown the usual way whatever the order of the stored axes."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from engine.errors import UserError
from engine.imaging.volumes.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
ALL_PLANES = "all"
CHOICES = ("auto", ALL_PLANES, *PLANES)
SLICE, NEIGHBOURS = "slice", "2.5d"
CHANNELS = (SLICE, NEIGHBOURS)
LEFT, POSTERIOR, SUPERIOR = 0, 1, 2  # the axes of LPS
EQUAL_AREA = 1.02

# For each plane the patient's axes along slices, rows and columns, and whether each runs against LPS.
# Axial: upwards; anterior to posterior; right to left. The others: superior to inferior down the rows.
_LAYOUT = {
    "axial": ((SUPERIOR, False), (POSTERIOR, False), (LEFT, False)),
    "coronal": ((POSTERIOR, False), (SUPERIOR, True), (LEFT, False)),
    "sagittal": ((LEFT, False), (SUPERIOR, True), (POSTERIOR, False)),
}


def orient(array: np.ndarray, volume: Volume, plane: str) -> np.ndarray:
    """Return an array on a volume's grid as a stack of slices in a plane.

    Args:
        array: (z, y, x) or (z, y, x, 3), on the grid of `volume`.
        plane: axial, coronal or sagittal; for an oblique volume the nearest of its own axes are taken.

    Returns:
        a view (slices, rows, columns[, 3]) in radiological order: axial slices run upwards, with the
        patient's right at the image's left and anterior at the top; coronal slices run from anterior to
        posterior; sagittal ones from right to left, with anterior at the left.
    """
    order, flips = layout(volume, plane)
    return np.flip(np.moveaxis(array, order, (0, 1, 2)), flips)


def layout(volume: Volume, plane: str) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return how a volume's arrays become the stack of `orient`: the axes of slices, rows and columns, and which of
    these three are then to be flipped."""
    matrix = volume.direction_matrix
    nearest = max(permutations(range(3)), key=lambda order: sum(abs(matrix[lps, order[lps]]) for lps in range(3)))
    axes, flips = [], []
    for position, (patient_axis, against) in enumerate(_LAYOUT[plane]):
        grid_axis = nearest[patient_axis]
        axes.append(2 - grid_axis)
        if (matrix[patient_axis, grid_axis] < 0) != against:
            flips.append(position)
    return tuple(axes), tuple(flips)


def take_slices(stack: np.ndarray, positions: Sequence[int], channels: str) -> np.ndarray:
    """Return slices of a stack as a model sees them: (n, rows, columns[, 3]); see `with_neighbours` for "2.5d"."""
    return with_neighbours(stack, positions) if channels == NEIGHBOURS else stack[positions]


def with_neighbours(stack: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """Return slices with the one before and the one after as channels; the ends of the stack repeat themselves.

    Args:
        stack: (slices, rows, columns), in the order of `orient`.

    Returns:
        (n, rows, columns, 3): before, the slice itself, after.
    """
    around = np.add.outer(np.asarray(positions, int), (-1, 0, 1)).clip(0, len(stack) - 1)
    return np.moveaxis(stack[around], 1, -1)


def check_channels(volume: Volume, channels: str) -> None:
    """Refuse neighbouring slices where the three channels hold colours.

    Raises:
        UserError: it is so, or the choice is unknown.
    """
    if channels not in CHANNELS:
        raise UserError(f"unknown channels '{channels}'; there are {', '.join(CHANNELS)}")
    if channels == NEIGHBOURS and volume.is_rgb:
        raise UserError(
            f"{volume.name} is in colour, and channels '{NEIGHBOURS}' show neighbouring slices instead; "
            f"it needs an adapter with channels '{SLICE}'"
        )


def slice_spacing_mm(volume: Volume, plane: str) -> tuple[float, float]:
    """Return the distances of neighbouring rows and of neighbouring columns of the slices in a plane."""
    _, rows, columns = layout(volume, plane)[0]
    return volume.spacing_mm[2 - rows], volume.spacing_mm[2 - columns]


def resolve_planes(volume: Volume, plane: str) -> tuple[str, ...]:
    """Return the planes that are meant.

    Args:
        plane: a name; "all" for the three; "auto" for the plane whose slices have the finest pixels: a single
            slice's own, otherwise across the coarsest axis, axial where they are equal.

    Raises:
        UserError: an unknown plane, or one of a single slice that is not its own.
    """
    if plane not in CHOICES:
        raise UserError(f"unknown plane '{plane}'; there are {', '.join(CHOICES)}")
    if plane in PLANES and not np.isfinite(_pixel_area(volume, plane)):
        raise UserError(
            f"{volume.name} has a single slice, which {plane} would cut into lines; choose --plane auto"
        )
    if plane in PLANES:
        return (plane,)
    if plane == ALL_PLANES and min(volume.shape) > 1:
        return PLANES
    if plane == ALL_PLANES:
        raise UserError(f"{volume.name} has a single slice; three planes need a volume, choose --plane auto")
    finest = min(_pixel_area(volume, name) for name in PLANES)
    return (next(name for name in PLANES if _pixel_area(volume, name) <= finest * EQUAL_AREA),)


def _pixel_area(volume: Volume, plane: str) -> float:
    """Return mm² a pixel; infinite for a plane that cuts a single slice into lines."""
    across = layout(volume, plane)[0][0]
    if min(volume.shape) == 1 and volume.shape[across] != 1:
        return float("inf")
    rows, columns = slice_spacing_mm(volume, plane)
    return rows * columns
