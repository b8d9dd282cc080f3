"""Step costs: interpolation, outliers, changing machines, depth ranges."""

from __future__ import annotations

import pytest

from edgechat.speculation.step_costs import MIN_SAMPLES, StepCosts
from tests.unit.speculation.costs import STAIRCASE, costs_of


def test_ratio_is_a_prior_then_measured_and_interpolated() -> None:
    costs = StepCosts()
    assert costs.ratio(1, 0) == 1.0
    assert 1 < costs.ratio(2, 0) < costs.ratio(16, 0) < 16
    costs = costs_of(STAIRCASE)
    for n, ratio in STAIRCASE.items():
        assert costs.ratio(n, 100) == pytest.approx(ratio)
        assert n == 1 or costs.is_measured(n, 100)
    assert costs.ratio(6, 100) == pytest.approx((1.42 + 2.29) / 2)
    assert costs.ratio(16, 5000) == pytest.approx(3.71)  # of the nearest range with measurements
    assert not costs.is_measured(16, 5000)
    assert costs.ratio(64, 100) == pytest.approx(6.76 + 32 / 5.9)  # extrapolated optimistically


def test_single_outlier_changes_little_but_repeated_change_is_followed() -> None:
    costs = costs_of(STAIRCASE)
    costs.record(4, 100, 10.0)
    assert costs.ratio(4, 100) < 1.6
    for _ in range(60):
        costs.record(1, 100, 0.01)
        costs.record(4, 100, 0.03)
    assert costs.ratio(4, 100) == pytest.approx(3.0, rel=0.05)


def test_throttled_machine_keeps_its_ratios() -> None:
    costs = costs_of(STAIRCASE)
    for _ in range(60):
        costs.record(1, 100, 0.03)
        costs.record(8, 100, 0.03 * 2.29)
    assert costs.ratio(8, 100) == pytest.approx(2.29, rel=0.1)
    assert costs.single_step_s(100) == pytest.approx(0.03, rel=0.01)


def test_each_range_of_positions_has_its_own_ratios() -> None:
    costs = costs_of(STAIRCASE)
    for _ in range(5):
        costs.record(1, 9000, 0.1)
        costs.record(4, 9000, 0.3)
    costs.start_reply()
    assert costs.needs_single_step
    costs.record(1, 100, 0.01)
    for _ in range(5):
        costs.record(4, 100, 0.0142)
    assert costs.ratio(4, 100) == pytest.approx(1.42)
    assert costs.ratio(4, 9000) == pytest.approx(3.0)


def test_expensive_machine_is_extrapolated_from_few_measurements() -> None:
    costs = StepCosts()
    for _ in range(4):
        costs.record(1, 0, 0.02)
        costs.record(2, 0, 0.04)
    assert costs.ratio(2, 0) == pytest.approx(2.0)
    assert costs.ratio(16, 0) == pytest.approx(9.0)  # a further token is assumed to cost half as much
    costs = StepCosts()
    costs.record(2, 0, 0.04)  # ignored: there is no single step to compare with
    assert costs.ratio(2, 0) < 2
    costs.record(1, 0, -1.0)
    assert costs.single_step_s(0) == 0.0
    assert MIN_SAMPLES > 1
