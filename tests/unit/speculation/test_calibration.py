"""Calibration of a model drafter: rates by probability and by position."""

from __future__ import annotations

import pytest

from edgechat.speculation.calibration import Calibration, CalibrationCounts, find_bucket
from edgechat.speculation.drafter import FROM_MODEL, NO_DRAFT, Draft


def draft(*probabilities: float) -> Draft:
    return Draft(list(range(len(probabilities))), 0, FROM_MODEL, list(probabilities))


def test_rates_follow_what_was_accepted() -> None:
    calibration = Calibration()
    assert calibration.estimate_rate(0.95) > calibration.estimate_rate(0.3)
    for _ in range(100):
        calibration.record(draft(0.95), 1, [9])
        calibration.record(draft(0.35), 1, [0])
    assert calibration.estimate_rate(0.95) < 0.15
    assert calibration.estimate_rate(0.35) > 0.85
    assert calibration.estimate_rate(0.35, is_cautious=True) < calibration.estimate_rate(0.35)
    assert calibration.estimate_rate(0.55) == Calibration().estimate_rate(0.55)


def test_later_positions_have_the_rate_of_the_position_before_until_they_are_measured() -> None:
    calibration = Calibration()
    for _ in range(50):
        calibration.record(draft(0.9), 1, [0])
    expected = calibration.estimate_accepted(7)
    assert expected[0] == 0.0
    assert expected[7] > 5.5
    for _ in range(50):
        calibration.record(draft(0.9, 0.9), 2, [0, 9])
    assert calibration.estimate_accepted(7)[7] < 1.3


def test_optimistic_estimate_is_higher_the_less_is_known() -> None:
    calibration = Calibration()

    def compute_margin() -> float:
        return calibration.estimate_accepted(1, is_optimistic=True)[1] - calibration.estimate_accepted(1)[1]

    margin = compute_margin()
    assert margin > 0.1
    for _ in range(20):
        calibration.record(draft(0.9), 1, [0])
        calibration.record(draft(0.9), 1, [9])
    assert 0 < compute_margin() < margin / 2
    assert calibration.estimate_accepted(7, is_optimistic=True)[7] <= 7


def test_draft_that_ends_early_counts_as_rejected_in_the_expected_tokens_only() -> None:
    calibration = Calibration()
    before = calibration.estimate_rate(0.9)
    for _ in range(50):
        calibration.record(NO_DRAFT, 7, [5])
    assert calibration.estimate_accepted(7)[7] < 0.2
    assert calibration.estimate_rate(0.9) == before


def test_token_after_the_accepted_ones_is_compared_too() -> None:
    """Two tokens of three were decoded and accepted; the next token shows that the third was right."""
    counts = CalibrationCounts()
    Calibration(counts).record(draft(0.5, 0.6, 0.7), 3, [0, 1, 2])
    assert [c.n_accepted for c in counts.positions[:4]] == [1.0, 1.0, 1.0, 0.0]
    assert counts.buckets[find_bucket(0.7)].n_accepted == 1.0
    assert all(c.n_rejected == 0 for c in counts.buckets)


def test_lowest_useful_probability() -> None:
    calibration = Calibration()
    assert calibration.find_min_probability(0.0) == 0.0
    assert 0.2 <= calibration.find_min_probability(0.3) <= 0.4
    assert calibration.find_min_probability(1.0) == 0.6  # a higher bound would leave nothing to learn from


def test_replies_share_the_counts_but_not_those_of_the_current_reply() -> None:
    counts = CalibrationCounts()
    first, second = Calibration(counts), Calibration(counts)
    for _ in range(20):
        first.record(draft(0.9), 1, [9])
    assert first.estimate_rate(0.9) < second.estimate_rate(0.9)
    assert Calibration(counts).estimate_rate(0.9) < second.estimate_rate(0.9)
    copy = counts.copy()
    Calibration(copy).record(draft(0.9), 1, [0])
    assert counts.buckets[find_bucket(0.9)].n_accepted == 0


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.1, 0.5, 0.97, 1.0])
def test_every_probability_has_a_bucket(probability: float) -> None:
    assert 0 <= find_bucket(probability) < 11
