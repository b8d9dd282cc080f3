"""Step costs: interpolation, outliers, changing machines, depth ranges."""

from __future__ import annotations

import statistics

import pytest

from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import FROM_CONTEXT, Draft
from edgechat.speculation.step_costs import MIN_SAMPLES, STEP_SIZES, BatchStepCosts, RunningMean, StepCosts
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


def test_disturbed_steps_change_no_measured_cost() -> None:
    costs = costs_of(STAIRCASE)
    before = {n: costs.ratio(n, 100) for n in STAIRCASE}
    for _ in range(50):
        costs.record(1, 100, 0.02, is_disturbed=True)
        costs.record(2, 100, 0.099, is_disturbed=True)
        costs.record(2, 100, 0.0265)  # its reference is disturbed
    costs.record(1, 100, 0.01)
    costs.record(8, 100, 120.0, is_disturbed=True)  # stopped for two minutes
    assert {n: costs.ratio(n, 100) for n in STAIRCASE} == before
    assert costs.single_step_s(100) == pytest.approx(0.02, rel=0.3)  # speeds of replies refer to the busy machine


def test_fastest_disturbed_step_is_a_provisional_cost_until_one_is_undisturbed() -> None:
    costs = StepCosts()
    for single_s, multi_s in ((0.01, 0.099), (0.012, 0.0265), (0.03, 0.02)):
        costs.record(1, 100, single_s, is_disturbed=True)
        costs.record(2, 100, multi_s, is_disturbed=True)
    assert costs.ratio(2, 100) == pytest.approx(2.0)
    assert not costs.is_measured(2, 100)
    costs.record(1, 100, 0.01)
    costs.record(2, 100, 0.0107)
    assert costs.ratio(2, 100) == pytest.approx(1.07)


def test_disturbed_single_steps_do_not_prevent_drafts() -> None:
    costs = StepCosts()
    assert costs.needs_single_step
    costs.record(1, 100, 0.05, is_disturbed=True)
    assert not costs.needs_single_step


@pytest.mark.parametrize("is_benchmark", [True, False])
def test_several_steps_far_below_the_mean_replace_the_cost_of_their_size(is_benchmark: bool) -> None:
    costs = costs_of({1: 1.0, 2: 9.9, 3: 1.27, 4: 4.2, 8: 20.0})
    for _ in range(MIN_SAMPLES):
        for _ in range(100):
            costs.record(1, 100, 0.01)
        costs.record(2, 100, 0.0107, is_benchmark=is_benchmark)
    assert costs.ratio(2, 100) == pytest.approx(1.07)
    assert costs.is_measured(2, 100)
    assert costs.ratio(3, 100) == pytest.approx(1.27)
    assert costs.ratio(4, 100) == pytest.approx(4.2)
    assert not costs.has_cost(8, 100)  # four steps of two tokens take less than a fourth of it


