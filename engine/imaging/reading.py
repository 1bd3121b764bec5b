"""Read any image file or DICOM series as volumes."""

import gzip
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import SimpleITK as sitk
from PIL import Image

from engine.errors import UserError
from engine.files import Bounded
from engine.imaging.dicom import archive
from engine.imaging.dicom import reading as dicom
from engine.imaging.headers import MOST_PACKED, check_metaimage, check_nrrd
from engine.imaging.images import volume_from_image
from engine.imaging.volumes.volume import Volume

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
NIFTI_UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metres, millimetres, micrometres
NIFTI_BYTES = {
    4: 2,
    8: 4,
    16: 4,
    32: 8,
    64: 8,
    128: 3,
    512: 2,
    768: 4,
    1024: 8,
    1280: 8,
    1536: 16,
    1792: 16,
    2304: 4,
}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
MOST_EXCESS = 2  # how often a compressed file may hold what its header says, or a mebibyte
MOST_PIXELS_A_BYTE = 9000  # 8320 is what deflate can make of one byte at 1 bit each
SMALL_PICTURE = 16 << 20  # pixels
SFORM_TOLERANCE = 0.1  # of a voxel; headers keep single precision, and a real contradiction is larger
MOST_LISTED = 20  # frames that a message names
NOT_ORTHOGONAL = "orthonormal"  # in ITK's message for a sheared or degenerate grid


class Frame(Protocol):
    """One volume of what a path holds, not read yet; its title tells it from the others, or is empty."""

    title: str

    def read(self, resample: bool) -> Volume: ...


def read_volume(
    path: str | Path, series: str | None = None, frame: int | None = None, resample: bool = False
) -> Volume:
    """Read one volume.

    Args:
        path: an image file, a DICOM file, or a folder or a ZIP file with a DICOM series.
        series: which series of a folder: its UID, its number or a part of its description.
        frame: which frame of a file with several, or which volume of a DICOM series with several, from 0.
        resample: put uneven DICOM slices, and those of a tilted gantry, onto a regular grid.

    Raises:
        UserError: the file is missing, unreadable or has no valid geometry; several series or frames and none
            was chosen.
    """
    with _opened(Path(path), series) as frames:
        if frame is None and len(frames) == 1:
            return frames[0].read(resample)
        if frame is None:
            what = f"{len(frames)} volumes in a series" if any(f.title for f in frames) else f"{len(frames)} frames"
            raise UserError(
                f"{path} has {what}{_listed(frames)}; choose one with --frame 0 … {len(frames) - 1}, or --frame all"
            )
        if not 0 <= frame < len(frames):
            raise UserError(f"{path} has no frame {frame}; there are 0 … {len(frames) - 1}")
        return frames[frame].read(resample)


def read_frames(path: str | Path, series: str | None = None, resample: bool = False) -> list[Volume]:
    """Read all frames of a 4-D file or a cine, or all volumes of a series; a list of one for anything else (see
    `read_volume`)."""
    with _opened(Path(path), series) as frames:
        return [frame.read(resample) for frame in frames]


@contextmanager
def _opened(path: Path, series: str | None) -> Iterator[Sequence[Frame]]:
    """Yield the frames of what a path holds."""
    _check_there(path)
    if path.is_dir():
        yield dicom.open_folder(path, series)
    elif archive.is_archive(path):
        with archive.unpacked(path) as folder:
            yield [_Unpacked(part) for part in dicom.open_folder(folder, series, path)]
    elif image_suffix(path) is not None:
        frames = _frames(read_image(path), picture=image_suffix(path) in PICTURE_SUFFIXES)
        yield [_Image(image, path) for image in frames]
    elif dicom.is_dicom(path):
        yield dicom.open_file(path, series)
    else:
        raise UserError(f"{path} is no image that can be read; there are DICOM, {', '.join(IMAGE_SUFFIXES)}")


@dataclass(frozen=True)
class _Image:
    image: sitk.Image
    path: Path
    title: str = ""

    def read(self, resample: bool) -> Volume:
        return volume_from_image(_colours(self.image, self.path), name=self.path.name)


@dataclass(frozen=True)
class _Unpacked:
    """A volume of a ZIP file, whose files are gone once it is read."""

    part: Frame

    @property
    def title(self) -> str:
        return self.part.title

    def read(self, resample: bool) -> Volume:
        return replace(self.part.read(resample), sources=())


def _listed(frames: Sequence[Frame]) -> str:
    """Return the titles of frames that have one, in brackets."""
    titles = [f"{number}: {frame.title}" for number, frame in enumerate(frames) if frame.title]
    more = [f"… {len(titles) - MOST_LISTED} more"] if len(titles) > MOST_LISTED else []
    return f" ({'; '.join(titles[:MOST_LISTED] + more)})" if titles else ""


