"""NIfTI-1 and NIfTI-2, in one file or two, and Analyze, from which they come: header to grid, bytes to voxels.

They are read here, as the library that SimpleITK has for them takes headers on trust: it writes past its memory
where vectors are scaled, knows no NIfTI-2, and reads voxels that are no number as 0.
"""

import math
import struct
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from engine.errors import UserError
from engine.imaging.headers import LARGEST
from engine.imaging.raster import Raster, are_colours
from engine.imaging.volumes.volume import is_degenerate
from engine.imaging.whole import Content

HEADER_SUFFIX, VOXEL_SUFFIXES = ".hdr", (".img", ".img.gz")  # of the two files that belong together
SIZES = (348, 540)  # of the headers of NIfTI-1 and 2; their first number
PLACES = {  # of what matters in the two headers
    "sizes": ((40, "8h"), (16, "8q")),
    "kind": ((70, "h"), (12, "h")),
    "spacing": ((76, "8f"), (104, "8d")),
    "start": ((108, "f"), (168, "q")),
    "scaling": ((112, "2f"), (176, "2d")),
    "units": ((123, "B"), (500, "i")),
    "codes": ((252, "2h"), (344, "2i")),
    "qform": ((256, "6f"), (352, "6d")),
    "sform": ((280, "12f"), (400, "12d")),
    "mark": ((344, "3s"), (4, "3s")),
}
ONE_FILE, TWO_FILES = (b"n+1", b"n+2"), (b"ni1", b"ni2")
KINDS = {  # numbers, and how many a voxel
    **{2: ("u1", 1), 4: ("i2", 1), 8: ("i4", 1), 16: ("f4", 1), 64: ("f8", 1), 128: ("u1", 3), 256: ("i1", 1)},
    **{512: ("u2", 1), 768: ("u4", 1), 1024: ("i8", 1), 1280: ("u8", 1), 2304: ("u1", 4)},
}
UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # metres, millimetres, micrometres
MOST_AXES, SPACE = 7, 3
FOURTH, FIFTH = 3, 4  # axes: time, and what belongs to one voxel
FLAT = 0.999  # of a determinant: a picture whose sides lie in the first two axes of the patient
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
TOLERANCE = 0.1  # of a voxel; headers keep single precision, and a real contradiction is larger
ROUNDING = 1e-7  # of the square of a number that single precision keeps
EXACT_IN_SINGLE = 2  # bytes of whole numbers


@dataclass(frozen=True)
class _Header:
    """What a header says, with its numbers as they stand there.

    Attributes:
        axes: how many count.
        shape: sizes of all seven axes, the fastest first; 1 for those that do not count.
        start: where the voxels begin in their file.
        codes: of qform and sform; 0 where there is none.
    """

    path: Path
    order: str
    axes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    components: int
    start: int
    scaling: tuple[float, float]
    spacing: tuple[float, ...]
    unit_mm: float
    codes: tuple[int, int]
    qform: tuple[float, ...]
    sform: np.ndarray

    @property
    def is_scaled(self) -> bool:
        slope, offset = self.scaling  # NIfTI: a slope of 0 means none, whatever the offset
        return self.components == 1 and bool(np.isfinite(slope)) and slope != 0 and (slope, offset) != (1, 0)

    @property
    def final(self) -> np.dtype:
        """The type of the voxels once they are scaled."""
        if not self.is_scaled:
            return self.dtype
        single = self.dtype.itemsize <= EXACT_IN_SINGLE or self.dtype == np.float32
        return np.dtype(np.float32 if single else np.float64)


