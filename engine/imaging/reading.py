"""Read any image file or DICOM series as volumes."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from engine.errors import UserError
from engine.imaging import metaimage, nifti, nrrd
from engine.imaging.dicom import archive
from engine.imaging.dicom.reading import open_file, open_folder
from engine.imaging.dicom.series import is_dicom, is_scan, pixel_bytes, series_folders
from engine.imaging.headers import split_header
from engine.imaging.images import raster_of
from engine.imaging.pictures import read_plain, upright
from engine.imaging.raster import Raster
from engine.imaging.volumes.volume import Volume
from engine.imaging.whole import check_picture, opened_picture

HALVES = (nifti.HEADER_SUFFIX, *nifti.VOXEL_SUFFIXES)  # a file of these belongs to another
NIFTI, NRRD, METAIMAGE = (".nii.gz", ".nii", *HALVES), (".nrrd", ".nhdr"), (".mha", ".mhd")
VOLUME_SUFFIXES = (".nii.gz", ".nii", nifti.HEADER_SUFFIX, *NRRD, *METAIMAGE)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a field of TIFF, and what it may say
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
        yield open_folder(path, series)
    elif archive.is_archive(path):
        with archive.unpacked(path) as folder:
            yield [_Unpacked(part) for part in open_folder(folder, series, path)]
    elif image_suffix(path) is not None:
        raster = read_raster(path)
        yield [_Frame(voxels, raster, path) for voxels in raster.frames(str(path))]
    elif is_dicom(path):
        yield open_file(path, series)
    elif path.name.lower().endswith(HALVES):
        raise UserError(f"{path} is one of two files that belong together, .hdr and .img; put the other beside it")
    else:
        raise UserError(f"{path} is no image that can be read; there are DICOM, {', '.join(IMAGE_SUFFIXES)}")


@dataclass(frozen=True)
class _Frame:
    voxels: np.ndarray
    raster: Raster
    path: Path
    title: str = ""

    def read(self, resample: bool) -> Volume:
        return Volume(self.voxels, **self.raster.geometry, name=self.path.name)


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


def read_raster(path: Path) -> Raster:
    """Read a file of one of `IMAGE_SUFFIXES`, all of whose voxels are there.

    Raises:
        UserError: the file is missing or damaged, or contradicts itself.
    """
    _check_there(path)
    _check_name(path)
    suffix = image_suffix(path)
    if suffix in NIFTI:
        return nifti.read_nifti(path)
    if suffix in METAIMAGE:
        return metaimage.read_metaimage(path)
    if suffix in NRRD:
        header = nrrd.read_header(path)
        nrrd.check_voxels(header)
        raster = raster_of(_read(path), colours=False if header.is_list else None)
        return replace(raster, spacing_known=header.says_spacing)
    check_picture(path)
    return _picture(path)


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take once they are read, as its header alone says.

    Raises:
        UserError: the header cannot be read.
    """
    _check_name(path)
    suffix = image_suffix(path)
    if suffix is None:
        return pixel_bytes(path)
    if suffix in NIFTI:
        return nifti.unpacked_bytes(path)
    if suffix in METAIMAGE:
        return metaimage.unpacked_bytes(path)
    if suffix in NRRD:
        nrrd.read_header(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        voxel = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    except RuntimeError as error:
        plain = _read_plain(path)
        if plain is None:
            raise UserError(f"{path} cannot be read; it may be damaged or not what its name says") from error
        return sitk.GetArrayViewFromImage(plain).nbytes
    return math.prod(reader.GetSize()) * voxel.GetNumberOfComponentsPerPixel() * voxel.GetSizeOfPixelComponent()


def names_other_files(path: Path) -> bool:
    """Whether a file says that its voxels are in others, which may be anywhere. Its suffix does not tell: the
    libraries follow any NRRD or MetaImage.

    Raises:
        UserError: it cannot be read, or its header has no end.
    """
    name = path.name.lower()
    if name.endswith(HALVES):
        return nifti.other_half(path) is not None
    if name.endswith(NRRD):
        head, _ = split_header(path, nrrd.END)
        return re.search(rb"^[ \t]*data ?file[ \t]*:", head, re.IGNORECASE | re.MULTILINE) is not None
    if name.endswith(METAIMAGE):
        head, _ = split_header(path, metaimage.END)
        places = re.findall(rb"^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)", head, re.IGNORECASE | re.MULTILINE)
        return any(place.strip().upper() != b"LOCAL" for place in places)
    return False


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
        suffix = image_suffix(path)
        if suffix in nifti.VOXEL_SUFFIXES:
            continue  # its header stands for both
        if suffix is not None or archive.is_archive(path):
            studies.add(path)
        elif is_dicom(path) and is_scan(path):
            slices.append(path)
    studies |= series_folders(slices)
    if not studies:
        raise UserError(f"{folder} holds no images; there are DICOM, {', '.join(IMAGE_SUFFIXES)}")
    return sorted(studies)


def image_suffix(path: Path) -> str | None:
    """Return the suffix of an image file that is not DICOM, such as ".nii.gz"; None for any other, and for one of
    two files that belong together without the other: anything may be called .img."""
    suffixes = (*IMAGE_SUFFIXES, *nifti.VOXEL_SUFFIXES)
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), None)
    return None if suffix in HALVES and nifti.other_half(path) is None else suffix


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


def _read(path: Path) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        message, plain = str(error), _read_plain(path)
        if plain is not None:
            return plain
        if NOT_ORTHOGONAL in message:
            raise UserError(
                f"{path} has axes that are not at right angles; resample it to a regular grid"
            ) from error
        if "spacing" in message:
            raise UserError(f"{path} has a spacing that is not above zero; mend its header") from error
        if "direction" in message.lower() or "determinant" in message.lower():
            raise UserError(f"{path} has a direction matrix that cannot be inverted; mend its header") from error
        raise UserError(f"{path} cannot be read; it may be damaged or not what its name says") from error


def _read_plain(path: Path) -> sitk.Image | None:
    if image_suffix(path) not in PICTURE_SUFFIXES:
        return None
    check_picture(path)
    return read_plain(path)


def _picture(path: Path) -> Raster:
    """Read a picture as viewers show it: turned as its EXIF says, and grey whose 0 is white turned round, so that
    bright is bright."""
    image = _read(path)
    shown = upright(image, path)
    raster = replace(raster_of(shown, colours=True), spacing_known=False)
    try:
        with opened_picture(path) as picture:
            inverted = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    except (OSError, SyntaxError, ValueError):
        return raster  # a kind that Pillow does not know
    done = shown is not image and raster.voxels.dtype == np.uint8  # by Pillow, which turns TIFFs upright
    if inverted and not done and raster.voxels.dtype.kind == "u" and raster.voxels.shape[-1] == 1:
        return replace(raster, voxels=np.iinfo(raster.voxels.dtype).max - raster.voxels)
    return raster
