"""Write segments as a DICOM segmentation (PS3.3 A.51) on the very slices of the series that they were found in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from engine.errors import UserError
from engine.files import replacing
from engine.imaging.dicom.codes import meaning_of
from engine.imaging.dicom.quiet import quietly
from engine.imaging.dicom.source import (
    MAKER,
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

SHARED_BY_FRAMES = ("PlaneOrientationSequence", "PixelMeasuresSequence")


@quietly()
def check_source(path: Path, volume: Volume) -> None:
    """Refuse a volume that a DICOM segmentation cannot refer to, by making one of a single voxel.

    Raises:
        UserError: see `write`.
    """
    _segmentation(path, [voxel_of(volume)], volume)


@quietly()
def write(path: Path, segments: Sequence[Segment], volume: Volume) -> None:
    """Write segments as one object of binary frames, in one step.

    Patient, study and frame of reference are the source's, series and instance are new. Each frame is a slice of
    the source, which it names, with one segment in it; of a resampled volume, the segment is interpolated back onto
    the slices. Empty segments are left out; if all are, they are kept on empty frames, as DICOM knows no
    segmentation without a segment.

    Raises:
        UserError: highdicom is missing; the volume was not read from DICOM, or its files lack what says who and
            where they are, or break DICOM's rules; it is a cine, whose frames have no place; a segment does not
            say what found it; the disk is full.
    """
    check_found(path, segments)
    segmentation = _segmentation(path, segments, volume)
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(path: Path, segments: Sequence[Segment], volume: Volume) -> pydicom.Dataset:
    try:
        import highdicom
    except ImportError as error:
        raise UserError("DICOM is written by highdicom; run pip install --editable '.[dicom]'") from error
    headers = headers_of(path, volume)
    on_frames = to_frames(headers, volume)
    frames = [on_frames(segment.mask) for segment in segments]
    kept = [number for number, mask in enumerate(frames) if mask.any()] or list(range(len(frames)))
    algorithm = segments[0].algorithm
    description = ", ".join(segments[number].name for number in kept)
    described = [_described(place, segments[number]) for place, number in enumerate(kept, start=1)]
    pixels = np.stack([frames[number] for number in kept], axis=-1)
    with by_the_rules(path, volume, headers[0]):
        _complete(headers, volume.spacing_mm[2])
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=pixels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            omit_empty_frames=bool(pixels.any()),
            series_instance_uid=highdicom.UID(),
            series_number=series_number(headers[0]),
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
    if "FrameOfReferenceUID" not in segmentation:
        segmentation.PatientOrientation = headers[0].get("PatientOrientation")
    return segmentation


def _complete(headers: list[pydicom.Dataset], thickness_mm: float) -> None:
    """Give the headers what highdicom expects: what may be empty, a thickness, no frame of reference without a
    place in it, and one orientation, of which the reader has seen that all slices share it but for rounding."""
    complete(headers)
    for header in headers:
        if "PerFrameFunctionalGroupsSequence" in header:
            shared, frame = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
            shared.update({name: frame[name] for name in SHARED_BY_FRAMES if name in frame})
        elif "ImagePositionPatient" in header:
            header.SliceThickness = header.get("SliceThickness") or f"{thickness_mm:.6g}"
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        else:
            header.pop("FrameOfReferenceUID", None)


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
        algorithm_identification=identified(segment),
        tracking_uid=tracking_uid,
        tracking_id=f"{clean(segment.name)} {tracking_uid[-8:]}",
        display_color=CIELabColor.from_rgb(*(255 * part for part in segment.color)),
    )
    described.SegmentDescription = clean(segment.name)
    if meaning.side:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(meaning.side)]
    return described
