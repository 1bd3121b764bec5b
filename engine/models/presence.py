"""The threshold of the presence score, chosen on prompts of which it is known whether their structure is there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rates:
    """How often "found" and "not found" are wrong.

    Attributes:
        false_positive_rate: of the prompts whose structure is absent, those that return a mask; 0..1.
        missed_rate: of the prompts whose structure is present, those that return none; 0..1.
        absent, present: how many prompts of each were asked, at least one.
    """

    false_positive_rate: float
    missed_rate: float
    absent: int
    present: int

    def __str__(self) -> str:
        return (
            f"{self.false_positive_rate:.1%} of {self.absent} absent prompts return a mask, "
            f"{self.missed_rate:.1%} of {self.present} present ones are missed"
        )


@dataclass(frozen=True)
class Calibration:
    """A presence from which a structure counts as found, 0..1, and the rates there."""

    threshold: float
    rates: Rates

    def __str__(self) -> str:
        return f"presence threshold {self.threshold:.3g}: {self.rates}"


def calibrate(present: Sequence[float], absent: Sequence[float]) -> Calibration | None:
    """Choose the threshold that balances the two errors: the larger of their rates is as small as can be.

    Of those that are equal in this, one with the smaller other rate is taken, and then the middle of the widest gap
    between two scores (or a score and 0 or 1), where new images disturb it least.

    Args:
        present, absent: presence scores, 0..1, of the prompts of each kind.

    Returns:
        None where a kind was not asked.
    """
    if not len(present) or not len(absent):
        return None
    present, absent = np.sort(present), np.sort(absent)
    edges = np.unique(np.concatenate([[0.0, 1.0], present, absent]))
    lower, upper = edges[:-1], edges[1:]  # every threshold above lower and up to upper finds the same
    missed = np.searchsorted(present, lower, side="right") / len(present)
    wrong = 1 - np.searchsorted(absent, lower, side="right") / len(absent)
    best = np.lexsort([lower - upper, missed + wrong, np.maximum(missed, wrong)])[0]
    middle = (lower[best] + upper[best]) / 2
    threshold = float(middle if middle > lower[best] else upper[best])  # neighbouring numbers have no middle
    return Calibration(threshold, Rates(float(wrong[best]), float(missed[best]), len(absent), len(present)))
