"""Write what was measured of segments as a DICOM structured report (PS3.16, TID 1500) on their segmentation."""

from collections.abc import Mapping
from pathlib import Path

import highdicom
import pydicom
from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from engine.files import replacing
from engine.imaging.dicom.quiet import quietly
from engine.imaging.dicom.source import MAKER, clean, short
from engine.version import __version__

IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
MILLILITRE = Code("ml", "UCUM", "milliliter")


@quietly()
def write_measurements(path: Path, segmentation: Path, volumes_ml: Mapping[str, float]) -> None:
    """Write the volume of each segment of a DICOM segmentation as one object, in one step.

    Patient and study are the segmentation's, to whose segments, tracking UIDs and codes the measurements refer.

    Args:
        volumes_ml: by the names of the segments; those that the segmentation leaves out, as they are empty, may be
            among them.

    Raises:
        UserError: the disk is full.
    """
    source = pydicom.dcmread(segmentation, stop_before_pixels=True)
    volumes_ml = {clean(name): volume_ml for name, volume_ml in volumes_ml.items()}
    groups = [_group(source, segment, volumes_ml[segment.SegmentDescription]) for segment in source.SegmentSequence]
    report = sr.EnhancedSR(
        evidence=[source],
        content=sr.MeasurementReport(_observed_by(source), IMAGING_PROCEDURE, groups),
        series_instance_uid=highdicom.UID(),
        series_number=source.SeriesNumber + 1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=source.ManufacturerModelName,
        software_versions=__version__,
        device_serial_number=source.DeviceSerialNumber,
        series_description=short(f"{source.SeriesDescription} (volumes)"),
        is_complete=True,
        specific_character_set="ISO_IR 192",  # UTF-8
    )
    with replacing(path) as temporary:
        report.save_as(temporary)


def _observed_by(source: pydicom.Dataset) -> sr.ObservationContext:
    """Return the device that measured: the same for the same weights."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[MAKER, source.DeviceSerialNumber]),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=source.ManufacturerModelName,
        serial_number=source.DeviceSerialNumber,
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))


def _group(
    source: pydicom.Dataset, segment: pydicom.Dataset, volume_ml: float
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    sides = kind.get("SegmentedPropertyTypeModifierCodeSequence") or []
    site = sr.FindingSite(_code(kind), laterality=_code(sides[0])) if sides else None
    series = source.ReferencedSeriesSequence[0].SeriesInstanceUID
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        referenced_segment=sr.ReferencedSegment(
            source.SOPClassUID,
            source.SOPInstanceUID,
            segment.SegmentNumber,
            source_series=sr.SourceSeriesForSegmentation(series),
        ),
        finding_category=_code(segment.SegmentedPropertyCategoryCodeSequence[0]),
        finding_type=_code(kind),
        finding_sites=[site] if site else None,
        algorithm_id=sr.AlgorithmIdentification(algorithm.AlgorithmName, algorithm.AlgorithmVersion),
        measurements=[sr.Measurement(codes.SCT.Volume, float(f"{volume_ml:.6g}"), MILLILITRE)],
    )


def _code(item: pydicom.Dataset) -> sr.CodedConcept:
    """Return a code without the modifiers that segments have in it."""
    return sr.CodedConcept(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
