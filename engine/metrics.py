"""Overlap of masks. Two empty masks agree (1); an empty mask and one that is not have nothing in common (0)."""


def dice(both: int, result: int, truth: int) -> float:
    """Return 2·|A∩B| / (|A| + |B|) from counts of voxels."""
    return 1.0 if result + truth == 0 else 2 * both / (result + truth)


def intersection_over_union(both: int, result: int, truth: int) -> float:
    """Return |A∩B| / |A∪B| from counts of voxels."""
    return 1.0 if result + truth == 0 else both / (result + truth - both)
