"""DICOM series: found by their UIDs, sorted by position, checked, and read as volumes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from engine.errors import UserError
from engine.imaging.volume import Volume, volume_from_image

HEADER_TAGS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "PhotometricInterpretation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
UNEVEN_MM = 0.05  # positions are written with a few digits; a missing slice differs by far more


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID (0020,000E), each with its header."""

    uid: str
    files: tuple[Path, ...]
    headers: tuple[pydicom.Dataset, ...]

    @property
    def number(self) -> str:
        return str(self.headers[0].get("SeriesNumber", "") or "")

    @property
    def description(self) -> str:
        return str(self.headers[0].get("SeriesDescription", "") or "")

    @property
    def title(self) -> str:
        """Number, description, modality and size, for people."""
        header = self.headers[0]
        size = f"{header.get('Columns')}×{header.get('Rows')}, {len(self.files)} files"
        return f"{self.number or '-'}: {self.description or 'no description'} ({header.get('Modality')}, {size})"


def is_dicom(path: Path) -> bool:
    """Return whether a file carries DICOM's mark "DICM" after its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_series(folder: Path) -> list[Series]:
    """Return the series with images in a folder and the folders below it, by number."""
    found = _group(path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path))
    return sorted(found, key=lambda series: (len(series.number), series.number, series.uid))


def read_folder(folder: Path, series: str | None = None) -> list[Volume]:
    """Read a series of a folder as a list of one volume, or of the frames of a cine.

    Args:
        series: its UID, its number, or a part of its description; needed where there are several.

    Raises:
        UserError: no DICOM images; several series and none was chosen; slices that form no even volume.
    """
    found = list_series(folder)
    if not found:
        raise UserError(f"{folder} holds no DICOM images; name an image file, or a folder with a DICOM series")
    chosen = found if series is None else _meant(found, series)
    if len(chosen) != 1:
        reason = "several series" if chosen else f"no series '{series}'"
        listing = "; ".join(s.title for s in found)
        raise UserError(f"{folder} holds {reason}; choose one with --series NUMBER, UID or DESCRIPTION: {listing}")
    return _read_series(chosen[0], folder)


def read_files(files: Sequence[Path], name: str) -> list[Volume]:
    """Read DICOM files of one series (see `read_folder`)."""
    groups = _group(files)
    if len(groups) != 1:
        raise UserError(f"{name} holds no image; it may be damaged, or a report, a plan or a directory")
    return _read_series(groups[0], Path(name))


def _group(files) -> list[Series]:
    groups: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    damaged: list[Path] = []
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        except (InvalidDicomError, OSError, ValueError, EOFError, AttributeError, KeyError, NotImplementedError):
            damaged.append(path)
            continue
        if header.get("Modality") == "SEG":
            continue  # a result that was written beside its scan
        if header.get("Rows") and header.get("Columns"):
            groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
        elif not header.get("SOPClassUID") or _is_image_class(header):
            damaged.append(path)
    if damaged and groups:
        raise UserError(f"{damaged[0]} is damaged, and may be a slice of the series beside it; get it again")
    return [Series(uid, *map(tuple, zip(*members, strict=True))) for uid, members in groups.items()]


def _is_image_class(header: pydicom.Dataset) -> bool:
    """Return whether an object without an image is of a class that should have one; DICOMDIR, reports, plans and
    presentation states are of others."""
    return "Image Storage" in pydicom.uid.UID(header.SOPClassUID).name


def _meant(found: list[Series], wanted: str) -> list[Series]:
    exact = [series for series in found if wanted in (series.uid, series.number)]
    return exact or [series for series in found if wanted.lower() in series.description.lower()]


def _read_series(series: Series, source: Path) -> list[Volume]:
    header = series.headers[0]
    attributes = {
        "name": series.description or str(header.get("Modality") or "DICOM"),
        "modality": str(header.get("Modality")) if header.get("Modality") else None,
        "window": _window(header),
        "sources": series.files,
    }
    if len(series.files) > 1:
        image = _read_slices(series, source)
    else:
        image = _read_image(series.files[0])
        if image.GetDimension() == 3 and image.GetDepth() > 1:
            image = _place_frames(image, header, source)
            if image is None:
                return _cine(_read_image(series.files[0]), attributes)
    return [volume_from_image(_drop_flatness(image), **attributes)]


def _read_slices(series: Series, source: Path) -> sitk.Image:
    positions, orientation, pixel_spacing = _places(series, source)
    if len({(h.Rows, h.Columns) for h in series.headers}) > 1:
        raise UserError(f"{source} has slices of different sizes in series {series.title}; separate them first")
    order, spacing_mm = _order(positions, orientation, source)
    files = [str(series.files[index]) for index in order]
    slopes = {(str(h.get("RescaleSlope", "")), str(h.get("RescaleIntercept", ""))) for h in series.headers}
    try:
        # a series is read in the type of its first slice, which does not hold what another slope makes
        image = sitk.ReadImage(files) if len(slopes) == 1 else sitk.ReadImage(files, sitk.sitkFloat32)
    except RuntimeError as error:
        raise UserError(f"{source} has pixel data that cannot be decoded in series {series.title}") from error
    return _placed(image, positions[order[0]], pixel_spacing, orientation, spacing_mm)


def _places(series: Series, source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the position of each slice, and the orientation and the pixel spacing that all share.

    Raises:
        UserError: a slice lacks one of them, or they differ.
    """
    positions = [_attribute(h, "ImagePositionPatient", 3, "position", source) for h in series.headers]
    orientations = [_attribute(h, "ImageOrientationPatient", 6, "orientation", source) for h in series.headers]
    spacings = [_attribute(h, "PixelSpacing", 2, "pixel spacing", source) for h in series.headers]
    for name, values in (("orientations", orientations), ("spacings", spacings)):
        if np.abs(np.array(values) - values[0]).max() > 1e-3:
            raise UserError(
                f"{source} has slices of different {name} in series {series.title}; separate them first"
            )
    _check_right_angles(orientations[0], source)
    return np.array(positions), orientations[0], spacings[0]


