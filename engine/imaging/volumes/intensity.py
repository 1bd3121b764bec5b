"""From intensities to 0..1: windows by name, by numbers, of the file, or by percentiles."""

import numpy as np

from engine.errors import UserError
from engine.imaging.volumes.volume import Volume

CT_WINDOWS = {  # center, width in Hounsfield units
    "soft-tissue": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "stroke": (35.0, 40.0),
    "subdural": (75.0, 215.0),
    "mediastinum": (50.0, 350.0),
    "liver": (60.0, 160.0),
    "angio": (300.0, 600.0),
}
CHOICES = ("auto", "full", "percentiles", "file", *CT_WINDOWS, "center,width")
PERCENTILES = (0.5, 99.5)
AIR_HU = -900


def intensity_range(volume: Volume, window: str = "auto") -> tuple[float, float]:
    """Return the intensities that become 0 and 1.

    Args:
        window: the name of a CT window; "center,width"; "file" for the file's own; "percentiles" for the 0.5
            and 99.5 percentiles of the voxels above the lowest value; "full" for lowest to highest; or
            "auto": 0..255 for RGB and for 8-bit pictures, soft tissue for CT (by its modality or, where that
            is not known, by voxels at -900 and below), else the file's own, else percentiles.

    Raises:
        UserError: an unknown window, a file without its own, or a volume of one value.
    """
    lowest, highest = float(volume.voxels.min()), float(volume.voxels.max())
    if lowest == highest:
        raise UserError(f"every voxel of {volume.name} is {lowest:g}; there is nothing to segment")
    if window == "auto":
        window = _automatic(volume, lowest)
    if window == "8-bit":
        return 0.0, 255.0
    if window == "full":
        return lowest, highest
    if window == "percentiles":
        return _percentiles(volume.voxels, lowest, highest)
    if window == "file" and volume.window is None:
        raise UserError(f"{volume.name} has no window of its own; choose --window auto")
    center, width = volume.window if window == "file" else CT_WINDOWS.get(window) or _numbers(window)
    return center - width / 2, center + width / 2


def to_unit(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map intensities to float32 in 0..1, where `low` becomes 0 and `high` 1; those beyond are clipped."""
    return np.clip((voxels.astype(np.float32) - low) / (high - low), 0, 1)


def is_empty_air(stack: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return for each slice (slices, rows, columns[, 3]) whether it shows one single value: bool (slices,)."""
    axes = tuple(range(1, stack.ndim))
    return np.clip(stack.min(axis=axes), low, high) == np.clip(stack.max(axis=axes), low, high)


def _automatic(volume: Volume, lowest: float) -> str:
    if volume.is_rgb or (volume.flat and volume.voxels.dtype == np.uint8):
        return "8-bit"
    if volume.modality == "CT" or (volume.modality is None and lowest <= AIR_HU):
        return "soft-tissue"
    return "file" if volume.window else "percentiles"


def _percentiles(voxels: np.ndarray, lowest: float, highest: float) -> tuple[float, float]:
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2:
        low, high = _counted_percentiles(voxels)
    else:
        low, high = np.percentile(voxels[voxels > lowest], PERCENTILES)
    return (float(low), float(high)) if low < high else (lowest, highest)


def _counted_percentiles(voxels: np.ndarray) -> np.ndarray:
    """Return what `np.percentile` gives for the voxels above the lowest value, by counting each value."""
    values = np.iinfo(voxels.dtype)
    counts = np.zeros(values.max - values.min + 1, np.int64)
    for part in voxels:  # as counting widens every voxel to 8 bytes
        counts += np.bincount(part.ravel().astype(np.intp) - values.min, minlength=len(counts))
    counts[np.flatnonzero(counts)[0]] = 0
    up_to = counts.cumsum()
    places = np.array(PERCENTILES) / 100 * (up_to[-1] - 1)
    below, above = (values.min + np.searchsorted(up_to, rank(places), side="right") for rank in (np.floor, np.ceil))
    return below + (above - below) * (places % 1)


def _numbers(window: str) -> tuple[float, float]:
    try:
        center, width = (float(part) for part in window.split(","))
    except ValueError:
        raise UserError(f"unknown window '{window}'; there are {', '.join(CHOICES)}") from None
    if not (np.isfinite([center, width]).all() and width > 0):
        raise UserError(f"the window '{window}' has no positive width; give center,width such as 40,400")
    return center, width
