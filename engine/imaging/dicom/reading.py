"""DICOM series as volumes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom

from engine.errors import UserError
from engine.imaging.dicom.files import UNREADABLE
from engine.imaging.dicom.pixels import is_turned_round, read_values, storable_range
from engine.imaging.dicom.regions import spacing_of_regions
from engine.imaging.dicom.resampling import resampled
from engine.imaging.dicom.series import Series, find_series, group_by_series, is_directory, is_scan, kind_of
from engine.imaging.dicom.slices import Slice, slices_of
from engine.imaging.dicom.stacks import Stack, separate
from engine.imaging.volumes.volume import Volume

SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


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
        known = (True, True, len(self.stack.slices) > 1 or self.stack.thickness_mm is not None)
        attributes = {"stack": self.stack, "spacing_known": known, **self._attributes()}
        return Volume(voxels, spacing_mm, origin_mm, direction, **attributes)

    def _attributes(self) -> dict:
        middle = self.stack.slices[len(self.stack.slices) // 2].values
        modality = str(middle.get("Modality")) if middle.get("Modality") else None
        name = self.series.description or modality or "DICOM"
        sources = tuple(dict.fromkeys(s.file for s in self.stack.slices))
        return {"name": name, "modality": modality, "window": _window(middle), "sources": sources}


def open_folder(folder: Path, series: str | None = None, source: Path | None = None) -> list[Part]:
    """Return the volumes of a series of a folder, or the frames of a cine; arguments as of `find_series`."""
    source = source or folder
    return _parts(find_series(folder, series, source), source)


def open_file(path: Path, series: str | None = None) -> list[Part]:
    """Return what a DICOM file holds (see `open_folder`); a DICOMDIR stands for its folder."""
    if not is_scan(path):
        if is_directory(path):
            return open_folder(path.parent, series)
        kind = kind_of(path)
        what = "segmentation" if "Segmentation" in kind else f"DICOM object without an image ({kind})"
        raise UserError(f"{path} is a {what}, not a scan; name the scan that it belongs to")
    groups = group_by_series([path])
    if len(groups) != 1:
        raise UserError(f"{path.name} holds no image; it may be damaged, or an object of another kind")
    return _parts(groups[0], Path(path.name))


def _parts(series: Series, source: Path) -> list[Part]:
    try:
        slices = [s for pair in zip(series.files, series.headers, strict=True) for s in slices_of(*pair)]
        placed, pictures = _placed_and_pictures(slices)
        stacks = separate(placed)
        if stacks and pictures:
            stacks = [replace(stack, label=stack.label or "slices with a place") for stack in stacks]
        named = len(series.files) > 1 or bool(stacks)
        parts = [Part(series, stack, source, placed=True) for stack in stacks]
        return parts + [Part(series, Stack((s,), s.name if named else ""), source, placed=False) for s in pictures]
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(source)) else f"{source}: {error}") from error
    except UNREADABLE as error:
        raise UserError(f"{source} has a damaged header ({error}); get it again") from error


def _placed_and_pictures(slices: Sequence[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Return the slices with a place, and the pictures without one. Pictures of another kind than the slices beside
    them, such as screenshots and dose pages, are left out."""
    placed = [s for s in slices if s.is_placed]
    if len(slices) == 1 or not placed:
        return [], list(slices)
    whole = [s for s in placed if s.is_complete] or placed
    kinds = {s.kind for s in whole}
    alike = [s for s in slices if s.is_complete or s.kind in kinds]
    return [s for s in alike if s.is_placed], [s for s in alike if not s.is_placed]


def _voxels(slices: Sequence[Slice]) -> np.ndarray:
    """Return the voxels of slices in their order; each file is read once, and each plane is kept once."""
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, slice_ in enumerate(slices):
        by_file[slice_.file].append(index)
    voxels = None
    for file, indices in by_file.items():
        planes = _planes(file, [slices[index] for index in indices])
        kind = planes.dtype if voxels is None else np.result_type(voxels, planes)
        kind = np.dtype(np.float32) if kind == np.float64 else kind
        if voxels is None:
            voxels = np.empty((len(slices), *planes.shape[1:]), kind)
        voxels = voxels.astype(kind, copy=False)
        voxels[indices] = planes
    return voxels


def _planes(file: Path, slices: Sequence[Slice]) -> np.ndarray:
    """Return the voxels of slices of one file."""
    frames = {s.frame: s for s in slices}
    planes = read_values(file, list(frames), [s.values for s in frames.values()])
    if not slices[0].tile:
        return planes
    return np.stack([planes[0][s.tile.rows, s.tile.columns] for s in slices])


def _picture(slice_: Slice, attributes: dict) -> Volume:
    """Read a single slice; what it does not say of its place is taken as the simplest."""
    keyword = next((key for key in SPACINGS if slice_.values.get(key)), None)
    said = slice_.spacing_by(keyword) if keyword else spacing_of_regions(slice_.values)
    rows_mm, columns_mm = (1.0, 1.0) if said is None else map(float, said)
    thickness_mm = Stack((slice_,)).thickness_mm
    known = (said is not None, said is not None, thickness_mm is not None)
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    if slice_.values.get("ImageOrientationPatient"):
        direction = _direction(slice_.orientation)
    origin_mm = (0.0, 0.0, 0.0)
    if slice_.values.get("ImagePositionPatient"):
        origin_mm = tuple(map(float, slice_.position_mm))
    spacing_mm = (columns_mm, rows_mm, thickness_mm or 1.0)
    return Volume(_voxels([slice_]), spacing_mm, origin_mm, direction, spacing_known=known, **attributes)


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
