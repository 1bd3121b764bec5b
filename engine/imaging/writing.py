"""Write segments and probabilities on exactly the grid of the volume they belong to."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from engine.errors import UserError
from engine.files import replacing
from engine.imaging.formats import (
    DICOM_SUFFIXES,
    PICTURE_SUFFIXES,
    SEGMENTATION_SUFFIX,
    STRUCTURE_SET_SUFFIX,
    output_suffix,
)
from engine.imaging.images import image_from_volume, raster_of
from engine.imaging.raster import Raster
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume, corners_mm

GRID_TOLERANCE = 1e-3  # of a voxel, beside the rounding of single precision
TERMINOLOGY_TAG = "TerminologyEntry"
TISSUE = (
    "Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
)


def check_format(path: Path, volume: Volume, segments: int, exclusive: bool) -> None:
    """Refuse what the format of `path` cannot hold, before anything is computed.

    Raises:
        UserError: a picture of a volume, segments that may overlap in a label map, or DICOM of what is none.
    """
    suffix = output_suffix(path)
    if suffix in DICOM_SUFFIXES:
        _dicom(suffix).check_source(path, volume)
        return
    if suffix in PICTURE_SUFFIXES and volume.shape[0] != 1:
        raise UserError(
            f"{path} is a picture and {volume.name} has {volume.shape[0]} slices; write .nii.gz or .seg.nrrd"
        )
    if suffix != SEGMENTATION_SUFFIX and segments > 1 and not exclusive:
        raise UserError(
            f"{path} is a label map, which holds one segment a voxel, and {segments} prompts may overlap; "
            "add --exclusive, or write .seg.nrrd"
        )


def write_segments(path: Path, segments: Sequence[Segment], volume: Volume) -> None:
    """Write segments on the volume's grid, in one step.

    `.seg.nrrd` is Slicer's segmentation format: names, colours, tags, and overlapping segments in layers. `.dcm` is
    a DICOM segmentation of the series that the volume was read from (see `dicom/seg.py`), `.rt.dcm` an RT structure
    set of it (see `dicom/rtstruct.py`). Label maps hold i + 1 for segment i; a picture of a single segment holds
    255. NIfTI keeps the geometry in single precision, and only grids at right angles; the others keep every bit.

    Raises:
        UserError: the format cannot hold the segments (see `check_format`) or the grid, or the disk is full.
    """
    suffix = output_suffix(path)
    if suffix in DICOM_SUFFIXES:
        _dicom(suffix).write(path, segments, volume)
        return
    check_format(path, volume, len(segments) if _overlap(segments, volume) else 1, exclusive=False)
    with replacing(path) as temporary:
        if suffix == SEGMENTATION_SUFFIX:
            _write_segmentation(temporary, segments, volume)
        else:
            values = [255] if suffix in PICTURE_SUFFIXES and len(segments) == 1 else range(1, len(segments) + 1)
            labels = _labels(segments, values, volume)
            _write_image(temporary, labels, volume, picture=suffix in PICTURE_SUFFIXES)


def write_probability(path: Path, probability: np.ndarray, volume: Volume) -> None:
    """Write probabilities (z, y, x) in 0..1 as float32, or as 0..255 in a picture."""
    suffix = output_suffix(path)
    if suffix in (SEGMENTATION_SUFFIX, *DICOM_SUFFIXES):
        raise UserError(f"{path} is a segmentation and cannot hold probabilities; write .nii.gz or .nrrd")
    check_format(path, volume, 1, exclusive=False)
    picture = suffix in PICTURE_SUFFIXES
    values = np.round(probability * 255.0).astype(np.uint8) if picture else probability.astype(np.float32)
    with replacing(path) as temporary:
        _write_image(temporary, values, volume, picture)


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume's own voxels on its grid, in one step; NRRD and MetaImage keep every bit of both."""
    with replacing(path) as temporary:
        _write_image(temporary, volume.voxels, volume, picture=False)


def _dicom(suffix: str):
    from engine.imaging.dicom import rtstruct, seg  # pydicom takes half a second, and 3D Slicer writes none

    return rtstruct if suffix == STRUCTURE_SET_SUFFIX else seg


