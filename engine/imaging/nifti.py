"""Headers of NIfTI files: proved before SimpleITK reads them, which would silently mend what they contradict."""

import gzip
import math
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from engine.errors import UserError
from engine.imaging.whole import unpacked_size

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
SFORM_TOLERANCE = 0.1  # of a voxel; headers keep single precision, and a real contradiction is larger


def check_nifti(path: Path) -> None:
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
        size = unpacked_size(path, needed)
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


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")
