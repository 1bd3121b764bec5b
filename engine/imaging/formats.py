"""The formats in which segments can be written. Needs nothing but Python."""

from pathlib import Path

from engine.errors import UserError

SEGMENTATION_SUFFIX = ".seg.nrrd"
STRUCTURE_SET_SUFFIX, DICOM_SUFFIX = ".rt.dcm", ".dcm"
DICOM_SUFFIXES = (STRUCTURE_SET_SUFFIX, DICOM_SUFFIX)
LABEL_MAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
PICTURE_SUFFIXES = (".png",)
SUFFIXES = (SEGMENTATION_SUFFIX, *DICOM_SUFFIXES, *LABEL_MAP_SUFFIXES, *PICTURE_SUFFIXES)


def output_suffix(path: Path) -> str:
    """Return the suffix that decides the format.

    Raises:
        UserError: it is none of those that can be written.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path} has no suffix that can be written; there are {', '.join(SUFFIXES)}")
    return suffix
