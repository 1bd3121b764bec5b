"""Write segments as a DICOM segmentation (PS3.3 A.51) on the very slices of the series that they were found in."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import RAISE
from pydicom.valuerep import validate_value

from engine.errors import UserError
from engine.files import replacing
from engine.imaging.dicom.codes import meaning_of
from engine.imaging.dicom.files import read_header
from engine.imaging.dicom.quiet import quietly
from engine.imaging.dicom.resampling import covers_slices, on_source_slices
from engine.imaging.volumes.segments import Algorithm, Segment
from engine.imaging.volumes.volume import Volume
from engine.version import __version__

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
SHARED_BY_FRAMES = ("PlaneOrientationSequence", "PixelMeasuresSequence")
PLACE_MM = 0.1  # how far a slice may lie from the grid, which evens out what positions are rounded to
OTHERWISE = "write .seg.nrrd instead"


@quietly()
def check_source(path: Path, volume: Volume) -> None:
    """Refuse a volume that a DICOM segmentation cannot refer to, by making one of a single voxel.

    Raises:
        UserError: see `write_dicom_segmentation`.
    """
    voxel = np.zeros(volume.shape, bool)
    voxel[0, 0, 0] = True
    _segmentation(path, [Segment("voxel", voxel, (1, 1, 1), algorithm=Algorithm("none", "0", "0"))], volume)


@quietly()
def write_dicom_segmentation(path: Path, segments: Sequence[Segment], volume: Volume) -> None:
    """Write segments as one object of binary frames, in one step.

    Patient, study and frame of reference are the source's, series and instance are new. Each frame is a slice of
    the source, which it names, with one segment in it; of a resampled volume, the segment is interpolated back onto
    the slices. Empty segments are left out; if all are, they are kept on
    empty frames, as DICOM knows no segmentation without a segment.

    Raises:
        UserError: highdicom is missing; the volume was not read from DICOM, or its files lack what says who and
            where they are, or break DICOM's rules; it is a cine, whose frames have no place; a segment does not
            say what found it; the disk is full.
    """
    nameless = [segment.name for segment in segments if segment.algorithm is None]
    if nameless:
        raise UserError(f"{path} must say what found '{nameless[0]}'; give the segment its algorithm")
    segmentation = _segmentation(path, segments, volume)
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(path: Path, segments: Sequence[Segment], volume: Volume) -> pydicom.Dataset:
    try:
        import highdicom
    except ImportError as error:
        raise UserError("DICOM is written by highdicom; run pip install --editable '.[dicom]'") from error
    headers = _headers(path, volume)
    on_frames = _to_frames(headers, volume)
    frames = [on_frames(segment.mask) for segment in segments]
    kept = [number for number, mask in enumerate(frames) if mask.any()] or list(range(len(frames)))
    algorithm = segments[0].algorithm
    description = ", ".join(segments[number].name for number in kept)
    described = [_described(place, segments[number]) for place, number in enumerate(kept, start=1)]
    pixels = np.stack([frames[number] for number in kept], axis=-1)
    try:
        _complete(headers, volume.spacing_mm[2])
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=pixels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            omit_empty_frames=bool(pixels.any()),
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBERS + _number_of_series(headers[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=short(algorithm.name),
            software_versions=__version__,
            device_serial_number=algorithm.sha256,
            content_label="SEGMENTATION",
            content_description=short(description),
            series_description=short(f"{MAKER}: {description}"),
            specific_character_set="ISO_IR 192",  # UTF-8
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__  # without its words, which may quote a patient's name
        invalid = ", ".join(e.keyword for e in headers[0] if e.keyword and e.VR in TEXTS and not _is_valid(e))
        where = f"{kind}; not valid are {invalid}" if invalid else kind
        raise UserError(
            f"{volume.name} breaks DICOM's rules where {path} needs it ({where}); {OTHERWISE}"
        ) from error
    if "FrameOfReferenceUID" not in segmentation:
        segmentation.PatientOrientation = headers[0].get("PatientOrientation")
    return segmentation


def _number_of_series(header: pydicom.Dataset) -> int:
    try:
        return int(header.get("SeriesNumber") or 0)
    except ValueError:
        return 0


def _headers(path: Path, volume: Volume) -> list[pydicom.Dataset]:
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


def _to_frames(headers: list[pydicom.Dataset], volume: Volume) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes a mask (z, y, x) of the volume to (frames, rows, columns), in the order of the files.

    Raises:
        UserError: the frames have no place, or are not the slices that the volume was made of.
    """
    if volume.stack and any(slice_.tile for slice_ in volume.stack.slices):
        raise UserError(f"{volume.name} is a mosaic, to whose slices no DICOM segmentation can refer; {OTHERWISE}")
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
            f"which no DICOM segmentation can refer; {OTHERWISE}"
        )
    return places


def _complete(headers: list[pydicom.Dataset], thickness_mm: float) -> None:
    """Give the headers what highdicom expects: what may be empty, a thickness, no frame of reference without a
    place in it, and one orientation, of which the reader has seen that all slices share it but for rounding."""
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
        if "PerFrameFunctionalGroupsSequence" in header:
            shared, frame = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
            shared.update({name: frame[name] for name in SHARED_BY_FRAMES if name in frame})
        elif "ImagePositionPatient" in header:
            header.SliceThickness = header.get("SliceThickness") or f"{thickness_mm:.6g}"
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        else:
            header.pop("FrameOfReferenceUID", None)


def _is_valid(element: pydicom.DataElement) -> bool:
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, "" if value is None else str(value), RAISE)
    except ValueError:
        return False
    return True


def _described(number: int, segment: Segment) -> pydicom.Dataset:
    from highdicom import UID
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    meaning, tracking_uid = meaning_of(segment.name), UID()
    described = SegmentDescription(
        segment_number=number,
        segment_label=short(segment.name),
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=_identified(segment),
        tracking_uid=tracking_uid,
        tracking_id=f"{clean(segment.name)} {tracking_uid[-8:]}",
        display_color=CIELabColor.from_rgb(*(255 * part for part in segment.color)),
    )
    described.SegmentDescription = clean(segment.name)
    if meaning.side:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(meaning.side)]
    return described


def _identified(segment: Segment) -> pydicom.Sequence:
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
    """Return text as a short value (VR LO) holds it."""
    text = clean(text)
    if len(text.encode()) <= LONGEST_BYTES:
        return text
    return text.encode()[: LONGEST_BYTES - 3].decode(errors="ignore") + "..."


def clean(text: str) -> str:
    """Return text without what ends or parts a value in DICOM: control characters and the backslash."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("\\", "/")).split())
