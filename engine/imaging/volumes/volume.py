"""A volume: voxels with their place in the patient."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError

SMALLEST_DETERMINANT = 1e-3  # of a direction matrix; a true one has 1 or -1


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a grid in patient coordinates (LPS, mm). An invalid one cannot be built.

    Attributes:
        voxels: (z, y, x) of a real dtype, or (z, y, x, 3) uint8 RGB: SimpleITK's array order.
        spacing_mm: distances of neighbours along x, y, z.
        origin_mm: place of voxel (0, 0, 0).
        direction: nine numbers, row by row; the columns are the directions of x, y, z (SimpleITK's order).
        name: shown to people; never a patient's name.
        modality: DICOM (0008,0060) where known, such as "CT" or "MR".
        window: the file's own (center, width), DICOM (0028,1050) and (0028,1051).
        flat: a 2-D picture, which is written back as one.
        spacing_known: for x, y, z, whether its distance is known; 1 mm stands in for one that is not.
        sources: the DICOM files of the slices, or the one with all of them, in any order; none for other formats.
        stack: the DICOM slices that it was made of, with their places: a `Stack` of `imaging/dicom/stacks.py`.
            They are those of z unless it was resampled.

    Raises:
        UserError: the voxels are of the wrong form, empty, NaN or infinite, or the geometry is degenerate.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    name: str = "volume"
    modality: str | None = None
    window: tuple[float, float] | None = None
    flat: bool = False
    spacing_known: tuple[bool, bool, bool] = (True, True, True)
    sources: tuple[Path, ...] = ()
    stack: Any = None

    def __post_init__(self) -> None:
        shape = self.voxels.shape
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
            raise UserError(
                f"{self.name} has voxels of shape {shape}; a volume is (z, y, x), or (z, y, x, 3) for RGB"
            )
        if self.voxels.dtype.kind not in "biuf":
            raise UserError(
                f"{self.name} has voxels of type {self.voxels.dtype}; only real numbers can be segmented"
            )
        if self.voxels.dtype.kind == "f" and not np.isfinite(self.voxels).all():
            count = int((~np.isfinite(self.voxels)).sum())
            raise UserError(f"{self.name} has {count} voxels that are NaN or infinite; replace them first")
        check_geometry(self.name, self.spacing_mm, self.origin_mm, self.direction)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes along z, y, x."""
        return self.voxels.shape[:3]

    @property
    def is_rgb(self) -> bool:
        return self.voxels.ndim == 4

    @property
    def voxel_volume_ml(self) -> float | None:
        """None where a distance is not known, as of pictures: nobody can say how large their voxels are."""
        if not all(self.spacing_known):
            return None
        return float(np.prod(self.spacing_mm) * abs(np.linalg.det(self.direction_matrix)) / 1000)

    @property
    def direction_matrix(self) -> np.ndarray:
        """(3, 3): the columns are the directions of x, y, z in LPS."""
        return np.reshape(self.direction, (3, 3))

    def with_voxels(self, voxels: np.ndarray) -> "Volume":
        """Return other voxels on the same grid."""
        return replace(self, voxels=voxels)


def check_geometry(name: str, spacing_mm: Any, origin_mm: Any, direction: Any) -> None:
    """Refuse a grid that places no voxel, or all of them in one plane.

    Raises:
        UserError: a spacing that is not positive, a direction that cannot be inverted, or numbers that are not
            finite.
    """
    if not np.isfinite(spacing_mm).all() or np.min(spacing_mm) <= 0:
        raise UserError(f"{name} has a spacing of {_numbers(spacing_mm)} mm; every spacing must be above zero")
    if not np.isfinite(origin_mm).all():
        raise UserError(f"{name} has its origin at {_numbers(origin_mm)}; it must be finite")
    matrix = np.reshape(direction, (3, 3))
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < SMALLEST_DETERMINANT:
        raise UserError(f"{name} has a direction matrix that cannot be inverted: {_numbers(direction)}")


def _numbers(values: Any) -> str:
    return " × ".join(f"{value:g}" for value in np.ravel(values))
