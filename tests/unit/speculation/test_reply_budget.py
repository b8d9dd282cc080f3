"""Budget of a reply: what its drafts may lose."""

from __future__ import annotations

import random

import pytest

from edgechat.speculation.reply_budget import ReplyBudget


def test_lost_time_is_earned_back_by_plain_steps() -> None:
    budget = ReplyBudget()
    assert budget.remaining == pytest.approx(2.5)
    budget.record(1, 3.0)
    assert budget.remaining == pytest.approx(0.5)
    budget.record(1, 2.0)
    assert budget.remaining == 0.0
    for _ in range(400):
        budget.record(1, 1.0)
    assert budget.remaining > 6
    assert budget.gain == pytest.approx(-3.0)


def test_gains_can_be_lost_again_up_to_a_limit() -> None:
    budget = ReplyBudget()
    budget.record(8, 3.0)
    assert budget.remaining == pytest.approx(7.5)
    for _ in range(1000):
        budget.record(8, 3.0)
    assert budget.gain == 64.0


def test_trial_uses_gains_or_the_budget_of_a_reply_that_has_gained_little() -> None:
    budget = ReplyBudget()
    assert budget.remaining_for_trial == 0.0
    budget.record(2, 1.5)
    assert budget.remaining_for_trial == pytest.approx(0.5)
    budget.record(20, 3.0)
    assert budget.remaining_for_trial == pytest.approx(2.5)
    budget = ReplyBudget()
    budget.record(60, 59.9)
    assert budget.remaining_for_trial == pytest.approx(2.5)  # a small gain does not end the trials
    budget = ReplyBudget()
    budget.record(1, 1.5)
    for _ in range(50):
        budget.record(1, 1.0)
    assert budget.remaining_for_trial == pytest.approx(2.0)
    for _ in range(1000):
        budget.record(1, 1.0)
    assert budget.remaining_for_trial == pytest.approx(budget.remaining / 2)


@pytest.mark.parametrize("seed", range(20))
def test_steps_within_the_budget_keep_the_law(seed: int) -> None:
    rng, budget, n_tokens, cost = random.Random(seed), ReplyBudget(), 0, 0.0
    n_total = rng.choice([100, 130, 1000])
    while n_tokens < n_total:
        step = rng.uniform(1.0, 4.0)
        step = step if step - 1 <= budget.remaining else 1.0
        n_new = rng.choice([1, 1, 1, 1, 3]) if step > 1 else 1
        n_tokens, cost = n_tokens + n_new, cost + step
        budget.record(n_new, step)
    assert cost <= n_tokens / 0.97
