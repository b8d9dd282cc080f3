"""Draft length controller: expected gain, expensive steps, single-step intervals."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.speculation.acceptance import Acceptance, find_bucket
from edgechat.speculation.controller import MAX_DRAFT_LENGTH, MIN_GAIN, DraftController
from edgechat.speculation.drafter import FROM_CONTEXT, NO_DRAFT, Draft
from edgechat.speculation.step_costs import MIN_SAMPLES, SINGLE_STEP_INTERVAL, STEP_SIZES, StepCosts
from tests.unit.speculation.costs import STAIRCASE, STEEP, costs_of, spend_all_trials


def test_one_slow_measurement_does_not_disable_drafts() -> None:
    acceptance, costs = Acceptance(), StepCosts()
    for _ in range(SINGLE_STEP_INTERVAL):
        acceptance.record(FROM_CONTEXT, 16, is_accepted=True)
        costs.record(1, 100, 0.01)
    costs.record(2, 100, 0.0195)
    draft = Draft(list(range(31)), 16, FROM_CONTEXT)
    assert DraftController(acceptance, costs).choose_length(draft, 100)[0] >= 7
    for size in STEP_SIZES:
        for _ in range(MIN_SAMPLES):
            costs.record(1, 100, 0.01)
            costs.record(size, 100, 0.0098 * size)
    spend_all_trials(costs)
    assert DraftController(acceptance, costs).choose_length(draft, 100)[0] == 0


def test_drafts_continue_when_the_machine_is_throttled_during_a_run_of_drafts() -> None:
    costs = costs_of(STAIRCASE)
    controller = DraftController(Acceptance(), costs)
    draft = Draft([1] * 31, 64, FROM_CONTEXT)
    n_drafts = 0
    for _ in range(300):
        n_tokens, _ = controller.choose_length(draft, 100)
        costs.record(1 + n_tokens, 100, 0.025 * (STAIRCASE[1 + n_tokens]))  # 2.5 times slower than measured
        n_drafts += n_tokens > 0
    assert n_drafts > 250
    assert costs.ratio(16, 100) == pytest.approx(3.71, rel=0.35)


def test_single_step_is_due_after_a_run_of_drafts() -> None:
    costs = costs_of(STAIRCASE)
    controller = DraftController(Acceptance(), costs)
    draft = Draft([1] * 31, 32, FROM_CONTEXT)
    costs.record(1, 100, 0.01)
    for _ in range(SINGLE_STEP_INTERVAL):
        assert controller.choose_length(draft, 100)[0] > 0
        costs.record(16, 100, 0.0371)
    assert controller.choose_length(draft, 100) == (0, 1.0)
    costs.record(1, 100, 0.01)
    assert controller.choose_length(draft, 100)[0] > 0


def test_long_matches_get_long_drafts_and_expensive_steps_none() -> None:
    flat, steep = (DraftController(Acceptance(), costs_of(r)) for r in (STAIRCASE, STEEP))
    assert flat.choose_length(NO_DRAFT, 100) == (0, 1.0)
    short, long = Draft([1] * 31, 1, FROM_CONTEXT), Draft([1] * 31, 32, FROM_CONTEXT)
    assert 0 < flat.choose_length(short, 100)[0] < flat.choose_length(long, 100)[0] <= MAX_DRAFT_LENGTH
    assert steep.choose_length(short, 100)[0] == 0
    n_tokens, gain = flat.choose_length(long, 100)
    assert gain > MIN_GAIN
    assert n_tokens + 1 in STEP_SIZES
    assert flat.choose_length(Draft([1, 2], 32, FROM_CONTEXT), 100)[0] <= 2


def test_controller_stops_drafting_random_text_and_resumes_for_repetitive_text() -> None:
    controller = DraftController(Acceptance(), costs_of(STAIRCASE))
    draft = Draft([1] * 7, 1, FROM_CONTEXT)
    lengths = []
    for _ in range(60):
        n_tokens, _ = controller.choose_length(draft, 100)
        lengths.append(n_tokens)
        controller.record(draft, n_tokens, 0, 2)
    assert lengths[0] > 0
    assert not any(lengths[30:])
    for _ in range(100):
        n_tokens, _ = controller.choose_length(draft, 100)
        controller.record(draft, n_tokens, n_tokens, 1)
    assert controller.choose_length(draft, 100)[0] > 0


@settings(max_examples=300)
@given(st.integers(1, 64), st.integers(0, 40), st.sampled_from([STAIRCASE, STEEP]), st.integers(0, 50))
def test_chosen_length_has_the_best_expected_gain_of_all_sizes(
    length: int, n_tokens: int, ratios: dict[int, float], seed: int
) -> None:
    draw = random.Random(seed)
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.record(FROM_CONTEXT, draw.randrange(1, 40), is_accepted=draw.random() < 0.7)
    costs = costs_of(ratios)
    probabilities = acceptance.probabilities if ratios is STAIRCASE else acceptance.probability_lower_bounds

    def gain(k: int) -> float:
        expected = 1 + sum(
            math.prod(probabilities[FROM_CONTEXT][find_bucket(length + i)] for i in range(j)) for j in range(1, k + 1)
        )  # fmt: skip
        return expected / costs.ratio(1 + k, 100)

    controller = DraftController(acceptance, costs)
    draft_length, expected_gain = controller.choose_length(Draft([1] * n_tokens, length, FROM_CONTEXT), 100)
    best = max((gain(n - 1) for n in STEP_SIZES if n - 1 <= n_tokens), default=0.0)
    if draft_length:
        assert expected_gain == pytest.approx(gain(draft_length))
        assert expected_gain > best * 0.98  # sizes with a tiny probability of full acceptance are not tried
    else:
        assert best <= MIN_GAIN * 1.02


@settings(max_examples=50, deadline=None)
@given(st.floats(1.0, 10.0), st.floats(1.0, 10.0), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 10**6))
def test_trials_of_larger_steps_take_at_most_one_per_cent(
    first_cost: float, slope: float, acceptance_rate: float, seed: int
) -> None:
    draw = random.Random(seed)
    costs = costs_of({n: 1 if n == 1 else first_cost + slope * (n - 1) for n in STAIRCASE})
    controller, draft = DraftController(Acceptance(), costs), Draft([1] * 31, 32, FROM_CONTEXT)
    total_s, trial_s, n_trials, n_steps = 0.0, 0.0, 0, 1000
    for _ in range(n_steps):
        credit = costs.trial_credit
        n_tokens, _ = controller.choose_length(draft, 100)
        n_accepted = next((i for i in range(n_tokens) if draw.random() > acceptance_rate), n_tokens)
        step_s = costs.ratio(1 + n_tokens, 100)
        if costs.trial_credit < credit:
            n_trials += 1
            trial_s += credit - costs.trial_credit
        total_s += step_s
        controller.record(draft, n_tokens, n_accepted, 2)
        costs.record(1 + n_tokens, 100, 0.01 * step_s)
    assert trial_s <= 0.01 * total_s + 1
    assert n_trials <= n_steps * max(1, total_s / n_steps) / 50 + 1


def test_wrong_cost_of_a_larger_step_is_corrected_by_trials() -> None:
    """Costs that were learned beside other programs without notice: a step of two tokens seems to cost 9.9 steps."""
    costs = costs_of({n: 9.0 * ratio for n, ratio in STAIRCASE.items()} | {1: 1.0, 2: 9.9})
    controller, draft = DraftController(Acceptance(), costs), Draft([1] * 31, 64, FROM_CONTEXT)
    lengths = []
    for _ in range(20 * 200):  # twenty replies of 200 steps, without any idle time
        n_tokens, _ = controller.choose_length(draft, 100)
        costs.record(1 + n_tokens, 100, 0.01 * STAIRCASE[1 + n_tokens])
        controller.record(draft, n_tokens, n_tokens, 1)
        lengths.append(n_tokens)
    assert statistics.median(lengths[-200:]) >= 7
