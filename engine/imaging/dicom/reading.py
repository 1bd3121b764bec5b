"""DICOM series: found by their UIDs in files and folders, and read as volumes."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import MediaStorageDirectoryStorage, SegmentationStorage

from engine.errors import UserError
from engine.imaging.dicom.files import UNREADABLE, read_header
from engine.imaging.dicom.pixels import check_size, declared_bytes, is_turned_round, read_values, storable_range
from engine.imaging.dicom.resampling import resampled
from engine.imaging.dicom.slices import Slice, slices_of
from engine.imaging.dicom.stacks import TELLING, Stack, separate
from engine.imaging.volumes.volume import Volume

HEADER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "DoseGridScaling",
    "WindowCenter",
    "WindowWidth",
    "VOILUTSequence",
    "GridFrameOffsetVector",
    "DetectorInformationSequence",
    "SliceVector",
    "TimeSlotVector",
    "RRIntervalVector",
    "EnergyWindowVector",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *TELLING,
)
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
NO_SCANS = (MediaStorageDirectoryStorage, SegmentationStorage)


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
    def folder(self) -> Path:
        """The innermost folder with all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    @property
    def title(self) -> str:
        """Number, description, modality and size, for people."""
        header = self.headers[0]
        size = f"{header.get('Columns')}×{header.get('Rows')}, {len(self.files)} files"
        return f"{self.number or '-'}: {self.description or 'no description'} ({header.get('Modality')}, {size})"


