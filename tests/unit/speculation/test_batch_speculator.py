"""Drafts of several replies in one batch: their lengths are chosen together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgechat.bench.draft_replay import FixedStepCosts
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.batch_speculator import BatchMember, BatchSpeculator, _choose_lengths
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import FROM_CONTEXT, Draft
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import BatchStepCosts, StepCosts
from tests.unit.speculation.costs import STAIRCASE, STEEP, costs_of


class FixedDrafter:
    """Proposes the tokens 1, 2, 3, ... after a match of a fixed length."""

    def __init__(self, match_length: int) -> None:
        self.match_length = match_length

    def start(self, tokens: Sequence[int]) -> None:
        pass

    def append(self, tokens: Sequence[int]) -> None:
        pass

    def draft(self, max_tokens: int) -> Draft:
        n_tokens = max_tokens if self.match_length else 0
        return Draft(list(range(1, 1 + n_tokens)), self.match_length, FROM_CONTEXT)

    def stop(self) -> None:
        pass


def make_batch(ratios: dict[int, float], *match_lengths: int) -> tuple[BatchSpeculator, list[BatchMember], StepCosts]:
    """Return replies whose drafters claim matches of `match_lengths`, and the costs of their steps."""
    costs = FixedStepCosts(BatchStepCosts(len(match_lengths), costs_of(ratios)))
    costs._estimate_ratio = BatchStepCosts(len(match_lengths), costs_of(ratios))._estimate_ratio  # type: ignore[method-assign]
    costs.record(1, 100, 1.0)
    members = []
    for match_length in match_lengths:
        speculator = Speculator([FixedDrafter(match_length)], DraftController(Acceptance(), costs))
        speculator.budget.record(20, 10.0)  # earlier drafts have gained time
        members.append(BatchMember(speculator, 31))
    return BatchSpeculator(lambda _n_seqs: costs, None, 32), members, costs


def test_long_matches_get_most_of_the_tokens() -> None:
    batch, members, _ = make_batch(STAIRCASE, 64, 64, 1, 0)
    lengths = [len(draft) for draft in batch.propose(members, 100)]
    assert lengths[0] >= 3
    assert lengths[1] >= 3
    assert lengths[2] <= 1
    assert lengths[3] == 0
    assert sum(lengths) <= 28


def test_drafts_that_do_not_pay_for_all_are_left_out() -> None:
    for ratios, match_lengths in ((STAIRCASE, (2, 1, 0, 0)), (STEEP, (64, 64, 64, 64))):
        batch, members, _ = make_batch(ratios, *match_lengths)
        assert batch.propose(members, 100) == [[], [], [], []]


def test_exhausted_budget_of_one_reply_stops_the_drafts_of_all() -> None:
    batch, members, _ = make_batch(STAIRCASE, 64, 64)
    members[1].speculator.budget.record(1, 30.0)
    assert batch.propose(members, 100) == [[], []]


def test_drafts_of_others_leave_a_part_of_the_budget() -> None:
    """When later all texts repeat, the rest of the budget pays for drafts of all replies."""
    batch, members, _ = make_batch(STAIRCASE, 64, 0)
    members[1].speculator.budget.record(1, 1 + members[1].speculator.budget.remaining - 1.5)
    n_steps = 0
    while any(drafts := batch.propose(members, 100)) and n_steps < 100:
        batch.record_step(members, drafts, [[*drafts[0], 99], [5]], 100, 2.0)
        n_steps += 1
    left = members[1].speculator.budget.remaining
    assert n_steps > 0
    assert left >= 1.25
    members[1].speculator._drafters[0].match_length = 64  # type: ignore[attr-defined]
    lengths = [len(draft) for draft in batch.propose(members, 100)]
    assert min(lengths) >= 2


def test_all_replies_get_drafts_when_a_budget_does_not_cover_those_of_others_alone() -> None:
    _, _, costs = make_batch(STAIRCASE, 64, 64)
    sure, likely = [0.99**n for n in range(1, 16)], [0.85**n for n in range(1, 16)]
    lengths, _ = _choose_lengths([sure, likely], 30, costs, 100, [20.0, 20.0])
    assert lengths[0] > 3 * lengths[1]
    lengths, gain = _choose_lengths([sure, likely], 30, costs, 100, [20.0, 1.5])
    assert min(lengths) >= 3
    assert gain > 1.2


def test_all_replies_pay_for_a_step() -> None:
    batch, members, costs = make_batch(STAIRCASE, 64, 0)
    drafts = batch.propose(members, 100)
    n_drafted = len(drafts[0])
    gains = [member.speculator.budget.gain for member in members]
    batch.record_step(members, drafts, [[*drafts[0][:2], 99], [5]], 100, 2.0)
    cost = costs.ratio(1 + n_drafted, 100)
    assert members[0].speculator.budget.gain == pytest.approx(gains[0] + 3 - cost)
    assert members[1].speculator.budget.gain == pytest.approx(gains[1] + 1 - cost)
    stats = members[0].speculator.stats
    assert (stats.n_drafts, stats.n_drafted, stats.n_accepted, stats.n_tokens) == (1, n_drafted, 2, 3)
    assert members[1].speculator.stats.n_drafts == 0


def test_texts_without_drafts_are_searched_more_rarely() -> None:
    batch, members, _ = make_batch(STAIRCASE, 0, 0)
    drafter = members[0].speculator._drafters[0]
    assert isinstance(drafter, FixedDrafter)
    for _ in range(50):
        assert batch.propose(members, 100) == [[], []]
    drafter.match_length = 64
    n_steps = next(n for n in range(1, 10) if batch.propose(members, 100)[0])
    assert n_steps <= 4
    assert batch.propose(members, 100)[0]  # from now on in every step


def test_costs_of_a_batch_are_relative_to_one_token_of_each_reply() -> None:
    costs = BatchStepCosts(4, costs_of(STAIRCASE))
    assert costs.ratio(5, 100) == pytest.approx(STAIRCASE[8] / STAIRCASE[4])
    for _ in range(3):
        costs.record(1, 100, 0.02)
        costs.record(8, 100, 0.03)
    assert costs.ratio(8, 100) == pytest.approx(1.5)
