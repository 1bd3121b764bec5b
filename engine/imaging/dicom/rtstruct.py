"""Write segments as an RT structure set (PS3.3 A.19): contours on the very slices that they were found in.

Holes follow the keyhole technique of PS3.3 C.8.8.6.3: a channel of no width joins the outline of each hole to the
contour around it. What a structure covers is thus the union of its contours, whatever a reader makes of inner ones.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom

from engine.errors import UserError
from engine.files import replacing
from engine.imaging.dicom.codes import meaning_of
from engine.imaging.dicom.quiet import quietly
from engine.imaging.dicom.slices import Slice, slices_of
from engine.imaging.dicom.source import (
    MAKER,
    OTHERWISE,
    by_the_rules,
    check_found,
    clean,
    complete,
    headers_of,
    identified,
    series_number,
    short,
    to_frames,
    voxel_of,
)
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.version import __version__

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and still what names a study in a structure set
DIGITS = 4  # of a coordinate in mm; a value (VR DS) has 16 characters


@quietly()
def check_source(path: Path, volume: Volume) -> None:
    """Refuse a volume that a structure set cannot refer to, by making one of a single voxel.

    Raises:
        UserError: see `write`.
    """
    _structure_set(path, [voxel_of(volume)], volume)


@quietly()
def write(path: Path, segments: Sequence[Segment], volume: Volume) -> None:
    """Write segments as closed planar contours, in one step.

    Patient, study and frame of reference are the source's, series and instance are new. Contours run half-way
    between the centres of the voxels inside and outside; each lies on a slice of the source, which it names. Of a
    resampled volume, the segment is interpolated back onto the slices. Empty segments are left out; if all are,
    they are kept as structures without a contour.

    Raises:
        UserError: as for a DICOM segmentation (see `seg.write`), or scikit-image is missing, or the source has no
            place in the patient.
    """
    check_found(path, segments)
    structure_set = _structure_set(path, segments, volume)
    with replacing(path) as temporary:
        structure_set.save_as(temporary)


def _structure_set(path: Path, segments: Sequence[Segment], volume: Volume) -> pydicom.Dataset:
    try:
        import highdicom
        import skimage  # noqa: F401
    except ImportError as error:
        raise UserError(
            "DICOM structure sets are written by highdicom and scikit-image; run pip install --editable '.[dicom]'"
        ) from error
    headers = headers_of(path, volume)
    on_frames = to_frames(headers, volume)
    planes = [
        plane for file, header in zip(volume.sources, headers, strict=True) for plane in slices_of(file, header)
    ]
    if not (headers[0].get("FrameOfReferenceUID") and all(plane.is_complete for plane in planes)):
        raise UserError(f"{volume.name} has no place in a patient, where the contours of {path} lie; {OTHERWISE}")
    contours = [_contours(on_frames(segment.mask), planes) for segment in segments]
    kept = [number for number, found in enumerate(contours) if found] or list(range(len(contours)))
    algorithm = segments[0].algorithm
    description = ", ".join(segments[number].name for number in kept)
    with by_the_rules(path, volume, headers[0]):
        complete(headers)
        structure_set = highdicom.SOPClass(
            study_instance_uid=headers[0].StudyInstanceUID,
            series_instance_uid=highdicom.UID(),
            series_number=series_number(headers[0]),
            sop_instance_uid=highdicom.UID(),
            sop_class_uid=pydicom.uid.RTStructureSetStorage,
            instance_number=1,
            modality="RTSTRUCT",
            # in explicit ones a contour of more than 64 KiB would not fit
            transfer_syntax_uid=pydicom.uid.ImplicitVRLittleEndian,
            manufacturer=MAKER,
            manufacturer_model_name=short(algorithm.name),
            software_versions=__version__,
            device_serial_number=algorithm.sha256,
            series_description=short(f"{MAKER}: {description}"),
            specific_character_set="ISO_IR 192",  # UTF-8
        )
        structure_set.copy_patient_and_study_information(headers[0])
    structure_set.OperatorsName = None
    _describe(structure_set, description)
    _refer(structure_set, headers)
    structure_set.StructureSetROISequence = []
    structure_set.ROIContourSequence = []
    structure_set.RTROIObservationsSequence = []
    for place, number in enumerate(kept, start=1):
        _add(structure_set, place, segments[number], contours[number])
    return structure_set


def _describe(structure_set: pydicom.Dataset, description: str) -> None:
    now = datetime.now()
    structure_set.StructureSetLabel = MAKER
    structure_set.StructureSetName = short(description)
    structure_set.StructureSetDescription = (
        "For research only, not for treatment. Found automatically, not reviewed."
    )
    structure_set.StructureSetDate, structure_set.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    structure_set.ApprovalStatus = "UNAPPROVED"


def _refer(structure_set: pydicom.Dataset, headers: list[pydicom.Dataset]) -> None:
    """Name the source: its frame of reference, study, series and instances."""
    series, study, frame = (pydicom.Dataset() for _ in range(3))
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in headers]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    structure_set.ReferencedFrameOfReferenceSequence = [frame]
    structure_set.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    structure_set.PositionReferenceIndicator = headers[0].get("PositionReferenceIndicator")


def _reference(header: pydicom.Dataset, frame: int | None = None) -> pydicom.Dataset:
    """Return a reference to an instance, or to one of its frames, from 0."""
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID = header.SOPClassUID
    reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None and int(header.get("NumberOfFrames") or 1) > 1:
        reference.ReferencedFrameNumber = frame + 1
    return reference


def _add(
    structure_set: pydicom.Dataset, number: int, segment: Segment, contours: Sequence[pydicom.Dataset]
) -> None:
    from highdicom.sr import CodedConcept

    structure, drawn, observed = (pydicom.Dataset() for _ in range(3))
    structure.ROINumber = drawn.ReferencedROINumber = observed.ReferencedROINumber = number
    structure.ReferencedFrameOfReferenceUID = structure_set.FrameOfReferenceUID
    structure.ROIName, structure.ROIDescription = short(segment.name), clean(segment.name)
    structure.ROIGenerationAlgorithm = "AUTOMATIC"
    structure.ROIDerivationAlgorithmIdentificationSequence = identified(segment)
    drawn.ROIDisplayColor = [round(255 * part) for part in segment.color]
    if contours:
        drawn.ContourSequence = list(contours)
    meaning = meaning_of(segment.name)
    kind = CodedConcept.from_code(meaning.type)
    if meaning.side:
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(meaning.side)]
    observed.ObservationNumber = number
    observed.SegmentedPropertyCategoryCodeSequence = [CodedConcept.from_code(meaning.category)]
    observed.RTROIIdentificationCodeSequence = [kind]
    observed.RTROIInterpretedType = observed.ROIInterpreter = None
    structure_set.StructureSetROISequence.append(structure)
    structure_set.ROIContourSequence.append(drawn)
    structure_set.RTROIObservationsSequence.append(observed)


def _contours(mask: np.ndarray, planes: Sequence[Slice]) -> list[pydicom.Dataset]:
    """Return what a mask (frames, rows, columns) covers, as items of a Contour Sequence."""
    contours = []
    for pixels, plane in zip(mask, planes, strict=True):
        for points in _closed(pixels):
            contour = pydicom.Dataset()
            contour.ContourNumber = len(contours) + 1
            contour.ContourImageSequence = [_reference(plane.values, plane.frame)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = _places_mm(points, plane).round(DIGITS).ravel().tolist()
            contours.append(contour)
    return contours


def _places_mm(points: np.ndarray, plane: Slice) -> np.ndarray:
    """Return where points (row, column) of a slice lie in the patient, the first pixel's centre being (0, 0)."""
    along_rows, along_columns = np.split(plane.orientation, 2)
    down, right = (points * plane.pixel_spacing_mm).T
    return plane.position_mm + np.outer(right, along_rows) + np.outer(down, along_columns)


