"""No reply of 100 tokens or more is slower than 0.97 of plain decoding, whatever the drafters propose."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from edgechat.speculation.calibration import CalibrationCounts
from tests.unit.speculation.costs import STAIRCASE, STEEP
from tests.unit.speculation.replies import IsRight, Replay

FLAT = {n: 1 + 0.02 * (n - 1) for n in STAIRCASE}
MAX_COST = 1 / 0.97
N_REPLIES = 25


def always(_position: int) -> bool:
    return True


def never(_position: int) -> bool:
    return False


def alternate(position: int) -> bool:
    """Be right in passages of 50 tokens, and wrong in those between them."""
    return position // 50 % 2 == 0


def guess(share: float, seed: int) -> IsRight:
    """Be right about a share of the tokens."""
    return lambda position: hash((position, seed)) % 1000 < 1000 * share


TEXTS: dict[str, Callable[[int], IsRight]] = {
    "random": lambda seed: guess(0.1, seed),
    "half": lambda seed: guess(0.5, seed),
    "good": lambda seed: guess(0.8, seed),
    "never": lambda _seed: never,
    "perfect": lambda _seed: always,
    "alternating": lambda _seed: alternate,
    "perfect replies between useless ones": lambda seed: always if seed % 2 else never,
    "right until the budget is large": lambda _seed: lambda position: position < 90,
    "right at first": lambda _seed: lambda position: position < 8,
}  # fmt: skip


@pytest.mark.parametrize("ratios", [STAIRCASE, STEEP, FLAT], ids=["staircase", "steep", "flat"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_drafts_keep_the_law(name: str, ratios: dict[int, float]) -> None:
    replay, rng = Replay(ratios), random.Random(0)
    for seed in range(N_REPLIES):
        is_right = TEXTS[name](seed)
        replay.run(rng.choice([100, 120, 200, 400]), [(is_right, rng.choice([1, 4, 16, 64]))])
    assert max(replay.costs_of_replies) <= MAX_COST


@pytest.mark.parametrize("step_cost", [0.03, 0.15, 0.35, 0.9])
@pytest.mark.parametrize("name", TEXTS)
def test_drafts_of_models_and_texts_together_keep_the_law(name: str, step_cost: float) -> None:
    """The probabilities of the model are of no use; computing the prompt would take many steps."""
    replay, rng = Replay(STAIRCASE), random.Random(1)
    model = replay.add_model(never, step_cost=step_cost, token_cost=0.3 * step_cost)
    for seed in range(N_REPLIES):
        model.is_right = TEXTS[name](seed)
        texts = [(guess(0.3, seed), 8)] if seed % 3 == 0 else []
        replay.run(rng.choice([100, 150, 300]), texts)
    assert max(replay.costs_of_replies) <= MAX_COST


@pytest.mark.parametrize("step_cost", [0.05, 0.2])
def test_perfect_model_is_worth_its_time(step_cost: float) -> None:
    replay = Replay(STAIRCASE)
    replay.add_model(always, step_cost=step_cost, probability=lambda _position, _is_right: 0.99)
    replay.run(300)
    replay.run(300)
    n_tokens = 7  # the largest draft
    assert replay.costs_of_replies[-1] < 1.1 * (STAIRCASE[8] + n_tokens * step_cost) / 8


def test_calibrated_model_beats_plain_decoding() -> None:
    """Half of the tokens are right, but the model knows which ones."""
    replay = Replay(STAIRCASE)
    replay.add_model(
        guess(0.6, 0), step_cost=0.08, probability=lambda _position, is_right: 0.95 if is_right else 0.2
    )  # fmt: skip
    for _ in range(5):
        replay.run(300)
    assert replay.costs_of_replies[-1] < 0.8


def test_text_is_used_where_it_is_better_than_the_model() -> None:
    replay = Replay(STAIRCASE)
    replay.add_model(guess(0.7, 0), step_cost=0.3)
    for _ in range(3):
        stats = replay.run(300, [(always, 32)]).stats
    assert stats.accepted_by_source[0] > 200
    assert stats.drafted_by_source[2] == 0


def test_useless_model_is_asked_ever_more_rarely_and_frees_its_memory() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(never, step_cost=0.3)
    calls: list[int] = []
    for _ in range(60):
        replay.run(300)
        calls.append(model.n_calls)
    assert calls[1] > 0
    assert calls[-1] - calls[-30] <= 8
    assert model.n_sleeps > 0
    assert replay.profile.schedule.interval >= 2048
    assert max(replay.costs_of_replies[-30:]) <= 1.015


def test_replies_that_are_not_saved_teach_the_next_ones() -> None:
    """A server saves no reply: each one would begin with the same hopeful prior, if it had rates of its own."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(never, step_cost=0.3)
    for _ in range(60):
        replay.run(300, is_saved=False)
    assert model.n_sleeps > 0
    assert max(replay.costs_of_replies[-30:]) <= 1.015
    assert replay.profile.greedy == CalibrationCounts()


def test_no_reply_waits_for_a_drafter_that_wakes() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(never, step_cost=0.3)
    model.wake_cost = 10.0
    for _ in range(100):
        replay.run(300)
    assert model.n_wakes > 0
    assert max(replay.costs_of_replies) <= MAX_COST


def test_model_that_gets_useful_is_found_again() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(never, step_cost=0.1)
    for _ in range(20):
        replay.run(300)
    model.is_right = always
    for _ in range(60):
        replay.run(300)
    assert replay.costs_of_replies[-1] < 0.6


def test_trial_ends_although_its_first_draft_used_up_the_budget() -> None:
    """Another program always disturbs the drafts, and the first one also allocates memory."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(always, step_cost=0.1, first_cost=25.0, is_disturbed=True)
    schedule, costs = replay.profile.schedule, replay.profile.costs
    replay.run(400)
    assert model.n_calls == 1
    assert not schedule.n_trial_drafts
    for _ in range(3):
        replay.run(400)
    assert model.n_calls > 4  # the second trial
    assert not costs.step_s[1].undisturbed
    assert costs.max_step_cost(1, 1.0) < 0.15
    assert replay.costs_of_replies[-1] < 0.6
    assert max(replay.costs_of_replies[1:]) <= MAX_COST


@pytest.mark.long
@pytest.mark.parametrize("step_cost", [0.05, 0.3])
def test_thousand_replies_of_all_kinds_keep_the_law(step_cost: float) -> None:
    replay, rng = Replay(STAIRCASE), random.Random(2)
    model = replay.add_model(never, step_cost=step_cost, token_cost=0.3 * step_cost)
    makers = list(TEXTS.values())
    for seed in range(1000):
        model.is_right = rng.choice(makers)(seed)
        texts = [(rng.choice(makers)(seed + 1), rng.choice([1, 4, 16, 64]))] if rng.random() < 0.6 else []
        replay.run(rng.choice([100, 110, 150, 300]), texts)
    assert max(replay.costs_of_replies) <= MAX_COST
