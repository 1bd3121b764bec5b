"""Calibration regions of ultrasound pictures: how large their pixels are (PS3.3 C.8.5.5)."""

import numpy as np
from pydicom.dataset import Dataset

TWO_DIMENSIONS = (None, 1)  # RegionSpatialFormat; others are curves over time, spectra and graphics
CENTIMETRES = 3  # of the physical units
SAME = 0.01  # how far scales may differ


def spacing_of_regions(values: Dataset) -> np.ndarray | None:
    """Return the distances of rows and of columns in mm; None where no region says them, or regions of different
    scales lie in one picture.

    Raises:
        one of `UNREADABLE`: a region is damaged.
    """
    scales = []
    for region in values.get("SequenceOfUltrasoundRegions") or []:
        units = region.get("PhysicalUnitsYDirection"), region.get("PhysicalUnitsXDirection")
        deltas = np.abs([float(region.get(f"PhysicalDelta{axis}") or 0) for axis in "YX"])
        plane = region.get("RegionSpatialFormat") in TWO_DIMENSIONS and units == (CENTIMETRES, CENTIMETRES)
        if plane and deltas.min() > 0 and np.isfinite(deltas).all():
            scales.append(10 * deltas)
    if not scales or np.ptp(scales, axis=0).max() > SAME * np.min(scales):
        return None
    return scales[0]
