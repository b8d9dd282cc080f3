"""Costs of a model drafter: time of its steps and of the tokens that it computes first."""

from __future__ import annotations

import pytest

from edgechat.speculation.drafter_costs import FIRST_PENDING_TOKENS, DrafterCosts


def record(costs: DrafterCosts, n_steps: int, n_pending: int, step_s: float, token_s: float, n_seqs: int = 1) -> None:
    elapsed_s = n_steps * step_s + max(0, n_pending - 2 * n_seqs) * token_s
    costs.record(n_steps, n_pending, n_seqs, elapsed_s, is_disturbed=False)


def test_costs_of_steps_and_of_pending_tokens_are_told_apart() -> None:
    costs = DrafterCosts()
    assert not costs.is_measured
    for i in range(200):
        record(costs, 3 + i % 4, 1 if i % 3 else 100, 0.02, 0.004)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.2, rel=0.1)
    assert costs.token_cost(1, 0.1) == pytest.approx(0.04, rel=0.1)
    assert costs.pending_cost(52, 1, 0.1) == pytest.approx(2.0, rel=0.1)
    assert costs.max_pending(2.0, 1, 0.1) == pytest.approx(52, abs=6)


def test_first_draft_is_assumed_to_be_expensive_and_computes_few_tokens() -> None:
    costs = DrafterCosts()
    assert costs.max_step_cost(1, 0.1) > costs.step_cost(1, 0.1)
    assert costs.max_pending(1000.0, 1, 0.1) == FIRST_PENDING_TOKENS
    record(costs, 4, 1, 0.02, 0.0)
    assert costs.max_step_cost(1, 0.1) == costs.step_cost(1, 0.1) == pytest.approx(0.2)


def test_unmeasured_number_of_sequences_is_estimated_from_the_nearest() -> None:
    costs = DrafterCosts()
    record(costs, 4, 2, 0.02, 0.0, n_seqs=2)
    assert costs.step_cost(1, 0.1) < 0.2 < costs.step_cost(4, 0.1)


def test_empty_drafts_are_ignored() -> None:
    costs = DrafterCosts()
    costs.record(0, 1, 1, 1.0, is_disturbed=False)
    costs.record(4, 1, 1, 0.0, is_disturbed=False)
    assert not costs.is_measured


def test_fastest_of_several_disturbed_drafts_is_a_provisional_cost() -> None:
    costs = DrafterCosts()
    for elapsed_s in (4.0, 0.08, 1.0):
        assert costs.max_step_cost(1, 0.1) == 1.0
        costs.record(4, 1, 1, elapsed_s, is_disturbed=True)
    assert costs.max_step_cost(1, 0.1) == pytest.approx(0.2)
    costs.record(4, 1, 1, 0.04, is_disturbed=False)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.1)


def test_newer_disturbed_drafts_correct_a_provisional_cost() -> None:
    costs = DrafterCosts()
    for elapsed_s in (4.0, 4.0, 4.0, 0.04, 0.04, 0.04):
        costs.record(4, 1, 1, elapsed_s, is_disturbed=True)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.1)


def test_disturbed_drafts_do_not_change_a_measured_cost() -> None:
    costs = DrafterCosts()
    costs.record(4, 1, 1, 0.04, is_disturbed=False)
    for _ in range(10):
        costs.record(4, 1, 1, 4.0, is_disturbed=True)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("slow_drafts", [{0}, {1}, {0, 1}, {5, 6}, {0, 4, 8}], ids=str)
def test_slow_drafts_are_outweighed_by_the_next_ones(slow_drafts: set[int]) -> None:
    costs = DrafterCosts()
    for i in range(12):
        factor = 25 if i in slow_drafts else 1
        record(costs, 4, 1 if i % 3 else 100, 0.02 * factor, 0.004 * factor)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.2, rel=0.1)
    assert costs.token_cost(1, 0.1) == pytest.approx(0.04, rel=0.3)
    for _ in range(3):  # the machine has become slower
        record(costs, 4, 1, 0.04, 0.008)
    assert costs.step_cost(1, 0.1) == pytest.approx(0.4, rel=0.1)
