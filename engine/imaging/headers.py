"""Headers that are lines of text (NRRD, MetaImage): proved before SimpleITK reads them.

The libraries under SimpleITK trust such headers: a line that is too long or a number that is too large ends the
process, and memory is taken for any size that is promised.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from engine.errors import UserError

LONGEST_HEADER = 10 << 20  # bytes
LONGEST_LINE, LONGEST_WORD, MOST_WORDS = 1000, 200, 64
DIMENSIONS = range(2, 5)
MOST_CHANNELS = 1024
MOST_PACKED = 1040  # bytes that deflate can make of one
NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
NRRD_LEAST = {
    "raw": 1.0,
    "hex": 2.0,
    "gz": 1 / MOST_PACKED,
    "gzip": 1 / MOST_PACKED,
}  # bytes for one of the voxels'
META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
META_NUMBERS = ("TransformMatrix", "Rotation", "Orientation", "Offset", "Origin", "Position", "CenterOfRotation")
META_NUMBERS += ("ElementSpacing", "ElementSize", "DimSize")
NRRD_NUMBERS = ("space directions", "space origin", "measurement frame", "spacings", "thicknesses")
NO_NUMBER = ("none", "nan")  # for an axis of NRRD that is none in space
LARGEST = 1e18  # of the numbers of a geometry; SimpleITK computes for ever with infinite ones
NRRD_END, META_END = re.compile(rb"\r?\n\r?\n"), re.compile(rb"ElementDataFile *=[^\n]*(\n|$)")


def names_other_files(path: Path) -> bool:
    """Whether a file is a header that says where its voxels are, which may be anywhere. Its suffix does not tell:
    the libraries follow any NRRD or MetaImage.

    Raises:
        UserError: it cannot be read, or its header has no end.
    """
    if path.name.lower().endswith((".nrrd", ".nhdr")):
        head, _ = _head(path, NRRD_END)
        return re.search(rb"^[ \t]*data ?file[ \t]*:", head, re.IGNORECASE | re.MULTILINE) is not None
    if path.name.lower().endswith((".mha", ".mhd")):
        head, _ = _head(path, META_END)
        places = re.findall(rb"^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)", head, re.IGNORECASE | re.MULTILINE)
        return any(place.strip().upper() != b"LOCAL" for place in places)
    return False


def says_spacing(path: Path) -> bool:
    """Whether an NRRD or a MetaImage says how far its voxels lie apart; SimpleITK takes 1 mm where it does not.

    Raises:
        UserError: it cannot be read, or its header has no end.
    """
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    head, _ = _head(path, NRRD_END if is_nrrd else META_END)
    names = rb"spacings|space directions" if is_nrrd else rb"ElementSpacing|ElementSize"
    return re.search(rb"^[ \t]*(" + names + rb")[ \t]*[:=]", head, re.IGNORECASE | re.MULTILINE) is not None


def check_nrrd(path: Path) -> None:
    """Refuse an NRRD whose header is too long, not of numbers where it must be, or promises more voxels than its
    file can hold.

    Raises:
        UserError: it does, or cannot be read.
    """
    head, start = _head(path, NRRD_END)
    lines = head.decode("latin-1").splitlines()
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise _no_header(path, "NRRD")
    _check_lines(path, [line for line in lines if ":=" not in line])
    pairs = [line.split(": ", 1) for line in lines[1:] if ": " in line and ":=" not in line and line[0] != "#"]
    fields = {name.strip().lower(): value.strip() for name, value in pairs}
    _check_values(path, fields)
    axes = _whole_numbers(path, "dimension", fields.get("dimension", ""), 1)[0]
    if axes not in DIMENSIONS:
        raise UserError(f"{path} has {axes} dimensions; an image has {DIMENSIONS[0]} to {DIMENSIONS[-1]}")
    for name in NRRD_NUMBERS:
        words = re.findall(r"[^\s(),]+", fields.get(name, ""))
        _check_numbers(path, name, [word for word in words if word.lower() not in NO_NUMBER])
    sizes = _whole_numbers(path, "sizes", fields.get("sizes", ""), axes)
    needed = math.prod(sizes) * NRRD_BYTES.get(fields.get("type", "").lower(), 1)
    detached = fields.get("data file", fields.get("datafile"))
    if detached is not None and "%" in detached and not re.fullmatch(r"[^%]*%0?\d?d( -?\d+){3,4}", detached):
        raise UserError(f"{path} names the files of its voxels by '{detached}', which is no pattern; mend it")
    held = path.stat().st_size - start if detached is None else _size_beside(path, detached)
    _check_held(path, held, needed * NRRD_LEAST.get(fields.get("encoding", "").lower(), 0.0))


def check_metaimage(path: Path) -> None:
    """Refuse a MetaImage for the same reasons (see `check_nrrd`)."""
    head, start = _head(path, META_END)
    lines = head.decode("latin-1").splitlines()
    _check_lines(path, lines)
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    fields = {name.strip(): value.strip() for name, value in pairs}
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise _no_header(path, "MetaImage")
    _check_values(path, fields)
    axes = _whole_numbers(path, "NDims", fields["NDims"], 1)[0]
    if axes not in DIMENSIONS:
        raise UserError(f"{path} has {axes} dimensions; an image has {DIMENSIONS[0]} to {DIMENSIONS[-1]}")
    sizes = _whole_numbers(path, "DimSize", fields.get("DimSize", ""), axes)
    channels = _whole_numbers(path, "channels", fields.get("ElementNumberOfChannels", "1"), 1)[0]
    if channels > MOST_CHANNELS:
        raise UserError(f"{path} has {channels} numbers a voxel; an image has {MOST_CHANNELS} at most")
    for name in META_NUMBERS:
        words = fields.get(name, "").split()
        if len(words) not in (0, 1, axes, axes * axes):
            raise UserError(f"{path} has a wrong count of numbers in {name}; mend its header")
        _check_numbers(path, name, words)
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY").replace("UCHAR", "CHAR")
    needed = math.prod(sizes) * channels * META_BYTES.get(kind.removeprefix("U"), 1)
    place = fields["ElementDataFile"]
    if place.split()[:1] == ["LIST"] or "%" in place:
        return  # several files; each is read by its own header's size
    held = path.stat().st_size - start if place.upper() == "LOCAL" else _size_beside(path, place)
    packed = fields.get("CompressedData", "").lower() == "true"
    _check_held(path, held, needed / MOST_PACKED if packed else needed)


def _head(path: Path, end: re.Pattern) -> tuple[bytes, int]:
    """Return the header with its end, and where the voxels begin; all of a file that is header alone."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_HEADER)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    match = end.search(content)
    if match is None and len(content) == LONGEST_HEADER:
        raise UserError(f"{path} has no end of its header; it may be damaged or not what its name says")
    place = match.end() if match else len(content)
    return content[:place], place