@dataclass(frozen=True, eq=False)
class Part:
    """One volume of a series, or one picture where nothing says how they lie; not read yet.

    Attributes:
        source: named in messages.
        placed: its slices have a place in the patient.
    """

    series: Series
    stack: Stack
    source: Path
    placed: bool

    @property
    def title(self) -> str:
        """What tells it from the others, for people; "" where only its number does."""
        count = len(self.stack.slices)
        return f"{self.stack.label}, {count} {'slice' if count == 1 else 'slices'}" if self.stack.label else ""

    def read(self, resample: bool = False) -> Volume:
        """Read it.

        Args:
            resample: put uneven slices, and those of a tilted gantry, onto a regular grid.

        Raises:
            UserError: its slices form no regular volume, and `resample` is false; or the voxels are damaged.
        """
        if not self.placed:
            return _picture(self.stack.slices[0], self._attributes())
        if resample:
            self.stack.check_apart(self.source)
        else:
            self.stack.spacing_mm(self.source)
        voxels = _voxels(self.stack.slices)
        if resample and len(self.stack.slices) > 1:
            voxels, spacing_mm, origin_mm = resampled(voxels, self.stack)
        else:
            rows_mm, columns_mm = self.stack.slices[0].pixel_spacing_mm
            spacing_mm = (float(columns_mm), float(rows_mm), self.stack.spacing_mm(self.source))
            origin_mm = tuple(map(float, self.stack.positions_mm[0]))
        direction = _direction(self.stack.slices[0].orientation)
        return Volume(voxels, spacing_mm, origin_mm, direction, stack=self.stack, **self._attributes())

    def _attributes(self) -> dict:
        middle = self.stack.slices[len(self.stack.slices) // 2].values
        modality = str(middle.get("Modality")) if middle.get("Modality") else None
        name = self.series.description or modality or "DICOM"
        sources = tuple(dict.fromkeys(s.file for s in self.stack.slices))
        return {"name": name, "modality": modality, "window": _window(middle), "sources": sources}


def is_dicom(path: Path) -> bool:
    """Return whether a file carries DICOM's mark "DICM" after its preamble, or begins like one without either."""
    head = _head(path)
    return head[128:] == b"DICM" or _is_bare(head)


def is_scan(path: Path) -> bool:
    """Return whether a DICOM file may be (a slice of) a scan: no directory, and no segmentation."""
    try:
        return _class_of(read_header(path, ["SOPClassUID"], force=True)) not in NO_SCANS
    except UNREADABLE:
        return True


def open_folder(folder: Path, series: str | None = None, source: Path | None = None) -> list[Part]:
    """Return the volumes of a series of a folder, or the frames of a cine.

    Series in the folder itself go before those in the folders below it.

    Args:
        series: its UID, its number, or a part of its description; needed where there are several.
        source: named in messages; the folder when None.

    Raises:
        UserError: no DICOM images; several series and none was chosen; a damaged header.
    """
    source = source or folder
    found = list_series(folder)
    if not found:
        raise UserError(f"{source} holds no DICOM images; name an image file, or a folder with a DICOM series")
    own = [s for s in found if s.folder == folder]
    chosen = (own or found) if series is None else _meant(own, series) or _meant(found, series)
    if len(chosen) != 1:
        reason = "several series" if chosen else f"no series '{series}'"
        listing = "; ".join(s.title for s in found)
        raise UserError(f"{source} holds {reason}; choose one with --series NUMBER, UID or DESCRIPTION: {listing}")
    return _parts(chosen[0], source)


def open_file(path: Path, series: str | None = None) -> list[Part]:
    """Return what a DICOM file holds (see `open_folder`); a DICOMDIR stands for its folder."""
    if not is_scan(path):
        if _class_of(read_header(path, ["SOPClassUID"], force=True)) == MediaStorageDirectoryStorage:
            return open_folder(path.parent, series)
        raise UserError(f"{path} is a segmentation, not a scan; name the scan that it belongs to")
    groups = _group([path])
    if len(groups) != 1:
        raise UserError(f"{path.name} holds no image; it may be damaged, or a report, a plan or a directory")
    return _parts(groups[0], Path(path.name))


def list_series(folder: Path) -> list[Series]:
    """Return the series with images in a folder and the folders below it, by number."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path))
    found = _group(files)
    return sorted(found, key=lambda series: (len(series.number), series.number, series.uid))


def series_folders(files: Iterable[Path]) -> set[Path]:
    """Return the innermost folder with all files of each series; for damaged files their own."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        try:
            header = read_header(path, ["SeriesInstanceUID"], force=True)
            uid = str(header.get("SeriesInstanceUID", ""))
        except UNREADABLE:
            uid = ""
        places[uid or str(path.parent)].append(path.parent)
    return {Path(os.path.commonpath(folders)) for folders in places.values()}


def unpacked_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a DICOM file take once they are read, as its header says.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        header = read_header(path, HEADER_TAGS, force=True)
        colours = 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else 1
        return declared_bytes(header) * colours * (1 if "RescaleSlope" not in header else 2)
    except UNREADABLE as error:
        raise UserError(f"{path} has a header that cannot be read; it may be damaged") from error


def _class_of(header: pydicom.Dataset) -> str:
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def _is_bare(head: bytes) -> bool:
    """Return whether a file without a preamble begins with group 0008, explicitly typed or with a short length."""
    if len(head) < 132 or head[128:] == b"DICM" or head[:2] != b"\x08\x00" or head[3] != 0:
        return False
    return head[4:6] in (b"UL", b"CS", b"DA", b"UI") or 0 < int.from_bytes(head[4:8], "little") <= 64


def _group(files: Iterable[Path]) -> list[Series]:
    """Return the series of the files that are scans, in the order in which each is met first."""
    groups: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    damaged: list[Path] = []
    for path in files:
        bare = _is_bare(_head(path))
        try:
            header = read_header(path, HEADER_TAGS, force=bare)
            if _class_of(header) in NO_SCANS:
                continue
            is_image = bool(header.get("Rows") and header.get("Columns"))
            lost = not header.get("SOPClassUID") or _is_image_class(header)
        except UNREADABLE:
            is_image, lost = False, is_scan(path)
        if is_image:
            check_size(path, header)
            groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
        elif lost and not bare:
            damaged.append(path)
    if damaged and groups:
        raise UserError(f"{damaged[0]} is damaged, and may be a slice of the series beside it; get it again")
    return [Series(uid, *map(tuple, zip(*_without_copies(m), strict=True))) for uid, m in groups.items()]


def _is_image_class(header: pydicom.Dataset) -> bool:
    """Return whether an object without an image is of a class that should have one; DICOMDIR, reports, plans and
    presentation states are of others."""
    return "Image Storage" in pydicom.uid.UID(header.SOPClassUID).name


def _without_copies(members: list[tuple[Path, pydicom.Dataset]]) -> list[tuple[Path, pydicom.Dataset]]:
    """Leave out files that are there twice, bit by bit.

    Raises:
        UserError: two have one SOPInstanceUID (0008,0018) and differ.
    """
    kept: dict[str, tuple[Path, pydicom.Dataset]] = {}
    for path, header in members:
        uid = str(header.get("SOPInstanceUID") or path)
        if uid not in kept:
            kept[uid] = (path, header)
        elif not filecmp.cmp(kept[uid][0], path, shallow=False):
            raise UserError(
                f"{kept[uid][0]} and {path} claim to be the same slice (SOPInstanceUID) and differ; remove one"
            )
    return list(kept.values())


def _meant(found: list[Series], wanted: str) -> list[Series]:
    exact = [series for series in found if wanted in (series.uid, series.number)]
    return exact or [series for series in found if wanted.lower() in series.description.lower()]


def _parts(series: Series, source: Path) -> list[Part]:
    try:
        slices = [s for pair in zip(series.files, series.headers, strict=True) for s in slices_of(*pair)]
        if not any(s.is_placed for s in slices) or len(slices) == 1:
            several = len(series.files) > 1
            labels = [s.name if several else "" for s in slices]
            pairs = zip(slices, labels, strict=True)
            return [Part(series, Stack((s,), label), source, placed=False) for s, label in pairs]
        return [Part(series, stack, source, placed=True) for stack in separate(slices)]
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except UNREADABLE as error:
        raise UserError(f"{source} has a damaged header ({error}); get it again") from error


def _voxels(slices: Sequence[Slice]) -> np.ndarray:
    """Return the voxels of slices in their order; each file is read once, and each plane is kept once."""
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, slice_ in enumerate(slices):
        by_file[slice_.file].append(index)
    voxels = None
    for file, indices in by_file.items():
        chosen = [slices[index] for index in indices]
        planes = read_values(file, [s.frame for s in chosen], [s.values for s in chosen])
        kind = planes.dtype if voxels is None else np.result_type(voxels, planes)
        kind = np.dtype(np.float32) if kind == np.float64 else kind
        if voxels is None:
            voxels = np.empty((len(slices), *planes.shape[1:]), kind)
        voxels = voxels.astype(kind, copy=False)
        voxels[indices] = planes
    return voxels


def _picture(slice_: Slice, attributes: dict) -> Volume:
    """Read a single slice; what it does not say of its place is taken as the simplest."""
    rows_mm, columns_mm, thickness_mm = 1.0, 1.0, Stack((slice_,)).spacing_mm(slice_.name)
    keyword = next((key for key in SPACINGS if slice_.values.get(key)), None)
    if keyword:
        rows_mm, columns_mm = map(float, slice_.spacing_by(keyword))
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    if slice_.values.get("ImageOrientationPatient"):
        direction = _direction(slice_.orientation)
    origin_mm = (0.0, 0.0, 0.0)
    if slice_.values.get("ImagePositionPatient"):
        origin_mm = tuple(map(float, slice_.position_mm))
    return Volume(_voxels([slice_]), (columns_mm, rows_mm, thickness_mm), origin_mm, direction, **attributes)


def _direction(orientation: np.ndarray) -> tuple[float, ...]:
    """Return the direction matrix (nine numbers) of ImageOrientationPatient (0020,0037)."""
    rows, columns = orientation[:3], orientation[3:]
    return tuple(np.stack([rows, columns, np.cross(rows, columns)], axis=1).ravel().tolist())


def _window(values: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the first of a slice's windows, or the span in which its VOI LUT (0028,3010) rises, for the values as
    they are read."""
    window = _linear_window(values) or _span_of_lut(values)
    if window and is_turned_round(values):
        return (sum(storable_range(values, values)) - window[0], window[1])
    return window


def _linear_window(values: pydicom.Dataset) -> tuple[float, float] | None:
    try:
        center, width = (float(np.ravel(values[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return (center, width) if width > 0 and np.isfinite([center, width]).all() else None


def _span_of_lut(values: pydicom.Dataset) -> tuple[float, float] | None:
    try:
        table = values.VOILUTSequence[0]
        first, output = float(table.LUTDescriptor[1]), np.asarray(table.LUTData, float).ravel()
        low = first + np.flatnonzero(output == output[0])[-1]
        high = first + np.flatnonzero(output == output[-1])[0]
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return ((low + high) / 2, high - low) if high > low else None
