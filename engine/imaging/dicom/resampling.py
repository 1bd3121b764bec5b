"""Uneven and tilted slices onto a regular grid, and back."""

import math

import numpy as np

from engine.imaging.dicom.stacks import UNEVEN_MM, Stack
from engine.imaging.volumes.volume import Volume

SAME = 1e-3  # of a voxel, or of a direction of length 1
MOST_SLICES = 4  # times those of the stack: one close pair must not make thousands


def resampled(voxels: np.ndarray, stack: Stack) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """Put slices onto a grid at right angles, by linear interpolation; all of every slice lies in it.

    Slices keep their pixels unless they are shifted sideways. They come to lie as far apart as the closest two, but
    are at most `MOST_SLICES` times as many; what no slice covers gets the lowest value.

    Args:
        voxels: (slices, rows, columns[, 3]), in the order of `stack`.

    Returns:
        voxels of the same type; spacing and origin in mm (x, y, z).
    """
    along = stack.along_mm - stack.along_mm[0]
    rows_mm, columns_mm = stack.slices[0].pixel_spacing_mm
    shifts = stack.shifts_mm if np.abs(stack.shifts_mm).max() > UNEVEN_MM else np.zeros((len(along), 2))
    corner = shifts.min(axis=0)
    offsets = (shifts - corner) / (columns_mm, rows_mm)  # of each slice in the grid: columns, rows
    more = [math.ceil(round(v, 6)) for v in offsets.max(axis=0)]
    height, width = voxels.shape[1] + more[1], voxels.shape[2] + more[0]
    lowest = float(voxels.min())
    step = _step_mm(along)
    count = math.ceil(round(along[-1] / step, 6)) + 1
    grid = np.empty((count, height, width, *voxels.shape[3:]), voxels.dtype)
    for index in range(count):
        below, weight = _between(along, index * step)
        plane = sum(
            part * _shifted(voxels[i], offsets[i], (height, width), lowest)
            for i, part in ((below, 1 - weight), (below + 1, weight))
            if part
        )
        grid[index] = np.rint(plane) if grid.dtype.kind in "iu" else plane
    rows, columns = np.split(stack.slices[0].orientation, 2)
    origin = stack.positions_mm[0] + corner[0] * rows + corner[1] * columns
    return grid, (float(columns_mm), float(rows_mm), step), tuple(map(float, origin))


def on_source_slices(array: np.ndarray, volume: Volume) -> np.ndarray:
    """Return what lies on the slices that a volume was made of, by linear interpolation.

    Args:
        array: (z, y, x) on the volume's grid: a mask, or probabilities.
        volume: one with `stack`.

    Returns:
        (slices, rows, columns) in the order of `volume.stack.slices`; bool for a mask, else float32.
    """
    stack = volume.stack
    rows, columns = np.split(stack.slices[0].orientation, 2)
    away = stack.positions_mm - np.array(volume.origin_mm)
    offsets = np.stack([away @ rows, away @ columns], axis=1) / volume.spacing_mm[:2]
    places = np.arange(len(array)) * volume.spacing_mm[2]
    result = np.empty((len(stack.slices), *stack.slices[0].size[:2]), np.float32)
    for index, height_mm in enumerate(away @ stack.normal):
        below, weight = _between(places, height_mm)
        plane = array[below] * (1 - weight) + (array[below + 1] * weight if weight else 0)
        result[index] = _shifted(plane, -offsets[index], result.shape[1:], 0.0)
    return result >= 0.5 if array.dtype == bool else result


def covers_slices(volume: Volume) -> bool:
    """Return whether `on_source_slices` may be used: the grid has the slices' direction and pixel spacing, and all
    of each slice lies in it."""
    stack = volume.stack
    first = stack.slices[0]
    axes = np.stack([*np.split(first.orientation, 2), stack.normal])
    corners = (stack.positions_mm - volume.origin_mm) @ axes.T / volume.spacing_mm  # in voxels: x, y, z
    rows, columns = first.size[:2]
    last = np.subtract(volume.shape[::-1], (columns, rows, 1))  # where a slice may begin at most
    alike = np.allclose(axes.T, volume.direction_matrix, atol=SAME) and np.allclose(
        first.pixel_spacing_mm[::-1], volume.spacing_mm[:2], atol=SAME
    )
    return bool(alike and corners.min() > -SAME and (last - corners).min() > -SAME)


def _step_mm(along: np.ndarray) -> float:
    steps = np.diff(along)
    even = np.abs(along - np.linspace(0, along[-1], len(along))).max() <= UNEVEN_MM
    return float(steps.mean()) if even else float(max(steps.min(), along[-1] / (MOST_SLICES * len(steps))))


def _between(places: np.ndarray, place: float) -> tuple[int, float]:
    """Return the index of the last place that is not above, and the weight of the next; places beyond the ends are
    the ends."""
    exact = float(np.interp(place, places, np.arange(len(places))))
    nearest = round(exact)
    return (nearest, 0.0) if abs(exact - nearest) < 1e-4 else (int(exact), exact - int(exact))


def _shifted(plane: np.ndarray, offset: np.ndarray, size: tuple[int, int], outside: float) -> np.ndarray:
    """Return a plane (rows, columns[, 3]) moved by an offset (columns, rows) in pixels, in one of another size."""
    for axis in (0, 1):
        distance = round(float(offset[1 - axis]), 4)
        whole = math.floor(distance)
        part = distance - whole
        moved = _put(plane, axis, whole, size[axis], outside)
        plane = moved * (1 - part) + _put(plane, axis, whole + 1, size[axis], outside) * part if part else moved
    return plane


def _put(plane: np.ndarray, axis: int, offset: int, size: int, outside: float) -> np.ndarray:
    shape = list(plane.shape)
    shape[axis] = size
    result = np.full(shape, outside, np.float32)
    first, last = max(0, offset), min(size, offset + plane.shape[axis])
    if first < last:
        target = [slice(None)] * plane.ndim
        origin = list(target)
        target[axis], origin[axis] = slice(first, last), slice(first - offset, last - offset)
        result[tuple(target)] = plane[tuple(origin)]
    return result