def read_image(path: Path) -> sitk.Image:
    """Read a file of one of `IMAGE_SUFFIXES` as SimpleITK has it, once it is proved to be whole.

    Raises:
        UserError: the file is missing or damaged, or contradicts itself.
    """
    _check_there(path)
    _check_name(path)
    _check_header(path)
    if image_suffix(path) in (".nii", ".nii.gz"):
        _check_nifti(path)
    elif image_suffix(path) in (".nrrd", ".mha"):
        _check_compressed(path)
    elif image_suffix(path) in PICTURE_SUFFIXES:
        _check_picture(path)
    return _read(path)


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take once they are read, as its header alone says.

    Raises:
        UserError: the header cannot be read.
    """
    _check_name(path)
    if image_suffix(path) is None:
        return dicom.unpacked_bytes(path)
    _check_header(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        voxel = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read; it may be damaged or not what its name says") from error
    return math.prod(reader.GetSize()) * voxel.GetNumberOfComponentsPerPixel() * voxel.GetSizeOfPixelComponent()


def find_studies(folder: Path) -> list[Path]:
    """Return what a folder of studies holds, in order: image files, ZIP files, and for each DICOM series the
    innermost folder with all its files.

    Hidden files and segmentations (.seg.nrrd, DICOM SEG) are left out.

    Raises:
        UserError: there is none.
    """
    studies: set[Path] = set()
    slices: list[Path] = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or path.name.endswith(".seg.nrrd"):
            continue
        if image_suffix(path) is not None or archive.is_archive(path):
            studies.add(path)
        elif dicom.is_dicom(path) and dicom.is_scan(path):
            slices.append(path)
    studies |= dicom.series_folders(slices)
    if not studies:
        raise UserError(f"{folder} holds no images; there are DICOM, {', '.join(IMAGE_SUFFIXES)}")
    return sorted(studies)


def image_suffix(path: Path) -> str | None:
    """Return the suffix of an image file that is not DICOM, such as ".nii.gz"; None for any other."""
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), None)


def _check_there(path: Path) -> None:
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]!a} is no name of a file ({error})") from error
    if not there:
        raise UserError(f"{path} does not exist")


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!a} is no valid UTF-8 name; rename the file") from None


def _check_header(path: Path) -> None:
    if image_suffix(path) in (".nrrd", ".nhdr"):
        check_nrrd(path)
    elif image_suffix(path) in (".mha", ".mhd"):
        check_metaimage(path)


def _read(path: Path) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        message = str(error)
        if NOT_ORTHOGONAL in message:
            raise UserError(
                f"{path} has axes that are not at right angles; resample it to a regular grid"
            ) from error
        if "spacing" in message:
            raise UserError(f"{path} has a spacing that is not above zero; mend its header") from error
        if "direction" in message.lower() or "determinant" in message.lower():
            raise UserError(f"{path} has a direction matrix that cannot be inverted; mend its header") from error
        raise UserError(f"{path} cannot be read; it may be damaged or not what its name says") from error


def _frames(image: sitk.Image, picture: bool) -> list[sitk.Image]:
    """Split a 4-D image, and one whose components are neither grey nor colour, into frames."""
    if image.GetDimension() == 4:
        return [image[..., index] for index in range(image.GetSize()[3])]
    components = image.GetNumberOfComponentsPerPixel()
    if components <= 4 and (picture or components in (1, 3)):
        return [image]
    return [sitk.VectorIndexSelectionCast(image, index) for index in range(components)]


def _colours(image: sitk.Image, path: Path) -> sitk.Image:
    """Return grey or 8-bit RGB: transparency is dropped, 16-bit colours are scaled."""
    components = image.GetNumberOfComponentsPerPixel()
    if components == 1:
        return image
    channels = [sitk.VectorIndexSelectionCast(image, index) for index in range(1 if components == 2 else 3)]
    if len(channels) == 1:
        return channels[0]
    kind = image.GetPixelIDValue()
    if kind == sitk.sitkVectorUInt16:
        channels = [sitk.Cast(channel / 257, sitk.sitkUInt8) for channel in channels]
    elif kind != sitk.sitkVectorUInt8:
        raise UserError(f"{path} has three numbers a voxel that are not 8-bit or 16-bit colours")
    return sitk.Compose(channels)


def _check_nifti(path: Path) -> None:
    """Refuse what SimpleITK would silently mend: a zero spacing, a singular or contradicting sform, voxels that are
    missing or damaged."""
    try:
        with _open(path) as file:
            header = file.read(348)
        order = "<" if header[:4] == struct.pack("<i", 348) else ">"

        def field(offset: int, form: str) -> tuple:
            return struct.unpack_from(order + form, header, offset)

        dimensions, *sizes = field(40, "8h")
        if not 1 <= dimensions <= 7 or min(sizes[:dimensions]) < 1:
            raise ValueError(f"sizes of {sizes[:dimensions]}")
        kind, bits = field(70, "2h")
        needed = math.prod(sizes[:dimensions]) * max(bits // 8, NIFTI_BYTES.get(kind, 1)) + int(field(108, "f")[0])
        spacing = field(80, "7f")[: min(3, max(1, dimensions))]
        qform_code, sform_code = field(252, "2h")
        placing = field(256, "6f")
        sform = np.reshape(field(280, "12f"), (3, 4))
        size = _check_whole(path, needed)
    except (OSError, EOFError, ValueError, OverflowError, struct.error, zlib.error) as error:
        raise UserError(f"{path} cannot be read; it may be damaged or not what its name says") from error
    if not np.isfinite(spacing).all() or 0 in spacing:
        raise UserError(f"{path} has a spacing of {spacing} mm; every spacing must be above zero, mend its header")
    if sform_code > 0 and (not np.isfinite(sform).all() or abs(np.linalg.det(sform[:, :3])) < 1e-9):
        raise UserError(f"{path} has a direction matrix (sform) that cannot be inverted; mend its header")
    if qform_code > 0 and not np.isfinite(placing).all():
        raise UserError(f"{path} has a place (qform) that is no number; mend its header")
    if size < needed:
        raise UserError(f"{path} ends before its last voxel; it is damaged, get it again")
    if sform_code > 0 and dimensions >= 3:
        _check_sform(path, sform, header[123] & 7)


def _check_sform(path: Path, sform: np.ndarray, units: int) -> None:
    """Refuse a NIfTI whose sform places voxels elsewhere than SimpleITK, which may prefer the qform."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return  # reading it gives the reason
    scale = NIFTI_UNITS_MM.get(units, 1.0)
    matrix = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:3, :3] * reader.GetSpacing()[:3]
    corners = np.array(list(product(*((0, size - 1) for size in reader.GetSize()[:3]))), float).T
    ours = matrix @ corners + np.reshape(reader.GetOrigin()[:3], (3, 1))
    theirs = RAS_TO_LPS @ (sform[:, :3] @ corners + sform[:, 3:]) * scale
    if np.abs(ours - theirs).max() > SFORM_TOLERANCE * min(reader.GetSpacing()[:3]):
        raise UserError(
            f"{path} places its voxels in two ways (sform and qform disagree, or axes are not at right angles); "
            "mend its header or resample it"
        )


