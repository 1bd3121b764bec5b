"""Read any image file or DICOM series as volumes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import SimpleITK as sitk

from engine.errors import UserError
from engine.imaging.dicom import archive
from engine.imaging.dicom.reading import open_file, open_folder
from engine.imaging.dicom.series import is_dicom, is_scan, pixel_bytes, series_folders
from engine.imaging.headers import check_metaimage, check_nrrd, says_spacing
from engine.imaging.images import volume_from_image
from engine.imaging.nifti import check_nifti
from engine.imaging.volumes.volume import Volume
from engine.imaging.whole import check_compressed, check_picture

TEXT_HEADERS = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (".nii.gz", ".nii", *TEXT_HEADERS)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IMAGE_SUFFIXES = VOLUME_SUFFIXES + PICTURE_SUFFIXES
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
        frames = _frames(read_image(path), picture=image_suffix(path) in PICTURE_SUFFIXES)
        yield [_Image(image, path) for image in frames]
    elif is_dicom(path):
        yield open_file(path, series)
    else:
        raise UserError(f"{path} is no image that can be read; there are DICOM, {', '.join(IMAGE_SUFFIXES)}")


@dataclass(frozen=True)
class _Image:
    image: sitk.Image
    path: Path
    title: str = ""

    def read(self, resample: bool) -> Volume:
        suffix = image_suffix(self.path)
        unknown = suffix in PICTURE_SUFFIXES or (suffix in TEXT_HEADERS and not says_spacing(self.path))
        known = {"spacing_known": (False, False, False)} if unknown else {}
        return volume_from_image(_colours(self.image, self.path), name=self.path.name, **known)


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
        check_nifti(path)
    elif image_suffix(path) in (".nrrd", ".mha"):
        check_compressed(path, unpacked_bytes(path))
    elif image_suffix(path) in PICTURE_SUFFIXES:
        check_picture(path)
    return _read(path)


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take once they are read, as its header alone says.

    Raises:
        UserError: the header cannot be read.
    """
    _check_name(path)
    if image_suffix(path) is None:
        return pixel_bytes(path)
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
        elif is_dicom(path) and is_scan(path):
            slices.append(path)
    studies |= series_folders(slices)
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
