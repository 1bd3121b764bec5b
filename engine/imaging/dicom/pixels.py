"""The voxels of DICOM files: checked for size, decoded, and given their meaning (PS3.3 C.7.6.3, C.11.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_fragmented_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    RLELossless,
)

from engine.errors import UserError
from engine.files import scratch_folder
from engine.imaging.dicom.files import UNREADABLE, read_header, read_whole
from engine.imaging.dicom.quiet import quietly
from engine.imaging.dicom.run_length import check_run_lengths

MOST_UNPACKED = 1000  # times the bytes of a compressed file; deflate reaches 1032, JPEG and RLE far less
MOST_BITS = 64  # of a value
ALWAYS_ALLOWED_BYTES = 64 << 20  # an empty picture of JPEG 2000 takes a few bytes at any size
# Values with a unit, such as Hounsfield's: MONOCHROME1 only says how they are shown, and they stay as they are.
MEASURED = ("CT", "PT", "NM", "RTDOSE")
BY_PYDICOM = (RLELossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)  # what SimpleITK's GDCM decodes wrongly or not
PIXEL_KEYWORDS = (
    "SamplesPerPixel",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
)


def declared_bytes(header: pydicom.Dataset) -> int:
    """Return how many bytes the voxels of a file take, as its header says; 0 for no image.

    Raises:
        UserError: a number of it is none.
    """
    try:
        frames = int(header.get("NumberOfFrames") or 1)
        samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 8)
        size = int(header.get("Rows") or 0) * int(header.get("Columns") or 0)
    except (TypeError, ValueError) as error:
        raise UserError(f"a DICOM header has sizes that are no numbers ({error})") from error
    return frames * size * samples * bits // 8


def check_size(path: Path, header: pydicom.Dataset) -> None:
    """Refuse a file that declares more voxels than its bytes can hold, before memory is taken for them.

    Raises:
        UserError: it does; or its number of frames or bits makes no sense.
    """
    try:
        needed, there = declared_bytes(header), path.stat().st_size
        frames, bits = int(header.get("NumberOfFrames") or 1), int(header.get("BitsAllocated") or 0)
        syntax = _transfer_syntax(header)
    except (UserError, *UNREADABLE) as error:
        raise UserError(f"{path} has a damaged header ({error}); get it again") from error
    if frames < 1:
        raise UserError(f"{path} declares {frames} frames; it is damaged, get it again")
    if not 1 <= bits <= MOST_BITS:
        raise UserError(f"{path} declares values of {bits} bits; it is damaged, get it again")
    if not syntax.is_encapsulated:
        subsampled = str(header.get("PhotometricInterpretation", "")).startswith("YBR_FULL_422")
        needed = needed * 2 // 3 if subsampled else needed
    most = there
    if syntax.is_encapsulated or syntax == DeflatedExplicitVRLittleEndian:
        most = max(ALWAYS_ALLOWED_BYTES, there * MOST_UNPACKED)
    if needed > most:
        raise UserError(
            f"{path} declares {needed:,} bytes of voxels, and its {there:,} bytes cannot hold them; it is cut off "
            "or damaged, get it again"
        )


@quietly()
def read_values(path: Path, frames: Sequence[int], transforms: Sequence[pydicom.Dataset]) -> np.ndarray:
    """Decode frames of a file, and give their values their meaning.

    Grey values are rescaled (or looked up) to the modality's unit, and those of MONOCHROME1 turned round so that
    bright is bright, unless they carry a unit. Colours of any kind become RGB. Overlays are no part of the image.

    Args:
        frames: their numbers, from 0.
        transforms: for each its own RescaleSlope and RescaleIntercept, or the file's header.

    Returns:
        (frames, rows, columns), or (frames, rows, columns, 3) uint8.

    Raises:
        UserError: the voxels are missing, damaged, or compressed in a way that cannot be unpacked here.
    """
    try:
        header = read_header(path, force=True)
        stored = _decode(path, header, frames)
        if stored.ndim == 4:
            return _to_8_bit(stored, _depth(header))
        if header.get("PhotometricInterpretation") == "PALETTE COLOR":
            colours = np.stack([apply_color_lut(frame, header) for frame in stored])
            return _to_8_bit(colours[..., :3], 8 * colours.dtype.itemsize)
        values = [_meaning(v, header, t) for v, t in zip(stored, transforms, strict=True)]
    except UserError:
        raise
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise UserError(f"{path} has pixel data that cannot be decoded; it may be damaged ({reason})") from error
    return np.stack([value.astype(np.result_type(*values), copy=False) for value in values])


def _decode(path: Path, header: pydicom.Dataset, frames: Sequence[int]) -> np.ndarray:
    """Return stored values (frames, rows, columns) or RGB (frames, rows, columns, 3)."""
    syntax = _transfer_syntax(header)
    if syntax.is_encapsulated and syntax not in BY_PYDICOM:
        return _decode_by_gdcm(path, frames)
    if syntax in BY_PYDICOM and not pydicom.pixels.get_decoder(syntax).is_available:
        raise UserError(
            f"{path} is compressed as {syntax.name}; install what unpacks it: "
            "pip install pylibjpeg pylibjpeg-openjpeg"
        )
    from_file = "TransferSyntaxUID" in header.file_meta and syntax != DeflatedExplicitVRLittleEndian
    source = path if from_file else _with_syntax(path)
    if not syntax.is_encapsulated:
        _check_bits(path, header)
    if syntax == RLELossless:
        check_run_lengths(path, int(header.Rows) * int(header.Columns))
    return np.stack(list(iter_pixels(source, indices=list(frames))))


def _with_syntax(path: Path) -> pydicom.Dataset:
    """Return the whole data set of a deflated file, or of one that does not say its transfer syntax."""
    dataset = read_whole(path)
    dataset.file_meta.TransferSyntaxUID = _transfer_syntax(dataset)
    return dataset


def _decode_by_gdcm(path: Path, frames: Sequence[int]) -> np.ndarray:
    """Decode with SimpleITK's GDCM, from a file with the pixels alone, so that it returns stored values."""
    dataset = read_whole(path)
    count = int(dataset.get("NumberOfFrames") or 1)
    encoded = [b"".join(parts) for parts in generate_fragmented_frames(dataset.PixelData, number_of_frames=count)]
    bare = pydicom.Dataset()
    for keyword in PIXEL_KEYWORDS:
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    if bare.PhotometricInterpretation in ("MONOCHROME1", "PALETTE COLOR"):
        bare.PhotometricInterpretation = "MONOCHROME2"
    bare.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    bare.SOPInstanceUID = pydicom.uid.generate_uid()
    bare.NumberOfFrames = len(frames)
    bare.PixelData = encapsulate([encoded[frame] for frame in frames])
    bare["PixelData"].VR = "OB"
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with scratch_folder() as folder:
        bare.save_as(folder / "pixels.dcm", enforce_file_format=True)
        image = sitk.ReadImage(str(folder / "pixels.dcm"), imageIO="GDCMImageIO")
    stored = sitk.GetArrayFromImage(image)
    colours = int(dataset.get("SamplesPerPixel") or 1) == 3
    return stored.reshape(len(frames), int(dataset.Rows), int(dataset.Columns), *([3] if colours else []))


