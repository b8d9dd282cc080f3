"""Acceptance, costs, the controller and the speculator: plain numbers, no model."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.speculation.acceptance import BUCKETS, Acceptance, bucket_of
from edgechat.speculation.controller import MARGIN, MAX_DRAFT, DraftController
from edgechat.speculation.drafter import FROM_CONTEXT, FROM_CORPUS, NO_DRAFT, Draft, LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import MIN_SAMPLES, PROBE_AFTER, SIZES, StepCosts
from tests.suffix_reference import PlainIndex

# t(n) / t(1) of a model of 0.5B weights on two cores, as measured.
STAIRCASE = {1: 1.0, 2: 1.07, 3: 1.27, 4: 1.42, 8: 2.29, 12: 3.01, 16: 3.71, 24: 5.25, 32: 6.76}
# A machine on which every further token costs nearly as much as the first.
STEEP = {n: 1 + 0.9 * (n - 1) for n in STAIRCASE}


def costs_of(ratios: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for _ in range(5):
        for n, ratio in ratios.items():
            costs.record(1, 100, 0.01)
            costs.record(n, 100, 0.01 * ratio)
    return costs


def test_buckets_of_match_lengths() -> None:
    assert [bucket_of(n) for n in BUCKETS] == list(range(len(BUCKETS)))
    assert bucket_of(5) == bucket_of(4)
    assert bucket_of(1000) == len(BUCKETS) - 1


def test_acceptance_follows_what_happens_and_forgets() -> None:
    acceptance = Acceptance()
    before = acceptance.probabilities[FROM_CONTEXT][bucket_of(4)]
    for _ in range(300):
        acceptance.record(FROM_CONTEXT, 4, accepted=True)
    high = acceptance.probabilities[FROM_CONTEXT][bucket_of(4)]
    assert before < 0.9 < high < 1
    assert acceptance.probabilities[FROM_CORPUS][bucket_of(4)] == before  # counted apart
    for _ in range(300):
        acceptance.record(FROM_CONTEXT, 5, accepted=False)
    assert acceptance.probabilities[FROM_CONTEXT][bucket_of(4)] < 0.2
    assert (
        acceptance.low_probabilities[FROM_CONTEXT][bucket_of(4)] < acceptance.probabilities[FROM_CONTEXT][bucket_of(4)]
    )


@given(st.lists(st.tuples(st.integers(1, 80), st.booleans())))
def test_chances_are_probabilities(records: list[tuple[int, bool]]) -> None:
    acceptance = Acceptance()
    for length, right in records:
        acceptance.record(FROM_CORPUS, length, accepted=right)
    for chances in (*acceptance.probabilities, *acceptance.low_probabilities):
        assert all(-0.2 <= p <= 1 for p in chances)
    assert all(0 < p < 1 for chances in acceptance.probabilities for p in chances)


def test_costs_before_and_after_measuring() -> None:
    costs = StepCosts()
    assert costs.ratio(1, 0) == 1.0
    assert 1 < costs.ratio(2, 0) < costs.ratio(16, 0) < 16
    costs = costs_of(STAIRCASE)
    for n, ratio in STAIRCASE.items():
        assert costs.ratio(n, 100) == pytest.approx(ratio)
        assert n == 1 or costs.is_measured(n, 100)
    assert costs.ratio(6, 100) == pytest.approx((1.42 + 2.29) / 2)
    assert costs.ratio(16, 5000) == pytest.approx(3.71)  # not measured there: the nearest that was
    assert not costs.is_measured(16, 5000)
    assert costs.ratio(64, 100) == pytest.approx(6.76 + 32 / 5.9)  # never measured: a guess that invites to


def test_one_dear_measurement_does_not_end_all_drafts() -> None:
    acceptance, costs = Acceptance(), StepCosts()
    for _ in range(PROBE_AFTER):
        acceptance.record(FROM_CONTEXT, 16, accepted=True)
        costs.record(1, 100, 0.01)
    costs.record(2, 100, 0.0195)
    assert DraftController(acceptance, costs).choose_length(Draft(list(range(31)), 16, FROM_CONTEXT), 100)[0] >= 7
    for size in SIZES:  # where that is how it is, it is soon known
        for _ in range(MIN_SAMPLES):
            costs.record(1, 100, 0.01)
            costs.record(size, 100, 0.0098 * size)
    assert DraftController(acceptance, costs).choose_length(Draft(list(range(31)), 16, FROM_CONTEXT), 100)[0] == 0


def test_a_stutter_changes_little_and_a_change_is_followed() -> None:
    costs = costs_of(STAIRCASE)
    costs.record(4, 100, 10.0)
    assert costs.ratio(4, 100) < 1.6
    for _ in range(60):
        costs.record(1, 100, 0.01)
        costs.record(4, 100, 0.03)
    assert costs.ratio(4, 100) == pytest.approx(3.0, rel=0.05)


def test_a_throttled_machine_keeps_its_ratios() -> None:
    costs = costs_of(STAIRCASE)
    for _ in range(60):
        costs.record(1, 100, 0.03)
        costs.record(8, 100, 0.03 * 2.29)
    assert costs.ratio(8, 100) == pytest.approx(2.29, rel=0.1)
    assert costs.single_s(100) == pytest.approx(0.03, rel=0.01)


def test_a_machine_throttled_in_a_run_of_drafts_goes_on_drafting() -> None:
    """Single steps come rarely then: what they are compared with must not grow old."""
    costs = costs_of(STAIRCASE)
    controller = DraftController(Acceptance(), costs)
    sure = Draft([1] * 31, 64, FROM_CONTEXT)
    drafted = 0
    for _ in range(300):
        n_tokens, _ = controller.choose_length(sure, 100)
        costs.record(1 + n_tokens, 100, 0.025 * (STAIRCASE[1 + n_tokens]))  # 2.5 times as slow as it was
        drafted += n_tokens > 0
    assert drafted > 250
    assert costs.ratio(16, 100) == pytest.approx(3.71, rel=0.35)


def test_depths_are_told_apart() -> None:
    """What is fast after few tokens is not taken for fast after many, nor the other way round."""
    costs = costs_of(STAIRCASE)
    for _ in range(5):
        costs.record(1, 9000, 0.1)
        costs.record(4, 9000, 0.3)
    costs.start_reply()
    assert costs.is_single_due
    costs.record(1, 100, 0.01)
    for _ in range(5):
        costs.record(4, 100, 0.0142)
    assert costs.ratio(4, 100) == pytest.approx(1.42)
    assert costs.ratio(4, 9000) == pytest.approx(3.0)


def test_single_steps_are_measured_now_and_then() -> None:
    costs = costs_of(STAIRCASE)
    controller = DraftController(Acceptance(), costs)
    sure = Draft([1] * 31, 32, FROM_CONTEXT)
    costs.record(1, 100, 0.01)
    for _ in range(PROBE_AFTER):
        assert controller.choose_length(sure, 100)[0] > 0
        costs.record(16, 100, 0.0371)
    assert controller.choose_length(sure, 100) == (0, 1.0)
    costs.record(1, 100, 0.01)
    assert controller.choose_length(sure, 100)[0] > 0


def test_long_matches_get_long_drafts_and_steep_costs_none() -> None:
    flat, steep = (DraftController(Acceptance(), costs_of(r)) for r in (STAIRCASE, STEEP))
    assert flat.choose_length(NO_DRAFT, 100) == (0, 1.0)
    short, long = Draft([1] * 31, 1, FROM_CONTEXT), Draft([1] * 31, 32, FROM_CONTEXT)
    assert 0 < flat.choose_length(short, 100)[0] < flat.choose_length(long, 100)[0] <= MAX_DRAFT
    assert steep.choose_length(short, 100)[0] == 0
    n_tokens, gain = flat.choose_length(long, 100)
    assert gain > MARGIN
    assert n_tokens + 1 in SIZES
    assert flat.choose_length(Draft([1, 2], 32, FROM_CONTEXT), 100)[0] <= 2


def test_the_controller_gives_up_what_does_not_pay_and_comes_back() -> None:
    """Random text is not drafted for long; plain steps teach it when that changes."""
    controller = DraftController(Acceptance(), costs_of(STAIRCASE))
    draft = Draft([1] * 7, 1, FROM_CONTEXT)
    tried = []
    for _ in range(60):
        n_tokens, _ = controller.choose_length(draft, 100)
        tried.append(n_tokens)
        controller.record(draft, n_tokens, 0, 2)
    assert tried[0] > 0
    assert not any(tried[30:])
    for _ in range(100):
        n_tokens, _ = controller.choose_length(draft, 100)
        controller.record(draft, n_tokens, n_tokens, 1)
    assert controller.choose_length(draft, 100)[0] > 0


@settings(max_examples=300)
@given(st.integers(1, 64), st.integers(0, 40), st.sampled_from([STAIRCASE, STEEP]), st.integers(0, 50))
def test_what_is_chosen_is_the_best_of_all_sizes(
    length: int, n_tokens: int, ratios: dict[int, float], seed: int
) -> None:
    draw = random.Random(seed)
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.record(FROM_CONTEXT, draw.randrange(1, 40), accepted=draw.random() < 0.7)
    costs = costs_of(ratios)
    chances = acceptance.probabilities if ratios is STAIRCASE else acceptance.low_probabilities

    def gain(k: int) -> float:
        expected = 1 + sum(
            math.prod(chances[FROM_CONTEXT][bucket_of(length + i)] for i in range(j)) for j in range(1, k + 1)
        )  # fmt: skip
        return expected / costs.ratio(1 + k, 100)

    chosen, expected_gain = DraftController(acceptance, costs).choose_length(
        Draft([1] * n_tokens, length, FROM_CONTEXT), 100
    )
    best = max((gain(n - 1) for n in SIZES if n - 1 <= n_tokens), default=0.0)
    if chosen:
        assert expected_gain == pytest.approx(gain(chosen))
        assert expected_gain > best * 0.98  # beyond hopeless tokens nothing is looked for
    else:
        assert best <= MARGIN * 1.02


def test_the_live_drafter_keeps_what_two_texts_share() -> None:
    index = PlainIndex()
    drafter = LiveDrafter(index)
    drafter.start([1, 2, 3, 4, 1, 2])
    assert drafter.draft(3) == Draft([3, 4, 1], 2, FROM_CONTEXT)
    drafter.append([3])
    drafter.start([1, 2, 3, 9, 9])
    assert index.tokens == [1, 2, 3, 9, 9]
    drafter.start([])
    assert index.tokens == []
    assert drafter.draft(3).tokens == []


def test_no_draft_goes_beyond_an_end_or_the_room() -> None:
    controller = DraftController(Acceptance(), costs_of(STAIRCASE))
    speculator = Speculator([LiveDrafter(PlainIndex())], controller, is_end=lambda token: token == 0)
    text = [*range(1, 40), 0, *range(1, 36)]
    speculator.start(text[:-1])
    assert speculator.propose(100, 100) == []  # first a single step is measured
    speculator.record_step(0, 0, 35, 100, 0.01)
    speculator.append([35])
    assert speculator.propose(100, 100) == [36, 37, 38]
    speculator.record_step(3, 3, 39, 100, 0.0142)
    assert speculator.propose(1, 100) == [36]
    speculator.record_step(1, 1, 37, 100, 0.0107)
    assert speculator.propose(0, 100) == []
    speculator.record_step(0, 0, 37, 100, 0.01)
    stats = speculator.stats
    assert (stats.n_drafts, stats.n_drafted, stats.n_accepted, stats.n_tokens) == (2, 4, 4, 8)
    assert stats.mean_acceptance_length == 3.0
    assert stats.gain == pytest.approx(8 * 0.01 / (0.0142 + 0.0107 + 0.02), rel=0.01)


def test_a_machine_that_was_never_measured_learns_while_it_works() -> None:
    """Whatever the first guess, after some steps the ratios are those of the machine."""
    costs = StepCosts()
    for _ in range(4):
        costs.record(1, 0, 0.02)
        costs.record(2, 0, 0.04)
    assert costs.ratio(2, 0) == pytest.approx(2.0)
    assert costs.ratio(16, 0) == pytest.approx(9.0)  # half as dear for each further token, until it is known
    costs = StepCosts()
    costs.record(2, 0, 0.04)  # without a single step there is nothing to compare with
    assert costs.ratio(2, 0) < 2
    costs.record(1, 0, -1.0)
    assert costs.single_s(0) == 0.0
    assert MIN_SAMPLES > 1