def _closed(pixels: np.ndarray) -> list[np.ndarray]:
    """Return closed contours (points, 2) in rows and columns around what is True, each with its holes.

    From the topmost point of a hole a channel runs up, to the outline or to a hole that lies higher: that is why
    the lowest come first. It ends between two points, and so meets no voxel's centre.
    """
    from skimage.measure import find_contours

    if not pixels.any():
        return []
    inside = np.pad(pixels, 1)
    outlines, holes = [], {}  # holes by the points after which their channels end
    for ring in sorted(find_contours(inside.astype(float), 0.5), key=lambda ring: -ring[:, 0].min()):
        from_top = np.roll(ring[:-1], -ring[:-1, 0].argmin(), axis=0)
        path = _with_holes(list(map(tuple, from_top.tolist())), holes)
        row, column = map(int, path[0])  # of the voxel above
        if inside[row, column]:
            above = np.flatnonzero(~inside[:row, column])[-1]
            holes[above + 0.5, column] = [*path, path[0]]
        else:
            outlines.append(np.array(path) - 1)
    return outlines


def _with_holes(
    points: list[tuple[float, float]], holes: dict[tuple[float, float], list]
) -> list[tuple[float, float]]:
    path = []
    for point, following in zip(points, [*points[1:], points[0]], strict=True):
        path.append(point)
        if point in holes:
            end = ((point[0] + following[0]) / 2, (point[1] + following[1]) / 2)
            path += [end, *holes[point], end]
    return path
