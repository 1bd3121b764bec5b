"""How well a mask agrees with a reference. Where both are empty they agree (Dice and IoU 1); where one is, they
have nothing in common (0). The Hausdorff distance has no value (NaN) where a mask is empty."""

import warnings

import numpy as np
import torch


def dice(both: int, result: int, truth: int) -> float:
    """Return 2·|A∩B| / (|A| + |B|) from counts of voxels."""
    return 1.0 if result + truth == 0 else 2 * both / (result + truth)


def intersection_over_union(both: int, result: int, truth: int) -> float:
    """Return |A∩B| / |A∪B| from counts of voxels."""
    return 1.0 if result + truth == 0 else both / (result + truth - both)


def hausdorff_95(result: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Return the 95th percentile of the distances between two surfaces, the larger of both directions.

    Args:
        result, truth: (z, y, x) bool. A single slice is measured in its plane.
        spacing_mm: of x, y, z; the distance has its unit, so pixels for pictures, whose spacing is 1.
    """
    from monai.metrics import compute_hausdorff_distance  # takes seconds to load, and only the extra `train` has it

    if not (result.any() and truth.any()):
        return float("nan")
    spacing = list(spacing_mm[::-1])
    if len(result) == 1:
        result, truth, spacing = result[0], truth[0], spacing[1:]
    masks = (torch.from_numpy(mask)[None, None].float() for mask in (result, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls its own deprecated argument
        return compute_hausdorff_distance(*masks, percentile=95, spacing=spacing).item()