def read_nifti(path: Path) -> Raster:
    """Read a file, or two that belong together, of which `path` is either.

    Raises:
        UserError: it is damaged, contradicts itself, or holds what is no image.
    """
    header_file, voxel_file = _files(path)
    content = Content(header_file)
    header, used = _read_header(header_file, content)
    grid = _grid(header)
    if voxel_file != header_file:
        content, used = Content(voxel_file), 0
    count = math.prod(header.shape) * header.components
    voxels = content.voxels(header.start - used, header.dtype.newbyteorder(header.order), count)
    voxels = voxels.astype(header.dtype, copy=False)
    if header.is_scaled:
        slope, offset = header.scaling
        voxels = voxels.astype(header.final)
        voxels *= slope
        voxels += offset
    voxels, colours = _arranged(header, voxels)
    return Raster(voxels, *grid, colours=colours)


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take once they are read, as its header alone says.

    Raises:
        UserError: the header cannot be read.
    """
    header, _ = _read_header(path, Content(_files(path)[0]))
    return math.prod(header.shape) * header.components * header.final.itemsize


def other_half(path: Path) -> Path | None:
    """Return the file that belongs to a header's, or to that of its voxels; None where it is not there."""
    name = path.name.lower()
    suffix = next((suffix for suffix in (HEADER_SUFFIX, *VOXEL_SUFFIXES) if name.endswith(suffix)), "")
    others = VOXEL_SUFFIXES if suffix == HEADER_SUFFIX else (HEADER_SUFFIX,) if suffix else ()
    stem = path.name[: len(path.name) - len(suffix)]
    names = [stem + case(other) for other in others for case in (str.lower, str.upper)]
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _files(path: Path) -> tuple[Path, Path]:
    """Return the file of the header and that of the voxels, which may be the same."""
    other = other_half(path)
    if other is None:
        return path, path
    return (path, other) if path.name.lower().endswith(HEADER_SUFFIX) else (other, path)


def _read_header(path: Path, content: Content) -> tuple[_Header, int]:
    """Return the header, and how many bytes of the content it took."""
    head = content.read(SIZES[0])
    order = next((o for o in "<>" if len(head) == SIZES[0] and struct.unpack_from(o + "i", head)[0] in SIZES), None)
    if order is None:
        raise _no_nifti(path)
    version = SIZES.index(struct.unpack_from(order + "i", head)[0])
    head += content.read(SIZES[version] - SIZES[0])
    if len(head) < SIZES[version]:
        raise _no_nifti(path)
    fields = {
        name: struct.unpack_from(order + places[version][1], head, places[version][0])
        for name, places in PLACES.items()
    }
    (mark,), is_half = fields["mark"], other_half(path) is not None
    if not is_half and mark not in ONE_FILE:
        raise _no_nifti(path)
    if is_half and mark not in TWO_FILES:  # Analyze, which has other things there
        fields |= {"scaling": (1.0, 0.0), "units": (0,), "codes": (0, 0)}
    first = 0 if is_half else SIZES[version] + 4
    return _header(path, order, fields, first), len(head)


def _header(path: Path, order: str, fields: dict[str, tuple], first: int) -> _Header:
    """Return the header of what was unpacked; the voxels begin at `first` or later."""
    axes, *sizes = fields["sizes"]
    (kind,), (start,), (slope, offset) = fields["kind"], fields["start"], fields["scaling"]
    if not 1 <= axes <= MOST_AXES or min(sizes[: min(axes, SPACE)]) < 1 or min(sizes[:axes]) < 0:
        raise UserError(f"{path} has sizes of {sizes[: min(max(axes, 1), MOST_AXES)]}; mend its header")
    if not (math.isfinite(start) and start == int(start) and (start == 0 or start >= first)):
        raise UserError(f"{path} has its voxels at byte {start:g}, which cannot be; mend its header")
    if kind not in KINDS:
        raise UserError(
            f"{path} has voxels of NIfTI's type {kind}; only real numbers of 8 to 64 bits and colours can be read"
        )
    if slope and math.isfinite(slope) and not math.isfinite(offset):
        raise UserError(f"{path} adds {offset} to every voxel (scl_inter); mend its header")
    name, components = KINDS[kind]
    shape = tuple(max(size, 1) for size in sizes[:axes]) + (1,) * (MOST_AXES - axes)
    unit_mm = UNITS_MM.get(fields["units"][0] & 7, 1.0)
    sform = np.reshape(fields["sform"], (3, 4))
    grid = (fields["spacing"], unit_mm, fields["codes"], fields["qform"], sform)
    kind = np.dtype(name), components
    return _Header(path, order, axes, shape, *kind, max(int(start), first), (slope, offset), *grid)


