"""Mosaics: all slices of a volume as tiles of one picture, as MR scanners of Siemens and United Imaging write them.

Private attributes say where the tiles lie: Siemens' CSA header, or the protocol within it, which is text, and
United Imaging's sequence of frames. Their forms are public: nipy.org/nibabel/dicom/dicom_mosaic.html, and there
siemens_csa.html, and the page on UIH of dcm2niix.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from engine.errors import UserError
from engine.imaging.dicom.files import read_header

MARKS = ("MOSAIC", "VFRAME")  # in ImageType
SIEMENS_COUNT = (0x0019, "SIEMENS MR HEADER", 0x0A)
SIEMENS_IMAGE, SIEMENS_SERIES = (0x0029, "SIEMENS CSA HEADER", 0x10), (0x0029, "SIEMENS CSA HEADER", 0x20)
SIEMENS_XA_PROTOCOL = (0x0021, "SIEMENS MR SDS 01", 0x19)
UNITED_COUNT, UNITED_FRAMES = (0x0065, "Image Private Header", 0x50), (0x0065, "Image Private Header", 0x51)
COUNT_TAGS = (0x00190010, 0x0019100A, 0x00650010, 0x00651050)  # where they mostly are; with their private creators
SLICES = re.compile(rb"sSliceArray\.lSize[ \t]*=[ \t]*(\d{1,4})\s")
PLACE = re.compile(rb"sSliceArray\.asSlice\[(\d{1,4})\]\.sPosition\.d(Sag|Cor|Tra)[ \t]*=[ \t]*([-+.\deE]{1,40})")
AXES = (b"Sag", b"Cor", b"Tra")  # to the left, to the back, to the head
PARALLEL, ALIGNED_MM = 1e-3, 0.1
MOST_VALUES = 100  # of an entry of a CSA header
REMEDY = "export it again with its private attributes, or as single slices"


@dataclass(frozen=True)
class Tile:
    """A slice in a mosaic: its number, from 0, its pixels, and where the first of them lies in the patient."""

    number: int
    rows: slice
    columns: slice
    position_mm: np.ndarray


def tiles_of(file: Path, header: Dataset) -> list[Tile]:
    """Return the slices of a mosaic, in the order of its tiles; none for any other image.

    Args:
        header: with ImageType and `COUNT_TAGS`, where the file has them.

    Raises:
        UserError: it is a mosaic, and does not say of how many slices, or where they lie.
        one of `UNREADABLE`: the header is damaged.
    """
    marked = any(mark in (header.get("ImageType") or ()) for mark in MARKS)
    if not marked and not any(tag in header for tag in COUNT_TAGS[1::2]):
        return []
    whole = read_header(file, force=True)
    frames = _private(whole, UNITED_FRAMES)
    frames = list(frames) if isinstance(frames, pydicom.Sequence) else []
    count = len(frames) or _count(whole)
    if count == 1 or not (count or marked) or not _is_larger_than_acquired(whole):
        return []
    if not count:
        raise UserError(f"{file.name} is a mosaic that does not say of how many slices; {REMEDY}")
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across) if _private(whole, UNITED_COUNT) or frames else across
    if whole.Rows % down or whole.Columns % across:
        raise UserError(f"{file.name} is a mosaic of {count} slices that does not part into tiles; get it again")
    rows, columns = whole.Rows // down, whole.Columns // across
    places = _places_of_frames(frames) if frames else _places(whole, count, rows, columns)
    if places is None:
        raise UserError(f"{file.name} is a mosaic of {count} slices that does not say where they lie; {REMEDY}")
    corners = [(rows * (number // across), columns * (number % across)) for number in range(count)]
    return [
        Tile(number, slice(top, top + rows), slice(left, left + columns), place)
        for number, ((top, left), place) in enumerate(zip(corners, places, strict=True))
    ]


def _count(whole: Dataset) -> int:
    """Return the number of slices; 0 where nothing says it."""
    for value in (_private(whole, SIEMENS_COUNT), _private(whole, UNITED_COUNT)):
        if value:
            digits = isinstance(value, bytes) and value.strip(b" \0").isdigit()
            return int.from_bytes(value, "little") if isinstance(value, bytes) and not digits else int(value)
    return int((_csa(whole, b"NumberOfImagesInMosaic", 1) or [0])[0])


def _is_larger_than_acquired(whole: Dataset) -> bool:
    """Return whether an image may hold several slices: single ones that were cut out of a mosaic keep its marks."""
    acquired = max(_numbers(whole.get("AcquisitionMatrix")) or [0])
    return max(whole.Rows, whole.Columns) >= 2 * acquired


def _places_of_frames(frames: Sequence[Dataset]) -> list[np.ndarray] | None:
    places = [_numbers(frame.get("ImagePositionPatient")) for frame in frames]
    return [np.array(place) for place in places] if all(len(place) == 3 for place in places) else None


def _places(whole: Dataset, count: int, rows: int, columns: int) -> list[np.ndarray] | None:
    """Return where the first pixels of Siemens' tiles lie: the mosaic as a whole is placed as if it were the first
    slice with a wide margin around it."""
    place, spacing = _numbers(whole.get("ImagePositionPatient")), _numbers(whole.get("PixelSpacing"))
    orientation = _numbers(whole.get("ImageOrientationPatient"))
    if (len(place), len(orientation), len(spacing)) != (3, 6, 2):
        return None
    right, down = np.array(orientation[:3]) * spacing[1], np.array(orientation[3:]) * spacing[0]
    first = place + right * (whole.Columns - columns) / 2 + down * (whole.Rows - rows) / 2
    normal = np.cross(right, down) / np.linalg.norm(np.cross(right, down))
    step = _step_of_csa(whole)
    if step is None:
        step = _step_of_protocol(whole, count, first + right * columns / 2 + down * rows / 2)
    distance = 0.0 if step is None else float(np.linalg.norm(step))
    if not distance or abs(step @ normal) < (1 - PARALLEL) * distance:
        return None
    step = np.copysign(distance, step @ normal) * normal
    return [first + number * step for number in range(count)]


def _step_of_csa(whole: Dataset) -> np.ndarray | None:
    """Return the way from one slice to the next in mm, by the CSA header."""
    normal = _csa(whole, b"SliceNormalVector", 3)
    distance = _numbers(whole.get("SpacingBetweenSlices")) or _csa(whole, b"SpacingBetweenSlices", 1)
    return np.array(normal) * distance[0] if normal and distance else None


def _step_of_protocol(whole: Dataset, count: int, center: np.ndarray) -> np.ndarray | None:
    """Return the way from one slice to the next in mm, by the centers of all slices in the protocol, which begins
    with the first slice of the mosaic or with the last.

    Args:
        center: of the first slice.
    """
    text = _private(whole, SIEMENS_SERIES) or _private(whole, SIEMENS_XA_PROTOCOL)
    slices = SLICES.search(text) if isinstance(text, bytes) else None
    if slices is None or int(slices[1]) != count:
        return None
    centers = np.zeros((count, 3))  # what is 0 is left out
    for number, axis, value in PLACE.findall(text):
        if int(number) < count:
            centers[int(number), AXES.index(axis)] = float(value)
    begins = [np.linalg.norm(end - center) <= ALIGNED_MM for end in (centers[0], centers[-1])]
    even = np.abs(centers - np.linspace(centers[0], centers[-1], count)).max() <= ALIGNED_MM
    if not any(begins) or not even:
        return None
    return (centers[-1] - centers[0]) / (count - 1) * (1 if begins[0] else -1)


def _csa(whole: Dataset, name: bytes, count: int) -> list[float] | None:
    """Return the numbers of an entry of the CSA header; None for no such entry, or another count."""
    raw = _private(whole, SIEMENS_IMAGE)
    at = raw.find(name + b"\0") if isinstance(raw, bytes) else -1
    if at < 0:
        return None
    items = min(struct.unpack_from("<i4s3i", raw, at + 64)[3], MOST_VALUES)
    at += 84
    values = []
    for _ in range(items):
        length = max(struct.unpack_from("<4i", raw, at)[1], 0)
        text = raw[at + 16 : at + 16 + length].partition(b"\0")[0].strip()
        values += [float(text)] if text else []
        at += 16 + length + -length % 4
    return values if len(values) == count else None


def _private(whole: Dataset, place: tuple[int, str, int]) -> object:
    group, creator, element = place
    try:
        return whole.private_block(group, creator)[element].value
    except KeyError:
        return None


def _numbers(value: object) -> list[float]:
    return [] if value is None or value == "" else [float(number) for number in np.ravel(value)]
