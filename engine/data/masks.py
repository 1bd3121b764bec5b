"""The mask in a picture's file: grey, black and white, the numbers of a palette, or what is not transparent."""

from pathlib import Path

import numpy as np

from engine.choices import HALF
from engine.errors import UserError
from engine.imaging.pictures import read_indices, read_layers
from engine.imaging.reading import PICTURE_SUFFIXES, image_suffix, read_volume
from engine.imaging.volumes.volume import Volume

JPEG = (".jpg", ".jpeg")
JPEG_NOISE = 32  # by which its compression parts the three colours of a grey
OTHER_NOISE = 8
EXPECTED = "a mask holds 0 and 255, or 0 and 1"


def read_grey(path: Path) -> np.ndarray:
    """Return the values of a mask's file, (height, width).

    They are the numbers of a coloured palette, whatever the colours, and the opacity where it alone tells anything.

    Raises:
        UserError: the file is missing, damaged or coloured, or says two things at once.
    """
    voxels = read_single(path).voxels[0]
    if image_suffix(path) in PICTURE_SUFFIXES:
        if indexed := read_indices(path):
            return _of_palette(*indexed, path)
        if layers := read_layers(path):
            return _of_layers(*layers, path)
    return _without_colour(voxels, path)


def read_single(path: Path) -> Volume:
    """Read a picture.

    Raises:
        UserError: it is missing or damaged, or has several slices.
    """
    volume = read_volume(path)
    if volume.shape[0] != 1:
        raise UserError(f"{path} has {volume.shape[0]} slices; volumes need dataset.json or .seg.nrrd files")
    return volume


def binary(grey: np.ndarray, path: Path, above: int = HALF) -> np.ndarray:
    """Return a mask as bool. JPEG masks hold grey values near the edge, so the middle parts them, or another value
    that is given.

    Raises:
        UserError: other numbers, such as those of several classes in one file.
    """
    lowest, highest = grey.min(), grey.max()
    if 1 < highest <= HALF:
        raise UserError(f"{path} holds numbers up to {highest}; {EXPECTED}: one structure")
    if lowest > HALF and lowest != highest and path.suffix.lower() not in JPEG:
        raise UserError(f"{path} holds numbers from {lowest} to {highest}; {EXPECTED}")
    return grey > (above if highest > 1 else 0)


def odd_share(path: Path) -> float:
    """Return the share of a mask's pixels that are neither 0 nor its highest value, such as 255 (0..1)."""
    grey = read_grey(path)
    return float(((grey != 0) & (grey != max(1, 255 if grey.max() > HALF else grey.max()))).mean())


def _of_palette(indices: np.ndarray, palette: np.ndarray, path: Path) -> np.ndarray:
    """Return the numbers of a palette's picture; its greys, where it is a picture in black and white."""
    used = np.unique(indices)
    colours = palette[used].astype(int)
    brightness = colours.sum(axis=1)
    is_grey = not np.ptp(colours, axis=1).any() and brightness.max() > 3 * HALF
    if used[0] == 0 and brightness[0] > brightness.min() and not (is_grey and len(used) > 2):
        raise UserError(
            f"{path} shows 0, which is no structure, brighter than {used[brightness.argmin()]}; save it as grey, "
            "with 0 and 255"
        )
    if is_grey:
        return palette[indices][..., 0]
    if len(used) > 2:
        raise UserError(f"{path} holds {len(used)} numbers, up to {used[-1]}; {EXPECTED}: one structure")
    return indices


def _of_layers(colours: np.ndarray, opacity: np.ndarray, path: Path) -> np.ndarray:
    """Return the opacity of a picture of one colour; else its greys, with which the opacity has to agree."""
    if not np.ptp(opacity):
        return _without_colour(colours, path)
    pixels, seen = colours.reshape(opacity.size, -1), opacity.ravel() > HALF
    one_colour, one_seen = not np.ptp(pixels, axis=0).any(), seen.any() and not np.ptp(pixels[seen], axis=0).any()
    if one_colour or (one_seen and pixels[seen].max() > HALF):
        return opacity
    grey = _without_colour(colours, path)
    if not np.array_equal(binary(grey, path), binary(opacity, path)):
        raise UserError(f"{path} shows one thing by its colours and another by its transparency; save it as grey")
    return grey


def _without_colour(voxels: np.ndarray, path: Path) -> np.ndarray:
    if voxels.ndim == 2:
        return voxels
    if np.ptp(voxels, axis=-1).max() > (JPEG_NOISE if path.suffix.lower() in JPEG else OTHER_NOISE):
        raise UserError(f"{path} is a coloured picture; {EXPECTED}")
    return voxels.max(axis=-1)
