"""MetaImage, in one file or with its voxels in others: header to grid, bytes to voxels.

Its voxels are read here, as the library that SimpleITK has for it calls voxels read that it never found, and leaves
in their place what the memory held.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import UserError
from engine.imaging.headers import (
    DIMENSIONS,
    check_lines,
    check_numbers,
    check_values,
    file_names,
    no_header,
    split_header,
    whole_numbers,
)
from engine.imaging.raster import Raster, are_colours
from engine.imaging.whole import Content, cut_off

END = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|$)", re.MULTILINE)
MOST_CHANNELS = 1024
KINDS = {
    **{"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"},
    **{"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"},
}
DIRECTION = ("TransformMatrix", "Rotation", "Orientation")  # each is the name that some writers use
ORIGIN = ("Offset", "Position", "Origin")
SPACING = ("ElementSpacing", "ElementSize")
LOCAL, LIST = "LOCAL", "LIST"


@dataclass(frozen=True)
class _Header:
    """What a header says.

    Attributes:
        shape: sizes of the axes, the fastest first.
        files: those of the voxels, in their order; the header's own where they follow it at `start`.
        grid: spacing, origin in mm and direction (LPS) of three axes.
    """

    path: Path
    fields: dict[str, str]
    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype
    files: tuple[Path, ...]
    start: int
    grid: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]

    @property
    def count(self) -> int:
        return math.prod(self.shape) * self.channels

    @property
    def bytes_each(self) -> int:
        """What each of the files must hold, once it is unpacked."""
        return self.count // len(self.files) * self.dtype.itemsize


def read_metaimage(path: Path) -> Raster:
    """Read a file, and those of its voxels that it names.

    Raises:
        UserError: it or one of these is damaged or ends too early, or the header contradicts itself.
    """
    header = _read_header(path)
    parts = [_voxels(header, file, header.count // len(header.files)) for file in header.files]
    voxels = (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(header.dtype, copy=False)
    space = (*header.shape, 1)[:3][::-1]
    voxels = voxels.reshape(-1, *space, header.channels)
    flat = len(header.shape) < DIMENSIONS[1]
    known = not header.fields.keys().isdisjoint(SPACING)
    return Raster(voxels, *header.grid, flat, are_colours(header.dtype, header.channels), known)


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take once they are read, as its header alone says.

    Raises:
        UserError: the header cannot be read.
    """
    header = _read_header(path)
    return header.count * header.dtype.itemsize


def _read_header(path: Path) -> _Header:
    head, start = split_header(path, END)
    lines = head.decode("latin-1").splitlines()
    check_lines(path, lines)
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    fields = {name.strip(): value.strip() for name, value in pairs}
    if "NDims" not in fields or not fields.get("ElementDataFile"):
        raise no_header(path, "MetaImage")
    check_values(path, fields)
    axes = whole_numbers(path, "NDims", fields["NDims"], 1)[0]
    if axes not in DIMENSIONS:
        raise UserError(f"{path} has {axes} dimensions; an image has {DIMENSIONS[0]} to {DIMENSIONS[-1]}")
    shape = tuple(whole_numbers(path, "DimSize", fields.get("DimSize", ""), axes))
    channels = whole_numbers(path, "channels", fields.get("ElementNumberOfChannels", "1"), 1)[0]
    if channels > MOST_CHANNELS:
        raise UserError(f"{path} has {channels} numbers a voxel; an image has {MOST_CHANNELS} at most")
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in KINDS:
        raise UserError(f"{path} has voxels of type '{kind[:40]}'; there are {', '.join(KINDS)}")
    files, grid = _files(path, fields, shape, start), _grid(path, fields, len(shape))
    header = _Header(path, fields, shape, channels, np.dtype(KINDS[kind]), files, start, grid)
    for file in files:
        _content(header, file).check_holds(0 if _is_text(header) else header.bytes_each)
    return header


def _files(path: Path, fields: dict[str, str], shape: tuple[int, ...], start: int) -> tuple[Path, ...]:
    """Return the files that hold the voxels.

    Raises:
        UserError: they are too few, or too many.
    """
    place = fields["ElementDataFile"]
    words = place.split()
    axes = len(shape) - 1  # of each of several files
    if place.upper() == LOCAL:
        return (path,)
    if words[0] == LIST:
        axes = whole_numbers(path, "LIST", words[1], 1)[0] if len(words) > 1 else axes
        content = Content(path, start, packed=False).read(path.stat().st_size - start)
        names = [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    elif "%" in place:
        names = file_names(path, place)
    else:
        return (path.parent / place,)
    needed = math.prod(shape[axes:])
    if len(names) != needed:
        raise UserError(
            f"{path} names {len(names)} files for its voxels and needs {needed}; mend it, or get the others"
        )
    return tuple(path.parent / name for name in names)


def _voxels(header: _Header, file: Path, count: int) -> np.ndarray:
    """Return the numbers (count,) that one of the files holds.

    Raises:
        UserError: they are not all there.
    """
    dtype = header.dtype.newbyteorder(">" if _is_true(header, "ByteOrderMSB") else "<")
    skip = whole_numbers(header.path, "HeaderSize", header.fields.get("HeaderSize", "0"), 1, lowest=-1)[0]
    if skip > 0 and file == header.path:
        raise UserError(f"{header.path} has a HeaderSize, which is of other files; take it out of its header")
    content = _content(header, file)
    if _is_text(header):
        return _from_text(file, content, header.dtype, count)
    if skip < 0 and not content.packed:
        skip = content.held - header.bytes_each
    return content.voxels(max(skip, 0), dtype, count)


def _content(header: _Header, file: Path) -> Content:
    """Return the content of one of the files, from its voxels on."""
    return Content(file, header.start if file == header.path else 0, _is_true(header, "CompressedData"))


def _is_text(header: _Header) -> bool:
    return header.fields.get("BinaryData", "").lower() == "false"


def _from_text(file: Path, content: Content, dtype: np.dtype, count: int) -> np.ndarray:
    words = content.read(content.held).split()
    if len(words) < count:
        raise cut_off(file)
    try:
        return np.array(words[:count]).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{file} has voxels that are no numbers ({error}); get it again") from error


def _is_true(header: _Header, ending: str) -> bool:
    return any(name.endswith(ending) and value.lower() == "true" for name, value in header.fields.items())


def _grid(path: Path, fields: dict[str, str], axes: int) -> tuple[tuple[float, ...], ...]:
    """Return spacing and origin in mm, and direction (LPS), of three axes."""
    spacing, origin, direction, size = np.ones(3), np.zeros(3), np.eye(3), min(axes, 3)
    spacing[:size] = _numbers(path, fields, SPACING, np.ones(axes))[:size]
    origin[:size] = _numbers(path, fields, ORIGIN, np.zeros(axes))[:size]
    rows = _numbers(path, fields, DIRECTION, np.eye(axes))  # each is the direction of an axis
    direction[:size, :size] = rows[:size, :size].T
    direction *= np.where(spacing < 0, -1, 1)
    return tuple(np.abs(spacing).tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist())


def _numbers(path: Path, fields: dict[str, str], names: Sequence[str], otherwise: np.ndarray) -> np.ndarray:
    """Return the numbers that stand under one of the names, in the form of those to be taken otherwise."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        return otherwise
    words = fields[name].split()
    if len(words) != otherwise.size:
        raise UserError(f"{path} has a wrong count of numbers in {name}; mend its header")
    check_numbers(path, name, words)
    return np.array(words, float).reshape(otherwise.shape)
