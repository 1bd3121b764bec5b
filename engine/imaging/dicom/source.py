"""What DICOM results take from the series that they were found in, and what they have in common."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import RAISE
from pydicom.valuerep import validate_value

from engine.errors import UserError
from engine.imaging.dicom.files import read_header
from engine.imaging.dicom.resampling import covers_slices, on_source_slices
from engine.imaging.volumes.segments import Algorithm, Segment
from engine.imaging.volumes.volume import Volume

MAKER = "VLSMSegmenter"
LONGEST_BYTES = 64  # of a short text (VR LO); the standard counts characters, some receivers bytes
SERIES_NUMBERS = 1000  # on top of the source's, so that the result is listed after all scans
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
# of type 2: they must be there, and may be empty
MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# Anonymised files hold asterisks where a date, an age or a sex stood: what is no valid value of these is left out.
DATES, PATIENT, OF_PATIENT = ("DA", "DT", "TM"), 0x0010, ("AS", "CS", "DS", "IS")
SEXES = ("M", "F", "O")
TEXTS = ("AE", "AS", "CS", "DA", "DT", "IS", "LO", "PN", "SH", "TM", "UI")
PLACE_MM = 0.1  # how far a slice may lie from the grid, which evens out what positions are rounded to
OTHERWISE = "write .seg.nrrd instead"


def voxel_of(volume: Volume) -> Segment:
    """Return a segment of a single voxel, to try whether anything can be written of a volume."""
    voxel = np.zeros(volume.shape, bool)
    voxel[0, 0, 0] = True
    return Segment("voxel", voxel, (1, 1, 1), algorithm=Algorithm("none", "0", "0"))


def check_found(path: Path, segments: Sequence[Segment]) -> None:
    """Refuse a segment that does not say what found it."""
    nameless = [segment.name for segment in segments if segment.algorithm is None]
    if nameless:
        raise UserError(f"{path} must say what found '{nameless[0]}'; give the segment its algorithm")


def headers_of(path: Path, volume: Volume) -> list[pydicom.Dataset]:
    """Return the headers of the source's files, once they are proved to say who and where they are."""
    if not volume.sources:
        raise UserError(
            f"{path} is DICOM, which refers to the slices of a DICOM series, and {volume.name} is none; {OTHERWISE}"
        )
    try:
        headers = [read_header(file, force=True) for file in volume.sources]
    except OSError as error:
        raise UserError(
            f"the files of {volume.name}, to which {path} would refer, are gone; {OTHERWISE}"
        ) from error
    lacking = [name for name in IDENTITY if not all(header.get(name) for header in headers)]
    if lacking:
        raise UserError(f"{volume.name} lacks {', '.join(lacking)}, to which {path} would refer; {OTHERWISE}")
    spaces = {(header.StudyInstanceUID, header.get("FrameOfReferenceUID") or "") for header in headers}
    if volume.shape[0] > 1 and (len(spaces) > 1 or "" in spaces.pop()):
        raise UserError(f"{volume.name} has no frame of reference common to all slices, for {path}; {OTHERWISE}")
    return headers


