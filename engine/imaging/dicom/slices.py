"""The single slices of DICOM files, classic or multi-frame, each with its place in the patient."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from engine.errors import UserError
from engine.imaging.dicom.groups import attributes_of_frame
from engine.imaging.dicom.mosaics import Tile, tiles_of

RECONSTRUCTED = ("RECON TOMO", "RECON GATED TOMO")  # image types of NM whose frames are slices
NM_VECTORS = {  # what else parts the frames of NM, and by which attribute of other images that is told
    "TimeSlotVector": "TemporalPositionIndex",
    "RRIntervalVector": "TriggerTime",
    "EnergyWindowVector": "EchoNumbers",
}

PLACING = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice.

    Attributes:
        frame: its number in the file, from 0.
        values: the file's header, for a multi-frame file with what is this frame's own put over it.
        tile: where it is in the frame, for a mosaic.
    """

    file: Path
    frame: int
    values: pydicom.Dataset
    tile: Tile | None = None

    @property
    def name(self) -> str:
        """For people: the file, and the frame of one with several."""
        if self.tile:
            return f"{self.file.name} tile {self.tile.number}"
        several = int(self.values.get("NumberOfFrames") or 1) > 1
        return f"{self.file.name} frame {self.frame}" if several else self.file.name

    @property
    def is_placed(self) -> bool:
        """Whether it says where it lies at all."""
        return bool(self.values.get("ImagePositionPatient"))

    @property
    def is_complete(self) -> bool:
        """Whether it says all that places its pixels."""
        return all(self.values.get(keyword) for keyword in PLACING)

    @property
    def kind(self) -> tuple:
        """What the slices of one volume have in common: class and size."""
        return (self.values.get("SOPClassUID"), *self.size)

    @property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns, samples."""
        return (int(self.values.Rows), int(self.values.Columns), int(self.values.get("SamplesPerPixel") or 1))

    @property
    def position_mm(self) -> np.ndarray:
        return self._numbers("ImagePositionPatient", 3, "position")

    @property
    def orientation(self) -> np.ndarray:
        """The directions of a row and of a column, six numbers: made exact where few digits are written."""
        values = self._numbers("ImageOrientationPatient", 6, "orientation")
        rows, columns = values[:3], values[3:]
        if abs(rows @ columns) > 1e-3 or np.abs([rows @ rows - 1, columns @ columns - 1]).max() > 1e-2:
            raise UserError(f"{self.name} has image axes that are not at right angles (ImageOrientationPatient)")
        rows = rows / np.linalg.norm(rows)
        columns = columns - (columns @ rows) * rows
        return np.concatenate([rows, columns / np.linalg.norm(columns)])

    @property
    def normal(self) -> np.ndarray:
        """The direction across the slice."""
        rows, columns = np.split(self.orientation, 2)
        return np.cross(rows, columns)

    @property
    def pixel_spacing_mm(self) -> np.ndarray:
        """The distances of rows and of columns."""
        return self.spacing_by("PixelSpacing")

    def spacing_by(self, keyword: str) -> np.ndarray:
        """Return the distances of rows and of columns in mm that an attribute says."""
        return self._numbers(keyword, 2, "pixel spacing")

    def _numbers(self, keyword: str, count: int, words: str) -> np.ndarray:
        try:
            numbers = np.array([float(value) for value in self.values[keyword].value])
        except (KeyError, TypeError, ValueError):
            numbers = np.empty(0)
        valid = len(numbers) == count and np.isfinite(numbers).all()
        if not valid or (words == "pixel spacing" and numbers.min() <= 0):
            raise UserError(f"{self.name} is a slice without a valid {words} ({keyword}); mend its header")
        return numbers


def slices_of(file: Path, header: pydicom.Dataset) -> list[Slice]:
    """Return the slices of a file: one, or one for each frame, or for each tile of a mosaic.

    Frames are placed by their functional groups (enhanced images), by GridFrameOffsetVector (doses) or by
    SliceVector (reconstructed NM); frames of other files have no place (cines).
    """
    count = int(header.get("NumberOfFrames") or 1)
    if header.get("PerFrameFunctionalGroupsSequence"):
        return _grouped(file, header)
    if count == 1 and not _is_reconstructed(header):
        return [_tiled(file, header, tile) for tile in tiles_of(file, header)] or [Slice(file, 0, header)]
    frames = []
    for number in range(count):
        values = _copy(header)
        position = _frame_position(header, number)
        if position is None:
            values.pop("ImagePositionPatient", None)
        else:
            _put(values, "ImagePositionPatient", [float(v) for v in position])
            _put(values, "ImageOrientationPatient", _first_place(header)[1])
        _mark(values, header, number)
        frames.append(Slice(file, number, values))
    return frames


def _tiled(file: Path, header: pydicom.Dataset, tile: Tile) -> Slice:
    values = _copy(header)
    _put(values, "Rows", tile.rows.stop - tile.rows.start)
    _put(values, "Columns", tile.columns.stop - tile.columns.start)
    _put(values, "ImagePositionPatient", [float(v) for v in tile.position_mm])
    return Slice(file, 0, values, tile)


def _put(values: pydicom.Dataset, keyword: str, value: object) -> None:
    """Set a value in a copy, and leave the element alone that it shares with others."""
    values.pop(keyword, None)
    setattr(values, keyword, value)


def _grouped(file: Path, header: pydicom.Dataset) -> list[Slice]:
    """Return the frames of an enhanced image: over the header what the functional groups say of each."""
    shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    own = list(header.PerFrameFunctionalGroupsSequence)
    count = int(header.get("NumberOfFrames") or 1)
    if len(own) != count:
        raise UserError(f"{file} has {count} frames and describes {len(own)}; it is damaged, get it again")
    frames = []
    for number, group in enumerate(own):
        values = _copy(header)
        values.update(attributes_of_frame(shared[0], group))
        _place_ultrasound(values)
        frames.append(Slice(file, number, values))
    return frames


def _copy(header: pydicom.Dataset) -> pydicom.Dataset:
    """Return a copy without the functional groups, whose elements are shared."""
    values = pydicom.Dataset()
    values.update({e.tag: e for e in header if "FunctionalGroups" not in e.keyword})
    return values


def _place_ultrasound(values: pydicom.Dataset) -> None:
    """Take the place in an ultrasound volume's own frame (PS3.3 C.8.24.3), where there is none in the patient."""
    if "ImagePositionVolume" in values and "ImagePositionPatient" not in values:
        _put(values, "ImagePositionPatient", values.ImagePositionVolume)
        _put(values, "ImageOrientationPatient", values.ImageOrientationVolume)