def _check_bits(path: Path, header: pydicom.Dataset) -> None:
    """Refuse values that do not fill the lowest bits, which DICOM no longer knows (PS3.5 8.1.1)."""
    depth = _depth(header)
    if int(header.get("HighBit", depth - 1)) != depth - 1:
        raise UserError(
            f"{path} keeps its values in other than the lowest bits (HighBit {header.HighBit}); convert it"
        )


def _meaning(stored: np.ndarray, header: pydicom.Dataset, transform: pydicom.Dataset) -> np.ndarray:
    """Return the values in the modality's unit: int16 or int32 where they stay whole, else float32."""
    values = _rescaled(stored, header, transform)
    if not is_turned_round(header):
        return values
    return _whole(sum(storable_range(header, transform)) - values.astype(np.float64))


def is_turned_round(header: pydicom.Dataset) -> bool:
    """Return whether the values are read in the opposite order, so that bright is bright."""
    return header.get("PhotometricInterpretation") == "MONOCHROME1" and header.get("Modality") not in MEASURED


def storable_range(header: pydicom.Dataset, transform: pydicom.Dataset) -> tuple[float, float]:
    """Return what the least and the greatest number that a file can store mean in the modality's unit."""
    depth, signed = _depth(header), header.get("PixelRepresentation") == 1
    ends = np.array([-(1 << depth - 1), (1 << depth - 1) - 1] if signed else [0, (1 << depth) - 1])
    low, high = (float(v) for v in _rescaled(ends.astype(np.int64), header, transform))
    return low, high


def _rescaled(stored: np.ndarray, header: pydicom.Dataset, transform: pydicom.Dataset) -> np.ndarray:
    if header.get("Modality") == "RTDOSE":
        return (stored * float(header.get("DoseGridScaling") or 1)).astype(np.float32)
    if _has_table(header):
        return _whole(apply_modality_lut(stored, header))
    slope = _number(transform.get("RescaleSlope"), 1.0)
    intercept = _number(transform.get("RescaleIntercept"), 0.0)
    if (slope, intercept) == (1.0, 0.0):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return _whole(stored * slope + intercept)


def _number(value: object, default: float) -> float:
    return default if value in (None, "") else float(value)


def _has_table(header: pydicom.Dataset) -> bool:
    """Return whether there is a modality LUT (0028,3000); some writers leave an empty one."""
    tables = header.get("ModalityLUTSequence")
    return bool(tables) and bool(tables[0].get("LUTDescriptor")) and bool(tables[0].get("LUTData"))


def _whole(values: np.ndarray) -> np.ndarray:
    """Return whole numbers as int16 or int32, others as float32."""
    low, high = values.min(), values.max()
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max and np.array_equal(values, np.rint(values)):
            return values.astype(kind)
    return values.astype(np.float32)


def _to_8_bit(colours: np.ndarray, depth: int) -> np.ndarray:
    return (colours if depth == 8 else np.round(colours * (255 / ((1 << depth) - 1)))).astype(np.uint8)


def _depth(header: pydicom.Dataset) -> int:
    return int(header.get("BitsStored") or header.BitsAllocated)


def _transfer_syntax(header: pydicom.Dataset) -> UID:
    """Return the transfer syntax (0002,0010), or what a file without one was read as.

    Raises:
        ValueError: it is none that is known.
    """
    if "TransferSyntaxUID" in header.file_meta:
        syntax = UID(header.file_meta.TransferSyntaxUID)
        if not syntax.is_transfer_syntax:
            raise ValueError(f"its transfer syntax is '{syntax}', which is none of DICOM's")
        return syntax
    implicit, little = header.original_encoding
    return (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian) if little else ExplicitVRBigEndian