def _check_whole(path: Path, needed: int) -> int:
    """Return the size of a file once unpacked; gzip's own checksum is proved on the way.

    Args:
        needed: what it should have by its header.

    Raises:
        OSError, EOFError, zlib.error: it is damaged.
        UserError: it goes on far beyond that.
    """
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    size, packed = 0, path.stat().st_size
    if packed * MOST_PACKED < needed:
        return packed
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            size += len(block)
            _check_excess(path, size, needed)
    return size


def _check_excess(path: Path, size: int, needed: int) -> None:
    """Refuse a small file that would be unpacked for hours."""
    if size > MOST_EXCESS * max(needed, 1 << 20):
        raise UserError(f"{path} unpacks to far more than its header says; it is damaged, get it again")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _check_picture(path: Path) -> None:
    """Refuse a picture whose end is missing, which SimpleITK would fill up, or that promises more than it holds."""
    most = MOST_PIXELS_A_BYTE * path.stat().st_size + SMALL_PICTURE
    try:
        with warnings.catch_warnings(), Bounded(path) as file, Image.open(file) as picture:
            warnings.simplefilter("ignore")  # what matters of them is an error here
            if math.prod(picture.size) * len(picture.getbands()) > most:
                raise UserError(
                    f"{path} promises {' × '.join(map(str, picture.size))} pixels, which it cannot hold"
                )
            picture.load()
    except Image.UnidentifiedImageError:
        return  # a kind that Pillow does not know; SimpleITK may
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has too many pixels for a picture; cut out what matters") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again") from error


def _check_compressed(path: Path) -> None:
    """Refuse an attached NRRD or a MetaImage whose compressed voxels are damaged or cut off."""
    content = path.read_bytes()
    nrrd = image_suffix(path) == ".nrrd"
    if nrrd and re.search(rb"^encoding: *gz", content[:100_000], re.MULTILINE | re.IGNORECASE):
        start, kind = content.find(b"\n\n") + 2, 31
    elif not nrrd and re.search(rb"^CompressedData *= *True", content[:100_000], re.MULTILINE | re.IGNORECASE):
        match = re.search(rb"^ElementDataFile *= *LOCAL\r?\n", content, re.MULTILINE)
        start, kind = match.end() if match else -1, 47
    else:
        return
    unpacker, size, needed = zlib.decompressobj(kind), 0, unpacked_bytes(path)
    try:
        rest = content[start:] if start > 1 else b""
        while rest:
            size += len(unpacker.decompress(rest, 1 << 24))
            _check_excess(path, size, needed)
            rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise UserError(f"{path} has damaged voxels ({error}); get it again") from error
    if start > 1 and not unpacker.eof:
        raise UserError(f"{path} ends before its last voxel; it is damaged, get it again")