def to_frames(headers: list[pydicom.Dataset], volume: Volume) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes a mask (z, y, x) of the volume to (frames, rows, columns), in the order of the files.

    Raises:
        UserError: the frames have no place, or are not the slices that the volume was made of.
    """
    if volume.stack and any(slice_.tile for slice_ in volume.stack.slices):
        raise UserError(f"{volume.name} is a mosaic, to whose slices no DICOM result can refer; {OTHERWISE}")
    places = _places(headers, volume)
    if volume.shape[0] == len(places) == 1:
        return lambda mask: mask
    positions = np.array([place.get("ImagePositionPatient") for place in places], float)
    known = volume.stack.positions_mm if volume.stack else np.empty((0, 3))
    if len(known) == len(positions):
        away_mm = np.linalg.norm(positions[:, None] - known, axis=2)
        order = away_mm.argmin(axis=1)
        unchanged = len(set(order)) == len(known) and away_mm.min(axis=1).max() <= PLACE_MM
        if unchanged and _lies_on(known, volume):
            return lambda mask: mask[order]
        if unchanged and covers_slices(volume):
            return lambda mask: on_source_slices(mask, volume)[order]
    raise UserError(
        f"{volume.name} does not lie on the slices of its files: it was put onto another grid, or they were "
        f"changed since it was read; {OTHERWISE}"
    )


def _lies_on(positions_mm: np.ndarray, volume: Volume) -> bool:
    steps_mm = np.outer(np.arange(len(volume.voxels)), volume.spacing_mm[2] * volume.direction_matrix[:, 2])
    return (
        len(steps_mm) == len(positions_mm) and np.abs(volume.origin_mm + steps_mm - positions_mm).max() <= PLACE_MM
    )


def _places(headers: list[pydicom.Dataset], volume: Volume) -> list[pydicom.Dataset]:
    """Return for each source frame what holds its position."""
    frames = int(headers[0].get("NumberOfFrames") or 1)
    if len(headers) > 1 or frames == 1:
        return headers
    groups = headers[0].get("PerFrameFunctionalGroupsSequence") or []
    places = [group.PlanePositionSequence[0] for group in groups if group.get("PlanePositionSequence")]
    if not (len(places) == frames and volume.stack and len(volume.stack.slices) == frames):
        raise UserError(
            f"{volume.name} is one of {frames} frames without a place each, or of several volumes in one file, to "
            f"which no DICOM result can refer; {OTHERWISE}"
        )
    return places


def complete(headers: list[pydicom.Dataset]) -> None:
    """Add to the headers what may be empty, and empty what stands in for anonymised values."""
    for header in headers:
        for element in header:
            unsure = element.VR in DATES or (element.tag.group == PATIENT and element.VR in OF_PATIENT)
            if unsure and not _is_valid(element):
                setattr(header, element.keyword, None)
        if header.get("PatientSex") not in SEXES:
            header.PatientSex = None
        for name in MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)


@contextmanager
def by_the_rules(path: Path, volume: Volume, header: pydicom.Dataset) -> Iterator[None]:
    """Say what is wrong with a source where a library finds that it breaks DICOM's rules."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__  # without its words, which may quote a patient's name
        invalid = ", ".join(e.keyword for e in header if e.keyword and e.VR in TEXTS and not _is_valid(e))
        where = f"{kind}; not valid are {invalid}" if invalid else kind
        raise UserError(
            f"{volume.name} breaks DICOM's rules where {path} needs it ({where}); {OTHERWISE}"
        ) from error


def series_number(header: pydicom.Dataset) -> int:
    """Return the number of a result's series, from the source's."""
    try:
        return SERIES_NUMBERS + int(header.get("SeriesNumber") or 0)
    except ValueError:
        return SERIES_NUMBERS


def _is_valid(element: pydicom.DataElement) -> bool:
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, "" if value is None else str(value), RAISE)
    except ValueError:
        return False
    return True


def identified(segment: Segment) -> pydicom.Sequence:
    """Return what found a segment, as DICOM says it (PS3.3 10.16)."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    algorithm = segment.algorithm
    return AlgorithmIdentificationSequence(
        name=short(algorithm.name),
        family=codes.cid7162.ArtificialIntelligence,
        version=short(algorithm.version),
        source=MAKER,
        parameters={key: clean(value) for key, value in {**segment.tags, "SHA-256": algorithm.sha256}.items()},
    )


def short(text: str) -> str:
    """Return text that fits into a short value (VR LO)."""
    text = clean(text)
    if len(text.encode()) <= LONGEST_BYTES:
        return text
    return text.encode()[: LONGEST_BYTES - 3].decode(errors="ignore") + "..."


def clean(text: str) -> str:
    """Return text without what ends or parts a value in DICOM: control characters and the backslash."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("\\", "/")).split())
