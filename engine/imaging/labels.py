"""Read the labels of a volume: label maps, and segmentations as 3D Slicer saves them (.seg.nrrd)."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile
from pathlib import Path

import numpy as np

from engine.errors import UserError
from engine.imaging.pictures import read_indices
from engine.imaging.reading import PICTURE_SUFFIXES, image_suffix, read_raster, read_volume
from engine.imaging.volumes.volume import Volume, corners_mm

GRID_TOLERANCE = 0.01  # of a voxel; headers round far less
LONGEST_LINE = 10 << 20  # bytes
BINARY = "Binary labelmap"
IGNORE = "ignore"  # nnU-Net's name for what nobody has labelled
Places = tuple[tuple[int, int], ...]  # (layer, value) pairs


@dataclass(frozen=True, eq=False)
class Labels:
    """Named structures on a volume's grid, which may overlap.

    Attributes:
        layers: (layers, z, y, x) of an integer dtype.
        places: structure -> the (layer, value) pairs of its voxels; the structures of which the file says whether
            they are there.
        unknown: the pairs of the voxels that nobody has labelled.
        unnamed: value -> how many voxels have it, though nothing names it.
    """

    layers: np.ndarray
    places: dict[str, Places]
    unknown: Places = ()
    unnamed: dict[int, int] = field(default_factory=dict)

    def mask(self, name: str, cut: Callable[[np.ndarray], np.ndarray] = lambda layer: layer) -> np.ndarray:
        """Return a structure as bool (z, y, x), or of the part that `cut` takes of each layer."""
        return self._where(self.places[name], cut)

    def known(self, cut: Callable[[np.ndarray], np.ndarray] = lambda layer: layer) -> np.ndarray | None:
        """Return which voxels are labelled, likewise; None for all of them."""
        return ~self._where(self.unknown, cut) if self.unknown else None

    def _where(self, places: Places, cut: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.any([cut(self.layers[layer]) == value for layer, value in places], axis=0)


def is_ignore(name: str) -> bool:
    """Return whether a label's name says that nobody has labelled its voxels."""
    return name.strip().lower() == IGNORE


def read_label_map(
    path: Path, values: dict[str, Sequence[int]], volume: Volume, labelled: Collection[str] = ()
) -> Labels:
    """Read a label map on the very grid of its volume.

    A structure without a voxel may be absent, or nobody has labelled it: of such a one, the map says nothing.

    Args:
        values: structure -> the numbers of its voxels; those of "ignore" are not known.
        labelled: structures that are absent where the map does not show them.

    Raises:
        UserError: the file is missing, damaged or no label map, or on another grid.
    """
    labels = _read_numbers(path)
    if labels.is_rgb or labels.no_numbers or not np.array_equal(labels.voxels, np.trunc(labels.voxels)):
        raise UserError(f"{path} is no label map: it holds colours or broken numbers")
    if labels.shape != volume.shape:
        raise UserError(
            f"{path} is not on the grid of {volume.name}: it has {_size(labels)} voxels and the volume "
            f"{_size(volume)}"
        )
    apart_mm = np.abs(corners_mm(volume.shape, labels) - corners_mm(volume.shape, volume)).max()
    if not (labels.flat and volume.flat) and apart_mm > GRID_TOLERANCE * min(volume.spacing_mm):
        raise UserError(f"{path} is not on the grid of {volume.name}; resample it, or its masks would be misplaced")
    lowest, highest = labels.voxels.min(), labels.voxels.max()
    kind = np.promote_types(np.min_scalar_type(int(lowest)), np.min_scalar_type(int(highest)))
    places = {name: tuple((0, int(number)) for number in numbers) for name, numbers in values.items()}
    return _labels(labels.voxels.astype(kind)[None], places, labelled)


def _read_numbers(path: Path) -> Volume:
    """Read a label map; of a picture with a palette, the numbers and not the colours, and of RGB its greys."""
    volume = read_volume(path)
    if not volume.flat or image_suffix(path) not in PICTURE_SUFFIXES:
        return volume
    if indexed := read_indices(path):
        return volume.with_voxels(indexed[0][None])
    is_grey = volume.is_rgb and not np.ptp(volume.voxels, axis=-1).any()
    return volume.with_voxels(volume.voxels[..., 0]) if is_grey else volume


def _labels(layers: np.ndarray, places: dict[str, Places], labelled: Collection[str]) -> Labels:
    """Return labels without the structures of which they say nothing: those without a voxel that are not
    `labelled`, or may be where nobody has labelled."""
    counts = _counts(layers)
    unknown = tuple(p for name in places if is_ignore(name) for p in places[name] if p in counts)
    stated = {
        name: pairs
        for name, pairs in places.items()
        if not is_ignore(name) and (not counts.keys().isdisjoint(pairs) or (name in labelled and not unknown))
    }
    unnamed: Counter[int] = Counter()
    for layer, value in counts.keys() - set(chain(*places.values())):
        if value:
            unnamed[value] += counts[layer, value]
    return Labels(layers, stated, unknown, dict(sorted(unnamed.items())))


def _counts(layers: np.ndarray) -> dict[tuple[int, int], int]:
    """Return how many voxels of each layer have each value."""
    counts: Counter[tuple[int, int]] = Counter()
    for number, layer in enumerate(layers):
        for part in layer:  # as sorting takes the less memory
            for value, count in zip(*np.unique(part, return_counts=True), strict=True):
                counts[number, int(value)] += int(count)
    return counts


def segment_names(path: Path) -> list[str]:
    """Return the names of the segments of a `.seg.nrrd`, but for "ignore"; reads its header only.

    Raises:
        UserError: the file is missing, no NRRD, or names no segments.
    """
    return [name for name, _ in _segments(path, _header(path)) if not is_ignore(name)]