@pytest.mark.parametrize("n_slow_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("is_loaded", [True, False])
def test_slow_single_steps_discard_no_costs(is_loaded: bool, n_slow_steps: int) -> None:
    """Single-token steps that other programs slowed down unnoticed, and a step of eight tokens of the right time."""
    costs, expected = StepCosts(), {2: 1.3, 4: 2.5, 8: 4.0}
    costs.ratios = costs_of({1: 1.0, **expected}).ratios
    if not is_loaded:
        for _ in range(16):
            costs.record(1, 100, 0.01)
    costs.start_reply()
    for _ in range(n_slow_steps):
        costs.record(1, 100, 0.03)
    costs.record(8, 100, 0.04)
    assert (costs.ratio(2, 100), costs.ratio(4, 100)) == (1.3, 2.5)
    assert costs.ratio(8, 100) > 4.0 / 1.6
    assert costs.is_measured(8, 100)
    for _ in range(40):
        costs.record(1, 100, 0.01)
        costs.record(8, 100, 0.04)
    assert costs.ratio(8, 100) == pytest.approx(4.0, rel=0.1)


def test_faster_machine_contradicts_no_cost_before_the_next_single_step() -> None:
    costs = costs_of({1: 1.0, 8: 4.0})
    costs.record(1, 100, 0.01)
    for _ in range(8):  # the machine is four times as fast, for example on mains power
        costs.record(8, 100, 0.01)
    assert costs.ratio(8, 100) > 2.0
    for _ in range(40):
        costs.record(1, 100, 0.0025)
        costs.record(8, 100, 0.01)
    assert costs.ratio(8, 100) == pytest.approx(4.0, rel=0.1)


def test_outdated_costs_are_replaced_by_the_first_new_step() -> None:
    for days in (40, -10):  # after forty days, and with a clock that was set back
        now = [1e9]
        costs = StepCosts(lambda t=now: t[0])  # type: ignore[misc]
        for _ in range(5):
            costs.record(1, 100, 0.01)
            costs.record(2, 100, 0.0265)
        costs.discard_outdated()
        assert costs.is_measured(2, 100)
        now[0] += days * 86400
        costs.discard_outdated()
        assert costs.ratio(2, 100) == pytest.approx(2.65)
        assert not costs.is_measured(2, 100)
        costs.record(1, 100, 0.01)
        costs.record(2, 100, 0.0107)
        assert costs.ratio(2, 100) == pytest.approx(1.07)


def test_decisions_after_disturbed_measurements_are_those_of_a_clean_home() -> None:
    """Replies and idle measurements beside two busy processes, then twenty undisturbed replies.

    The recorded steps of two tokens took 9.9 and 2.65 times as long as single-token steps.
    """
    clean, poisoned = StepCosts(), StepCosts()
    for i in range(200):
        poisoned.record(1, 100, 0.02, is_benchmark=i % 2 == 0, is_disturbed=True)
        for n_tokens in STEP_SIZES:
            ratio = STAIRCASE[n_tokens] * (9.9 if i % 3 else 2.65)
            poisoned.record(n_tokens, 100, 0.02 * ratio, is_benchmark=i % 2 == 0, is_disturbed=True)
    lengths: list[list[int]] = []
    for costs in (clean, poisoned):
        controller, draft = DraftController(Acceptance(), costs), Draft([1] * 31, 64, FROM_CONTEXT)
        for _ in range(20):
            controller.start_reply()
            lengths.append([])
            for _ in range(100):
                n_tokens, _ = controller.choose_length(draft, 100)
                costs.record(1 + n_tokens, 100, 0.01 * STAIRCASE[1 + n_tokens])
                controller.record(draft, n_tokens, n_tokens, 1)
                lengths[-1].append(n_tokens)
            for n_tokens in STEP_SIZES:
                costs.record(1, 100, 0.01, is_benchmark=True)
                costs.record(n_tokens, 100, 0.01 * STAIRCASE[n_tokens], is_benchmark=True)
    clean_speed, poisoned_speed = (
        sum(1 + n for n in reply) / sum(STAIRCASE[1 + n] for n in reply) for reply in (lengths[19], lengths[39])
    )
    assert poisoned_speed >= 0.98 * clean_speed
    assert statistics.mode(lengths[39]) == statistics.mode(lengths[19])


def test_batch_costs_far_above_those_of_a_single_sequence_are_discarded() -> None:
    single = StepCosts()
    batch = BatchStepCosts(3, single)
    for size, ratio in ((2, 6.0), (8, 1.5)):
        batch.ratios[1][size] = RunningMean(ratio, 5)
    batch.discard_contradicted()
    assert batch.ratio(2, 1000) == 6.0, "nothing is known about a single sequence"
    for _ in range(3):
        for size, seconds in ((1, 1.0), (3, 1.2), (4, 1.3), (12, 2.0)):
            single.record(1, 1000, 1.0)
            single.record(size, 1000, seconds)
    batch.discard_contradicted()
    assert batch.ratio(2, 1000) < 1.5
    assert batch.ratio(8, 1000) == 1.5


def test_time_of_a_step_in_a_new_depth_range_is_that_of_the_nearest_one() -> None:
    """Otherwise accepted tokens would count as no time, and drafts as free, until the next single-token step."""
    costs = StepCosts()
    assert costs.single_step_s(100) == 0.0
    costs.record(1, 100, 0.01)
    costs.record(1, 3000, 0.02)
    assert [costs.single_step_s(depth) for depth in (400, 600, 3000, 40_000)] == [0.01, 0.01, 0.02, 0.02]
