"""A volume: voxels with their place in the patient."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError

SMALLEST_DETERMINANT = 1e-3  # of axes of length 1; those at right angles have 1 or -1


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
        invalid: (z, y, x) bool, which of its voxels were NaN or infinite; None where none was. They got the lowest
            value of the others, so that no window, percentile or net ever meets them.

    Raises:
        UserError: the voxels are of the wrong form, empty or all NaN or infinite, or the geometry is degenerate.
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
    invalid: np.ndarray | None = None

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
        check_geometry(self.name, self.spacing_mm, self.origin_mm, self.direction)
        if self.voxels.dtype.kind == "f":
            self._replace_what_is_no_number()

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

    @property
    def no_numbers(self) -> int:
        """How many of its voxels were NaN or infinite."""
        return 0 if self.invalid is None else int(np.count_nonzero(self.invalid))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people must know of the voxels, in words."""
        if not self.no_numbers:
            return ()
        share = 100 * self.no_numbers / self.voxels.size
        return (
            f"{self.no_numbers} voxels ({share:.2g} %) are NaN or infinite; they count as the lowest value, "
            f"{self.voxels.min():g}",
        )

    def with_voxels(self, voxels: np.ndarray) -> "Volume":
        """Return other voxels on the same grid."""
        return replace(self, voxels=voxels)

    def _replace_what_is_no_number(self) -> None:
        with np.errstate(over="ignore"):
            valid = np.isfinite(self.voxels.astype(np.float32, copy=False))  # as nets compute
        if not valid.any():
            raise UserError(f"every voxel of {self.name} is NaN or infinite; there is nothing to segment")
        if not valid.all():
            object.__setattr__(self, "voxels", np.where(valid, self.voxels, self.voxels[valid].min()))
            object.__setattr__(self, "invalid", ~valid if self.invalid is None else self.invalid | ~valid)


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
    if is_degenerate(np.reshape(direction, (3, 3))):
        raise UserError(f"{name} has a direction matrix that cannot be inverted: {_numbers(direction)}")


def corners_mm(shape: Sequence[int], grid: Any) -> np.ndarray:
    """Return where the corner voxels of a grid are: (3, 8) in LPS.

    Args:
        shape: sizes along z, y, x.
        grid: has `spacing_mm`, `origin_mm` and `direction`, as a `Volume`.
    """
    indices = np.array(list(product(*((0, size - 1) for size in shape[::-1]))), float).T
    matrix = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    return matrix @ indices + np.reshape(grid.origin_mm, (3, 1))


def is_degenerate(matrix: np.ndarray) -> bool:
    """Return whether the columns of a matrix (3, 3), of whatever length, do not span space."""
    with np.errstate(all="ignore"):
        axes = matrix / np.linalg.norm(matrix, axis=0)
        return not abs(np.linalg.det(axes)) > SMALLEST_DETERMINANT  # nor is it, where a number is none


def _numbers(values: Any) -> str:
    return " × ".join(f"{value:g}" for value in np.ravel(values))
