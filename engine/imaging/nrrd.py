"""Headers of NRRD: proved before SimpleITK reads them, and that all voxels are there."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.imaging.headers import (
    DIMENSIONS,
    LONGEST_HEADER,
    check_lines,
    check_numbers,
    check_values,
    file_names,
    no_header,
    split_header,
    whole_numbers,
)
from engine.imaging.whole import Content

END = re.compile(rb"\r?\n\r?\n")
BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
LEAST = {"raw": 1, "gz": 1, "gzip": 1, "hex": 2}  # bytes of a file, once it is unpacked, for one of the voxels'
RAW, GZIP, HEX = ("raw",), ("gz", "gzip"), ("hex",)
NUMBERS = ("space directions", "space origin", "measurement frame", "spacings", "thicknesses")
SPACING = ("spacings", "space directions")
NO_NUMBER = ("none", "nan")  # for an axis that is none in space
SIDE_BY_SIDE, MATRIX = "list", "matrix"
LIST = "LIST"


@dataclass(frozen=True)
class Header:
    """What matters of a header.

    Attributes:
        fields: by names in small letters.
        files: those of the voxels, in their order; the header's own where they follow it at `start`.
        needed: bytes of the voxels in each of these once they are unpacked; 0 where that cannot be known.
    """

    path: Path
    fields: dict[str, str]
    files: tuple[Path, ...]
    start: int
    needed: int

    @property
    def is_list(self) -> bool:
        """Whether an axis holds images side by side, and not the colours of a voxel."""
        return SIDE_BY_SIDE in self.fields.get("kinds", "").lower().split()

    @property
    def says_spacing(self) -> bool:
        return not self.fields.keys().isdisjoint(SPACING)

    @property
    def encoding(self) -> str:
        return self.fields.get("encoding", "").lower()


def read_header(path: Path) -> Header:
    """Read a header that SimpleITK can bear, and whose files can hold the voxels that it promises.

    Raises:
        UserError: it is too long, not of numbers where it must be, or promises more.
    """
    head, start = split_header(path, END)
    lines = head.decode("latin-1").splitlines()
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise no_header(path, "NRRD")
    check_lines(path, [line for line in lines if ":=" not in line])
    pairs = [line.split(": ", 1) for line in lines[1:] if ": " in line and ":=" not in line and line[0] != "#"]
    fields = {name.strip().lower(): value.strip() for name, value in pairs}
    check_values(path, fields)
    axes = whole_numbers(path, "dimension", fields.get("dimension", ""), 1)[0]
    if axes not in DIMENSIONS:
        raise UserError(f"{path} has {axes} dimensions; an image has {DIMENSIONS[0]} to {DIMENSIONS[-1]}")
    if MATRIX in fields.get("kinds", "").lower():
        kinds = fields["kinds"]
        raise UserError(f"{path} holds a matrix a voxel ({kinds}); only numbers and colours can be segmented")
    for name in NUMBERS:
        words = re.findall(r"[^\s(),]+", fields.get(name, ""))
        check_numbers(path, name, [word for word in words if word.lower() not in NO_NUMBER])
    sizes = whole_numbers(path, "sizes", fields.get("sizes", ""), axes)
    files = _files(path, fields, lines)
    needed = math.prod(sizes) * BYTES.get(fields.get("type", "").lower(), 0) // len(files)
    header = Header(path, fields, files, start, needed)
    for file in files:
        _content(header, file).check_holds(needed * LEAST.get(header.encoding, 0))
    return header


def check_voxels(header: Header) -> None:
    """Refuse an NRRD whose voxels are damaged, or not all there. Text is counted by SimpleITK.

    Raises:
        UserError: they are.
    """
    skip = _skipped(header, "byte skip", lowest=-1)
    for file in header.files:
        if header.encoding in (*RAW, *GZIP):
            _content(header, file).prove(max(skip, 0) + header.needed)


def _files(path: Path, fields: dict[str, str], lines: Sequence[str]) -> tuple[Path, ...]:
    place = fields.get("data file", fields.get("datafile"))
    if place is None:
        return (path,)
    if place.split()[:1] == [LIST]:
        after = next(i for i, line in enumerate(lines, 1) if re.match(r"data ?file:", line, re.IGNORECASE))
        names = [line.strip() for line in lines[after:] if line.strip()]
    else:
        names = file_names(path, place) if "%" in place else [place]
    if not names:
        raise UserError(f"{path} names no files for its voxels; mend it")
    return tuple(path.parent / name for name in names)


def _content(header: Header, file: Path) -> Content:
    """Return the content of one of the files, from its voxels on."""
    start, lines = header.start if file == header.path else 0, _skipped(header, "line skip")
    if lines and file.is_file():
        with file.open("rb") as opened:
            opened.seek(start)
            while lines and opened.readline(LONGEST_HEADER):
                lines -= 1
            start = opened.tell()
    return Content(file, start, packed=header.encoding in GZIP)


def _skipped(header: Header, name: str, lowest: int = 0) -> int:
    text = header.fields.get(name, header.fields.get(name.replace(" ", ""), "0"))
    count = whole_numbers(header.path, name, text, 1, lowest)[0]
    if count > LONGEST_HEADER:
        raise UserError(f"{header.path} has a {name} of {count}; mend its header")
    return count