def _is_reconstructed(header: pydicom.Dataset) -> bool:
    kinds = header.get("ImageType") or []
    return header.get("Modality") == "NM" and len(kinds) > 2 and kinds[2] in RECONSTRUCTED


def _first_place(header: pydicom.Dataset) -> tuple[list | None, list | None]:
    """Return position and orientation of the first frame; NM keeps them with the detector."""
    holder = header
    if header.get("DetectorInformationSequence") and "ImagePositionPatient" not in header:
        holder = header.DetectorInformationSequence[0]
    return holder.get("ImagePositionPatient"), holder.get("ImageOrientationPatient")


def _frame_position(header: pydicom.Dataset, number: int) -> np.ndarray | None:
    """Return where a frame without functional groups lies; None where nothing says so."""
    offset = None
    offsets = header.get("GridFrameOffsetVector")
    if header.get("Modality") == "RTDOSE" and offsets is not None:  # PS3.3 C.8.8.3.2
        offset = float(np.ravel(offsets)[number]) - float(np.ravel(offsets)[0])
    elif _is_reconstructed(header) and "SpacingBetweenSlices" in header:  # PS3.3 C.8.4.8, C.8.4.15
        slices = header.get("SliceVector")
        index = number if slices is None else int(np.ravel(slices)[number]) - 1
        offset = index * float(header.SpacingBetweenSlices)
    position, orientation = _first_place(header)
    if offset is None or position is None or orientation is None or len(position) != 3 or len(orientation) != 6:
        return None
    numbers = np.array([float(v) for v in orientation])
    return np.array([float(v) for v in position]) + offset * np.cross(numbers[:3], numbers[3:])


def _mark(values: pydicom.Dataset, header: pydicom.Dataset, number: int) -> None:
    """Note the time slot, the interval and the energy window of a frame of NM, which part its volumes."""
    for vector, keyword in NM_VECTORS.items():
        if vector in header:
            _put(values, keyword, int(np.ravel(header[vector].value)[number]))