def _attribute(header: pydicom.Dataset, name: str, count: int, words: str, source: Path) -> np.ndarray:
    try:
        values = np.array([float(value) for value in header[name].value])
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise UserError(f"{source} has a slice without a valid {words} ({name}); read its slices one by one")
    return values


def _check_right_angles(orientation: np.ndarray, source: Path) -> None:
    rows, columns = orientation[:3], orientation[3:]
    if abs(rows @ columns) > 1e-3 or np.abs([rows @ rows - 1, columns @ columns - 1]).max() > 1e-2:
        raise UserError(f"{source} has image axes that are not at right angles (ImageOrientationPatient)")


def _read_image(path: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise UserError(f"{path} has pixel data that cannot be decoded; it may be damaged") from error


def _order(positions: Sequence, orientation: np.ndarray, source: Path) -> tuple[np.ndarray, float]:
    """Return the order of slices along their normal, and their distance.

    Raises:
        UserError: two slices at one place, or uneven distances.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.array([[float(v) for v in position] for position in positions])
    along = places @ normal
    order = np.argsort(along)
    steps = np.diff(along[order])
    if steps.min() < UNEVEN_MM:
        where = along[order][int(steps.argmin())]
        raise UserError(
            f"{source} has two slices at {where:.2f} mm along the normal; separate acquisitions or echoes"
        )
    usual, spacing = float(np.median(steps)), float(steps.mean())
    even = along[order][0] + spacing * np.arange(len(order))
    if np.abs(steps - usual).max() > UNEVEN_MM or np.abs(along[order] - even).max() > UNEVEN_MM:
        index = int(np.abs(steps - usual).argmax())
        below, above = along[order][index : index + 2]
        raise UserError(
            f"{source} has uneven slices: {above - below:.2f} mm lie between those at {below:.2f} and "
            f"{above:.2f} mm, and {usual:.2f} mm elsewhere; a slice is missing, or the series has to be resampled"
        )
    straight = places[order][0] + np.outer(along[order] - along[order][0], normal)
    if np.abs(places[order] - straight).max() > UNEVEN_MM:
        raise UserError(
            f"{source} has a tilted gantry (slices are shifted sideways); resample it to a regular grid"
        )
    return order, spacing


def _placed(image: sitk.Image, position, pixel_spacing, orientation: np.ndarray, spacing_mm: float) -> sitk.Image:
    """Set the grid from DICOM: (0020,0032), (0028,0030) as row then column distance, (0020,0037)."""
    rows_mm, columns_mm = (float(v) for v in pixel_spacing)
    normal = np.cross(orientation[:3], orientation[3:])
    image.SetSpacing((columns_mm, rows_mm, spacing_mm))
    image.SetOrigin([float(v) for v in position])
    image.SetDirection(np.stack([orientation[:3], orientation[3:], normal], axis=1).ravel().tolist())
    return image


def _place_frames(image: sitk.Image, header: pydicom.Dataset, source: Path) -> sitk.Image | None:
    """Sort the frames of an enhanced multi-frame image by their positions; None where they have none."""
    try:
        shared = header.SharedFunctionalGroupsSequence[0]
        frames = list(header.PerFrameFunctionalGroupsSequence)
        positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
        orientations = np.array(
            [_group_item(f, shared, "PlaneOrientationSequence").ImageOrientationPatient for f in frames]
        )
        pixel_spacing = _group_item(frames[0], shared, "PixelMeasuresSequence").PixelSpacing
    except (AttributeError, IndexError, KeyError):
        return None
    slopes = {_frame_slope(frame, shared) for frame in frames}
    if len(slopes) > 1:
        raise UserError(f"{source} has frames of different rescale slopes; convert it to single slices first")
    if np.abs(orientations.astype(float) - orientations[0].astype(float)).max() > 1e-3:
        raise UserError(f"{source} has frames of different orientations; separate them first")
    orientation = orientations[0].astype(float)
    order, spacing_mm = _order(positions, orientation, source)
    voxels = sitk.GetArrayFromImage(image)[order]
    sorted_image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
    return _placed(sorted_image, positions[order[0]], pixel_spacing, orientation, spacing_mm)


def _frame_slope(frame: pydicom.Dataset, shared: pydicom.Dataset) -> tuple[str, str]:
    try:
        values = _group_item(frame, shared, "PixelValueTransformationSequence")
    except (KeyError, IndexError):
        return ("", "")
    return (str(values.get("RescaleSlope", "")), str(values.get("RescaleIntercept", "")))


def _group_item(frame: pydicom.Dataset, shared: pydicom.Dataset, sequence: str) -> pydicom.Dataset:
    return (frame if sequence in frame else shared)[sequence][0]


def _cine(image: sitk.Image, attributes: dict) -> list[Volume]:
    frames = [image[:, :, index : index + 1] for index in range(image.GetDepth())]
    return [volume_from_image(frame, **attributes) for frame in frames]


def _drop_flatness(image: sitk.Image) -> sitk.Image:
    return sitk.JoinSeries(image) if image.GetDimension() == 2 else image


def _window(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the first of the file's windows; none for MONOCHROME1 (0028,0004), whose values SimpleITK inverts so
    that dense is bright."""
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        return None
    try:
        center, width = (np.ravel(header[tag].value)[0] for tag in ("WindowCenter", "WindowWidth"))
        return (float(center), float(width)) if float(width) > 0 else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None
