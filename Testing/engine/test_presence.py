"""The presence threshold: how it is chosen, on what it is measured, and where it is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.presence import Calibration, Rates, calibrate

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def rates(present, absent, threshold) -> tuple[float, float]:
    """Count: of the absent, those found; of the present, those not found."""
    return np.mean([p >= threshold for p in absent]), np.mean([p < threshold for p in present])


@given(SCORES, SCORES)
def test_no_other_threshold_balances_the_errors_better(present, absent):
    chosen = calibrate(present, absent)
    found = chosen.rates.false_positive_rate, chosen.rates.missed_rate
    assert found == pytest.approx(rates(present, absent, chosen.threshold))
    assert (chosen.rates.absent, chosen.rates.present) == (len(absent), len(present))
    assert 0 < chosen.threshold <= 1
    for other in np.unique([*present, *absent, *np.linspace(0.01, 1, 100)]):
        if other > 0:
            assert max(found) <= max(rates(present, absent, other)) + 1e-12


@given(SCORES, SCORES)
def test_the_order_of_the_scores_does_not_matter(present, absent):
    assert calibrate(present, absent) == calibrate(present[::-1], sorted(absent))


@given(st.lists(st.floats(0.6, 1), min_size=1), st.lists(st.floats(0, 0.5), min_size=1))
def test_between_scores_that_are_apart_the_threshold_is_in_the_middle(present, absent):
    chosen = calibrate(present, absent)
    assert chosen.threshold == pytest.approx((min(present) + max(absent)) / 2)
    assert (chosen.rates.false_positive_rate, chosen.rates.missed_rate) == (0, 0)


@pytest.mark.parametrize(
    ("present", "absent", "threshold", "false_positive_rate", "missed_rate"),
    [
        ([0.9, 0.8], [0.2, 0.1], 0.5, 0, 0),
        ([0.9, 0.2, 0.8, 0.7], [0.1, 0.1, 0.5, 0.1], 0.6, 0, 0.25),  # as good as 0.15, and the other way round
        ([0.9], [0.9], 0.45, 1, 0),  # nothing tells them apart
        ([0.8, 0.6, 0.3], [0.0, 0.0, 0.0], 0.15, 0, 0),  # without a mask the score is 0
        ([1.0, 0.4], [0.4, 0.2], 0.7, 0, 0.5),
    ],
)
def test_thresholds_that_can_be_found_by_hand(present, absent, threshold, false_positive_rate, missed_rate):
    expected = Rates(false_positive_rate, missed_rate, len(absent), len(present))
    assert calibrate(present, absent) == Calibration(pytest.approx(threshold), expected)


def test_one_kind_alone_gives_no_threshold():
    assert calibrate([0.5], []) is None and calibrate([], [0.5]) is None


def test_rates_are_said_in_words():
    said = "4.0% of 100 absent prompts return a mask, 12.5% of 8 present ones are missed"
    assert str(Rates(0.04, 0.125, 100, 8)) == said