def _arranged(header: _Header, voxels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return voxels (frames, z, y, x, components), and whether these are colours."""
    space = header.shape[:SPACE][::-1]
    fifth = header.shape[FIFTH]
    if header.components == 1 and are_colours(voxels.dtype, fifth):  # as ITK writes colours
        by_fifth = voxels.reshape(-1, fifth, header.shape[FOURTH], *space)
        return np.moveaxis(by_fifth, 1, -1).reshape(-1, *space, fifth), True
    return voxels.reshape(-1, *space, header.components), header.components > 1


def _grid(header: _Header) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], bool]:
    """Return spacing and origin in mm, direction (LPS), and whether it is a flat picture.

    Raises:
        UserError: the header gives none, or two that differ.
    """
    spacing = _spacing(header)
    ways = [way for way in (_by_sform(header), _by_qform(header, spacing)) if way is not None]
    matrix, origin = ways[0] if ways else (np.diag(spacing), np.zeros(3))
    left, _, right = np.linalg.svd(matrix / spacing)
    direction = left @ right  # the nearest with axes at right angles
    ways.append((direction * spacing, origin))
    corners = np.array(list(product(*((0, size - 1) for size in header.shape[:SPACE]))), float).T
    places = np.array([m @ corners + np.reshape(o, (3, 1)) for m, o in ways])
    if np.abs(places - places[0]).max() > TOLERANCE * spacing.min():
        raise UserError(
            f"{header.path} places its voxels in two ways (sform and qform or spacing disagree, or axes are not at "
            "right angles); mend its header or resample it"
        )
    spacing, origin = spacing * header.unit_mm, origin * header.unit_mm
    picture = header.axes < SPACE or (header.axes > FIFTH and header.shape[SPACE - 1 : FIFTH] == (1, 1))
    flat = picture and abs(np.linalg.det(direction[:2, :2])) > FLAT
    if flat:
        spacing[2], origin[2], direction[2], direction[:, 2] = 1, 0, (0, 0, 1), (0, 0, 1)
    return tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist()), flat


def _by_sform(header: _Header) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the matrix (3, 3) from voxels to LPS and the origin, in the header's unit; None where it has no sform.
    An empty one is none, if there is a qform."""
    if header.codes[1] <= 0 or (header.codes[0] > 0 and not header.sform.any()):
        return None
    if not (np.abs(header.sform) < LARGEST).all() or is_degenerate(header.sform[:, :3]):
        raise UserError(f"{header.path} has a direction matrix (sform) that cannot be inverted; mend its header")
    return RAS_TO_LPS @ header.sform[:, :3], RAS_TO_LPS @ header.sform[:, 3]


def _by_qform(header: _Header, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the same of the qform: a quaternion, whose first number is left out, and the origin."""
    if header.codes[0] <= 0:
        return None
    if not (np.abs(header.qform) < LARGEST).all():
        raise UserError(f"{header.path} has a place (qform) that is no number; mend its header")
    b, c, d, *origin = header.qform
    square = 1 - b * b - c * c - d * d
    a = math.sqrt(square) if square > ROUNDING else 0.0
    a, b, c, d = np.array([a, b, c, d]) / math.hypot(a, b, c, d)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    steps = spacing * (1, 1, -1 if header.spacing[0] < 0 else 1)
    return RAS_TO_LPS @ rotation * steps, RAS_TO_LPS @ origin


def _spacing(header: _Header) -> np.ndarray:
    """Return the spacing (x, y, z) in the header's unit, 1 along axes that do not count."""
    counted = min(header.axes, SPACE)
    spacing = np.abs(header.spacing[1 : counted + 1])
    if not ((spacing < LARGEST) & (spacing > 1 / LARGEST)).all():
        words = " × ".join(f"{value:g}" for value in spacing)
        raise UserError(
            f"{header.path} has a spacing of {words} mm; every spacing must be above zero, mend its header"
        )
    return np.append(spacing, np.ones(SPACE - counted))


def _no_nifti(path: Path) -> UserError:
    return UserError(f"{path} cannot be read; it may be damaged or not what its name says")