def _write_image(path: Path, voxels: np.ndarray, volume: Volume, picture: bool) -> None:
    """Write, and read back what was written: some formats are cut off silently where the disk is full, and NIfTI
    cannot hold every grid."""
    image = image_from_volume(volume.with_voxels(voxels))
    if picture and image.GetDimension() == 3:
        image = image[:, :, 0]
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        written = sitk.ReadImage(str(path))
        complete = np.array_equal(sitk.GetArrayFromImage(written).squeeze(), voxels.squeeze())
    except RuntimeError:
        complete = False
    tolerance_mm = GRID_TOLERANCE * min(volume.spacing_mm)
    if complete and not picture and _displacement_mm(raster_of(written), volume) > tolerance_mm:
        raise UserError(f"{path.suffix} cannot hold the grid of {volume.name} exactly; write .seg.nrrd or .nrrd")
    if not complete:
        raise UserError(f"the file could not be written whole to {path.parent}; the disk may be full")


def _displacement_mm(written: Raster, volume: Volume) -> float:
    """Return how far the corners of two grids of one size lie apart, less the rounding of single precision."""
    places = [corners_mm(volume.shape, grid) for grid in (written, volume)]
    rounding = np.finfo(np.float32).eps * np.abs(places[1]).max()
    return float(np.abs(places[0] - places[1]).max() - 4 * rounding)


def _overlap(segments: Sequence[Segment], volume: Volume) -> bool:
    covered = np.zeros(volume.shape, bool)
    for segment in segments:
        if (covered & segment.mask).any():
            return True
        covered |= segment.mask
    return False


def _labels(segments: Sequence[Segment], values: Sequence[int], volume: Volume) -> np.ndarray:
    labels = np.zeros(volume.shape, np.uint8 if max(values, default=0) < 256 else np.uint16)
    for segment, value in zip(segments, values, strict=True):
        labels[segment.mask] = value
    return labels


def _write_segmentation(path: Path, segments: Sequence[Segment], volume: Volume) -> None:
    layers, places = _layers(segments, volume)
    dtype = layers[0].dtype.newbyteorder("<")
    directions = volume.direction_matrix * volume.spacing_mm
    layered = len(layers) > 1
    vectors = [_vector(column) for column in directions.T]
    header = {
        "type": dtype.name,
        "dimension": str(4 if layered else 3),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, ((len(layers),) if layered else ()) + volume.shape[::-1])),
        "space directions": " ".join((["none"] if layered else []) + vectors),
        "kinds": " ".join((["list"] if layered else []) + ["domain"] * 3),
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(volume.origin_mm),
    }
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, (segment, (layer, value)) in enumerate(zip(segments, places, strict=True)):
        fields |= _segment_fields(f"Segment{index}_", index, segment, layer, value)
    lines = ["NRRD0004", *(f"{k}: {v}" for k, v in header.items()), *(f"{k}:={v}" for k, v in fields.items())]
    with path.open("wb") as file:
        file.write("\n".join(lines).encode() + b"\n\n")
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file) as voxels:
            for slices in zip(*layers, strict=True):  # NRRD's order, fastest first: layer, x, y, z
                voxels.write(np.stack(slices, axis=-1).astype(dtype).tobytes())


def _vector(numbers: Sequence[float]) -> str:
    """Return a vector in NRRD's form, with every bit."""
    return f"({','.join(repr(float(number)) for number in numbers)})"


def _segment_fields(prefix: str, index: int, segment: Segment, layer: int, value: int) -> dict[str, str]:
    tags = {TERMINOLOGY_TAG: TISSUE, **segment.tags}
    fields = {
        "ID": f"Segment_{index + 1}",
        "Name": segment.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{part:.6g}" for part in segment.color),
        "ColorAutoGenerated": "0",
        "Layer": str(layer),
        "LabelValue": str(value),
        "Extent": _extent(segment.mask),
        "Tags": "".join(f"{key}:{_one_line(text)}|" for key, text in tags.items()),
    }
    return {prefix + key: _one_line(text) if key == "Name" else text for key, text in fields.items()}


def _layers(segments: Sequence[Segment], volume: Volume) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Put each segment into the first layer where it overlaps none; return layers and (layer, value) of each."""
    layers = [np.zeros(volume.shape, np.uint8 if len(segments) < 256 else np.uint16)]
    places = []
    for value, segment in enumerate(segments, start=1):
        index = next((i for i, layer in enumerate(layers) if not layer[segment.mask].any()), len(layers))
        if index == len(layers):
            layers.append(np.zeros_like(layers[0]))
        layers[index][segment.mask] = value
        places.append((index, value))
    return layers, places


def _extent(mask: np.ndarray) -> str:
    """Return first and last x, y, z of the voxels in a mask; "0 -1 0 -1 0 -1" for none (Slicer's order)."""
    if not mask.any():
        return "0 -1 0 -1 0 -1"
    ranges = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in (2, 1, 0)]
    return " ".join(f"{r[0]} {r[-1]}" for r in ranges)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