def _check_lines(path: Path, lines: Sequence[str]) -> None:
    longest = max(lines, key=len, default="")
    if len(longest) > LONGEST_LINE:
        raise UserError(f"{path} has a line in its header that is too long ({longest[:40]} …); mend it")


def _check_values(path: Path, fields: dict[str, str]) -> None:
    for name, value in fields.items():
        words = value.split()
        longest = max(map(len, words), default=0)
        if name == "content":  # words for people
            continue
        if len(words) > MOST_WORDS or (longest > LONGEST_WORD and "file" not in name.lower()):
            raise UserError(f"{path} has a word in its header that is too long ({name[:40]}); mend it")


def _check_numbers(path: Path, name: str, words: Sequence[str]) -> None:
    for word in words:
        try:
            valid = abs(float(word)) < LARGEST
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"{path} has '{word[:40]}' among the numbers of its {name}; mend its header")


def _whole_numbers(path: Path, name: str, text: str, count: int) -> list[int]:
    words = text.split()
    if len(words) != count or not all(re.fullmatch(r"\+?0*[1-9]\d{0,17}", word) for word in words):
        raise UserError(f"{path} has '{text[:60]}' for its {name}; it must be {count} whole numbers above zero")
    return [int(word) for word in words]


def _size_beside(path: Path, name: str) -> int | None:
    """Return the bytes of the file that a header names; None where it is none, which reading it will say."""
    try:
        return (path.parent / name).stat().st_size
    except (OSError, ValueError):
        return None


def _check_held(path: Path, held: int | None, needed: float) -> None:
    if held is not None and held < math.floor(needed):
        raise UserError(f"{path} ends before its last voxel; it is damaged, get it again")


def _no_header(path: Path, kind: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({kind} starts otherwise); it may be damaged or not what its name says"
    )