def read_segmentation(path: Path, volume: Volume) -> Labels:
    """Read a `.seg.nrrd` of 3D Slicer, and place it on the grid of its volume.

    Slicer crops what it saves, turns the slices of left-handed volumes round, and puts overlapping segments into
    layers. Segments of one name are one structure. One without a voxel is absent, and what lies in one that is
    named "ignore" is not known.

    Raises:
        UserError: the file is missing, damaged or no binary segmentation; it lies between the volume's voxels, or
            has segments beyond the volume.
    """
    fields = _header(path)
    segments = _segments(path, fields)
    representation = fields.get("Segmentation_MasterRepresentation", BINARY)
    if representation != BINARY:
        raise UserError(f"{path} holds a '{representation}'; save it from Slicer as binary label map")
    raster = read_raster(path)
    frames, kind = len(raster.voxels), raster.voxels.dtype
    if raster.flat or frames > 1 or kind.kind not in "iu":
        what = "is flat" if raster.flat else f"has {frames} frames" if frames > 1 else f"holds numbers of {kind}"
        raise UserError(f"{path} is no segmentation: it {what}")
    layers = np.moveaxis(raster.voxels[0], -1, 0)
    places: dict[str, Places] = {}
    for name, place in segments:
        if place[0] >= len(layers):
            raise UserError(f"{path} has no layer {place[0]}, where its segment '{name}' is; save it again")
        places[name] = (*places.get(name, ()), place)
    grid = Volume(layers[0], **raster.geometry, name=str(path))
    return _labels(_placed(layers, grid, volume), places, labelled=places)


def _header(path: Path) -> dict[str, str]:
    """Return the fields `key:=value` of an NRRD's header."""
    try:
        with path.open("rb") as file:
            lines = list(takewhile(lambda line: line.strip(), iter(partial(file.readline, LONGEST_LINE), b"")))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not lines or not lines[0].startswith(b"NRRD"):
        raise UserError(f"{path} is no NRRD file; it may be damaged or not what its name says")
    texts = [line.decode("utf-8", errors="replace").rstrip("\r\n") for line in lines]
    pairs = [text.split(":=", 1) for text in texts if ":=" in text and not text.startswith("#")]
    return {key: value.replace("\\n", "\n").replace("\\\\", "\\") for key, value in pairs}


def _segments(path: Path, fields: dict[str, str]) -> list[tuple[str, tuple[int, int]]]:
    """Return names with (layer, value). Slicer before 4.11 wrote neither: one layer of ones for each segment."""
    matches = map(re.compile(r"Segment(\d+)_(?:ID|Name)").fullmatch, fields)
    numbers = sorted({int(match[1]) for match in matches if match})
    if not numbers:
        raise UserError(f"{path} names no segments; save it as a segmentation (.seg.nrrd) from Slicer")
    segments = []
    for number in numbers:
        prefix = f"Segment{number}_"
        name = " ".join(fields.get(f"{prefix}Name", "").split()) or fields.get(f"{prefix}ID", prefix)
        try:
            layer, value = int(fields.get(f"{prefix}Layer", number)), int(fields.get(f"{prefix}LabelValue", 1))
        except ValueError:
            layer = value = -1
        if layer < 0 or value < 0:
            raise UserError(f"{path} gives the segment '{name}' no valid layer and value; save it again")
        segments.append((name, (layer, value)))
    return segments


def _placed(layers: np.ndarray, grid: Volume, volume: Volume) -> np.ndarray:
    """Return layers (layers, z, y, x) on the grid of a volume whose voxels they share.

    The axes may be in another order or run the other way, and the extents may differ.

    Raises:
        UserError: the grids' voxels do not coincide, or a label lies beyond the volume.
    """
    to_voxels = np.linalg.inv(volume.direction_matrix * volume.spacing_mm)
    steps = to_voxels @ (grid.direction_matrix * grid.spacing_mm)  # one voxel of the grid in voxels of the volume
    start = to_voxels @ np.subtract(grid.origin_mm, volume.origin_mm)
    whole, first = np.round(steps).astype(int), np.round(start).astype(int)
    size = np.array(grid.shape[::-1])
    deviation = np.abs(steps - whole) @ (size - 1) + np.abs(start - first)
    if deviation.max() > GRID_TOLERANCE or not np.array_equal(np.abs(whole) @ np.abs(whole.T), np.eye(3)):
        raise UserError(
            f"{grid.name} does not lie on the voxels of {volume.name} (another spacing, direction or a shift by "
            "parts of a voxel); in Slicer, set the volume as the segmentation's source geometry and save it again"
        )
    axes = np.abs(whole).argmax(axis=1)  # x, y, z of the volume are these axes of the grid
    signs = whole[range(3), axes]
    turned = layers.transpose(0, *(3 - axes[::-1]))
    turned = np.flip(turned, [3 - axis for axis in range(3) if signs[axis] < 0])
    low = np.where(signs < 0, first - (size[axes] - 1), first)[::-1]  # from here on in array order
    high = low + turned.shape[1:]
    inside = tuple(slice(max(0, a), max(0, min(b, n))) for a, b, n in zip(low, high, volume.shape, strict=True))
    taken = tuple(slice(s.start - a, max(s.start, s.stop) - a) for s, a in zip(inside, low, strict=True))
    placed = np.zeros((len(layers), *volume.shape), layers.dtype)
    if all(s.start < s.stop for s in inside):
        placed[(slice(None), *inside)] = turned[(slice(None), *taken)]
    if np.count_nonzero(placed) < np.count_nonzero(layers):
        raise UserError(f"{grid.name} has segments beyond the edge of {volume.name}; is it that volume's?")
    return placed


def _size(volume: Volume) -> str:
    return " × ".join(map(str, volume.shape[::-1]))
