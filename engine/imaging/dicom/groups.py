"""Functional groups of enhanced images: what is said of each frame (PS3.3 C.7.6.16.2)."""

from pydicom.dataset import Dataset

CONVERTED = ("AcquisitionNumber", "AcquisitionTime", "EchoNumbers", "EchoTime", "ImageType", "InversionTime")
CONVERTED += ("KVP", "TemporalPositionIdentifier", "TriggerTime")
# The macros that place a frame, give its values meaning or tell which volume is its own, with the attributes that
# are theirs. Makers repeat these in groups of their own with other values, which are left alone.
MACROS = {
    "UnassignedSharedConvertedAttributesSequence": CONVERTED,
    "UnassignedPerFrameConvertedAttributesSequence": CONVERTED,
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionVolumeSequence": ("ImagePositionVolume",),
    "PlaneOrientationVolumeSequence": ("ImageOrientationVolume",),
    "FrameContentSequence": ("FrameAcquisitionNumber", "StackID", "TemporalPositionIndex", "DimensionIndexValues"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTSequence"),
    "TemporalPositionSequence": ("TemporalPositionTimeOffset",),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime",),
    "MRImageFrameTypeSequence": ("FrameType", "ComplexImageComponent"),
    "CTImageFrameTypeSequence": ("FrameType",),
    "PETFrameTypeSequence": ("FrameType",),
    "XRay3DFrameTypeSequence": ("FrameType",),
    "USImageDescriptionSequence": ("FrameType",),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRModifierSequence": ("InversionTimes",),
    "MRTimingAndRelatedParametersSequence": ("FlipAngle", "RepetitionTime"),
    "MRDiffusionSequence": ("DiffusionBValue", "DiffusionDirectionality"),
    "MRDiffusionSequence.DiffusionGradientDirectionSequence": ("DiffusionGradientOrientation",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTXRayDetailsSequence": ("KVP",),
}


def attributes_of_frame(shared: Dataset, own: Dataset) -> Dataset:
    """Return what the standard's macros say of a frame: its own groups over those that all frames share."""
    values = Dataset()
    for path, keywords in MACROS.items():
        for item in (_item(shared, path), _item(own, path)):
            values.update({item[keyword].tag: item[keyword] for keyword in keywords if keyword in item})
    return values


def _item(group: Dataset, path: str) -> Dataset:
    for keyword in path.split("."):
        group = (group.get(keyword) or [Dataset()])[0]
    return group
