"""Run-length encoded pixels of DICOM (PS3.5, annex G): proved before they are decoded.

The library that decodes them waits for ever for pixels that do not come.
"""

import struct
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pydicom

from engine.files import Bounded

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = 0xFFFFFFFF
HEADER_BYTES, MOST_SEGMENTS = 64, 15


def check_run_lengths(path: Path, pixels: int) -> None:
    """Refuse pixel data that end before the last pixel.

    Args:
        pixels: of one frame.

    Raises:
        ValueError, struct.error: they do, or are of another form.
    """
    with Bounded(path) as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])  # it stands at the pixels then
        _check(file, file.size, pixels)


def _check(file: BinaryIO, size: int, pixels: int) -> None:
    element = file.read(12)
    if len(element) < 12 or struct.unpack("<I", element[8:])[0] != UNDEFINED:
        raise ValueError("run-length encoded pixels without fragments")
    _fragment(file, size)  # the table of offsets
    while (fragment := _fragment(file, size)) is not None:
        count, *offsets = struct.unpack_from("<16I", fragment.ljust(HEADER_BYTES, b"\0"))
        if not 1 <= count <= MOST_SEGMENTS:
            raise ValueError(f"{count} segments of run lengths")
        places = [*offsets[:count], len(fragment)]
        for start, end in pairwise(places):
            if not HEADER_BYTES <= start < end <= len(fragment) or not _reaches(fragment[start:end], pixels):
                raise ValueError("run lengths that end before the last pixel")


def _fragment(file: BinaryIO, size: int) -> bytes | None:
    """Return the next fragment; None after the last one."""
    tag, length = struct.unpack("<4sI", file.read(8))
    if tag == DELIMITER:
        return None
    if tag != ITEM or length > size:
        raise ValueError("pixel data without an end")
    fragment = file.read(length)
    if len(fragment) < length:
        raise ValueError("pixel data without an end")
    return fragment


def _reaches(segment: bytes, pixels: int) -> bool:
    """Return whether run lengths give so many bytes, all of which are there."""
    place, left = 0, pixels
    while left > 0 and place < len(segment):
        code = segment[place]
        if code < 128:
            left, place = left - code - 1, place + code + 2
        elif code > 128:
            left, place = left - 257 + code, place + 2
        else:
            place += 1
    return left <= 0 and place <= len(segment)
