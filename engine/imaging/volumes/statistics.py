"""What is measured of a segment: its size, its place, and the intensities of the scan in it."""

from dataclasses import dataclass

import numpy as np

from engine.imaging.volumes.segments import box_of
from engine.imaging.volumes.volume import Volume

PERCENTILES = (5, 50, 95)
PART = 1 << 20  # voxels


@dataclass(frozen=True)
class Statistics:
    """Of one segment. What is not known, or is of no voxel, is None.

    Places are (L, P, S) in patient coordinates, LPS, in mm; they and the volume are None where a spacing is not
    known. Intensities are in the scan's own unit, such as Hounsfield's; those of colours are their brightness, the
    mean of red, green and blue. Voxels that were NaN or infinite count in size and place, not in intensities.

    Attributes:
        invalid_voxels: how many were NaN or infinite.
        mean, sd: of the intensities; the standard deviation is that of a sample, as Slicer and ITK have it.
        median, percentile_5, percentile_95: of the intensities, linear between neighbours.
        centroid_mm: mean place of its voxels.
        lowest_mm, highest_mm: corners of the smallest box along L, P and S that holds its voxels whole.
        slices: how many have voxels of it.
        first_slice, last_slice: along the volume's z, from 0.
    """

    voxels: int = 0
    volume_ml: float | None = None
    invalid_voxels: int = 0
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    percentile_5: float | None = None
    percentile_95: float | None = None
    centroid_mm: tuple[float, float, float] | None = None
    lowest_mm: tuple[float, float, float] | None = None
    highest_mm: tuple[float, float, float] | None = None
    slices: int = 0
    first_slice: int | None = None
    last_slice: int | None = None


def statistics_of(mask: np.ndarray, volume: Volume) -> Statistics:
    """Measure the segment of a mask (z, y, x) bool, in memory for its own voxels, not for those of the volume."""
    is_measured = volume.voxel_volume_ml is not None
    if not mask.any():
        return Statistics(volume_ml=0.0 if is_measured else None)
    box = box_of(mask)
    inside = mask[box]
    in_slices = np.count_nonzero(inside, axis=(1, 2))
    count = int(in_slices.sum())
    return Statistics(
        voxels=count,
        volume_ml=count * volume.voxel_volume_ml if is_measured else None,
        **_of_intensities(inside, box, volume),
        **(_places(inside, box, volume) if is_measured else {}),
        slices=int(np.count_nonzero(in_slices)),
        first_slice=int(box[0].start),
        last_slice=int(box[0].stop) - 1,
    )


def _of_intensities(inside: np.ndarray, box: tuple[slice, ...], volume: Volume) -> dict[str, float | int]:
    invalid_voxels = 0
    if volume.invalid is not None:
        valid = inside & ~volume.invalid[box]
        invalid_voxels, inside = np.count_nonzero(inside) - np.count_nonzero(valid), valid
    values = volume.voxels[box][inside]
    if volume.is_rgb:
        values = values.mean(axis=1, dtype=np.float32)
    found: dict[str, float | int] = {"invalid_voxels": int(invalid_voxels)}
    if not len(values):
        return found
    mean = values.mean(dtype=np.float64)
    if len(values) > 1:
        parts = np.array_split(values, -(-len(values) // PART))
        squares = sum(np.square(np.subtract(part, mean, dtype=np.float64)).sum() for part in parts)
        found["sd"] = float(np.sqrt(squares / (len(values) - 1)))
    low, median, high = _percentiles(values)
    return found | {"mean": float(mean), "median": median, "percentile_5": low, "percentile_95": high}


def _percentiles(values: np.ndarray) -> list[float]:
    """Return what `np.percentile` gives, but exactly of any type: 16 bits cannot hold every difference of two. The
    order of the values is lost."""
    places = np.array(PERCENTILES) / 100 * (len(values) - 1)
    below, above = np.floor(places).astype(int), np.ceil(places).astype(int)
    values.partition(np.unique([below, above]))
    low, high = values[below].astype(np.float64), values[above].astype(np.float64)
    return (low + places % 1 * (high - low)).tolist()


def _places(inside: np.ndarray, box: tuple[slice, ...], volume: Volume) -> dict[str, tuple[float, ...]]:
    start = np.array([part.start for part in box[::-1]])
    matrix = volume.direction_matrix * volume.spacing_mm  # from x, y, z to L, P, S
    origin = np.array(volume.origin_mm) + matrix @ start
    counts = [np.count_nonzero(inside, axis=axes) for axes in ((0, 1), (0, 2), (1, 2))]
    centroid = matrix @ [np.average(np.arange(len(count)), weights=count) for count in counts]
    ends = matrix @ _ends_of_rows(inside)
    half = np.abs(matrix).sum(axis=1) / 2  # from a voxel's middle to the ends of its box
    places = {
        "centroid_mm": origin + centroid,
        "lowest_mm": origin + ends.min(axis=1) - half,
        "highest_mm": origin + ends.max(axis=1) + half,
    }
    return {name: tuple(place.tolist()) for name, place in places.items()}


def _ends_of_rows(inside: np.ndarray) -> np.ndarray:
    """Return x, y, z of the first and the last voxel of each row, (3, n): one of them lies furthest out."""
    z, y = np.nonzero(inside.any(axis=2))
    first = inside.argmax(axis=2)[z, y]
    last = inside.shape[2] - 1 - inside[..., ::-1].argmax(axis=2)[z, y]
    return np.array([np.concatenate([first, last]), np.tile(y, 2), np.tile(z, 2)])
