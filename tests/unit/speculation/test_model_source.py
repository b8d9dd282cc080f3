"""Model drafter as a source of drafts: what counts as a draft, and what a reply learns from it."""

from __future__ import annotations

import random

import msgspec
import pytest

from edgechat.draft_request import TextWindow
from edgechat.speculation.calibration import CalibrationCounts
from edgechat.speculation.drafter import FROM_MODEL, NO_DRAFT, Draft
from edgechat.speculation.trial_schedule import TrialSchedule
from tests.unit.speculation import replies
from tests.unit.speculation.costs import STAIRCASE
from tests.unit.speculation.replies import IsRight, Replay, ScriptedText


def test_drafts_that_are_not_possible_do_not_count_as_rejected() -> None:
    """Heads cannot draft before the first step after a prompt from the cache, or after they were woken."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1)
    model.can_draft = False
    replay.run(40)
    assert model.n_calls > 10
    assert replay.profile.greedy == CalibrationCounts()
    assert replay.profile.schedule == TrialSchedule(n_waited=39)
    model.can_draft = True
    assert replay.run(100).stats.accepted_by_source[FROM_MODEL] > 50


def test_drafts_that_the_model_ends_at_once_count_as_rejected() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1, probability=lambda _position, _is_right: 0.0)
    replay.run(40)
    assert model.n_calls > 0
    assert replay.profile.greedy.positions[0].n_rejected > 0


def sleep_until_due(replay: Replay) -> None:
    assert replay.source is not None
    replay.source.sleep()
    replay.profile.schedule.n_waited = replay.profile.schedule.interval


def test_model_that_cannot_be_woken_learns_nothing() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1)
    model.can_wake = False
    sleep_until_due(replay)
    replay.run(100)
    assert model.n_wakes == 1
    assert replay.profile.greedy == CalibrationCounts()
    assert replay.profile.schedule.interval > TrialSchedule().interval


def test_model_stays_asleep_while_memory_is_short() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1)
    replay.has_memory = False
    sleep_until_due(replay)
    replay.run(100)
    assert (model.n_wakes, model.n_calls) == (0, 0)
    replay.has_memory = True
    sleep_until_due(replay)
    replay.run(100)
    assert model.n_wakes == 1
    assert model.n_calls > 0


def test_memory_that_is_needed_again_and_again_is_taken_ever_more_rarely() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1)
    for _ in range(200):
        replay.run(100)
        assert replay.source is not None
        replay.source.free_memory()
    assert 0 < model.n_wakes <= 5


def test_model_reads_the_text_in_idle_time() -> None:
    """The first draft of a reply computes only the new tokens then."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1, token_cost=0.02)
    replay.run(100)
    source, n_calls = replay.source, model.n_calls
    assert source is not None
    assert model.find_window(0).size < 150
    source.read(0)
    assert model.find_window(0) == TextWindow(1, 255, 256)
    assert replay.profile.costs.token_s.value_s == pytest.approx(0.02, rel=0.1)
    source.read(0)  # there is nothing left to read
    source.sleep()
    source.read(0)
    assert model.n_calls == n_calls + 1


@pytest.mark.parametrize("slow_draft", [1, 2])
def test_slow_draft_does_not_keep_the_model_from_being_asked(slow_draft: int) -> None:
    """The first draft allocates memory; any other one may be slow by chance, and idle time measures again."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1, token_cost=0.02)
    model.slow_draft, model.first_cost = slow_draft, 25.0
    for _ in range(3):
        replay.run(300)
        assert replay.source is not None
        replay.reader.position = 100  # the scripted model knows the next tokens
        replay.source.measure({0: 1})
    assert replay.costs_of_replies[-1] < 0.5
    assert replay.profile.costs.step_cost(1, 1.0) == pytest.approx(0.1, rel=0.2)


def test_memory_that_a_resize_freed_is_no_cost_of_a_draft() -> None:
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: True, step_cost=0.1, token_cost=0.02)
    replay.run(100)
    costs = msgspec.json.encode(replay.profile.costs)
    model.is_open, model.first_cost = False, 10.0
    assert replay.source is not None
    n_calls = model.n_calls
    replay.source.read(0)
    assert model.n_calls == n_calls + 1
    assert msgspec.json.encode(replay.profile.costs) == costs


def test_model_that_does_not_pay_is_considered_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are still made when they are due."""
    replay = Replay(STAIRCASE)
    model = replay.add_model(lambda _position: False, step_cost=0.9)
    replay.run(200)
    n_considered, find_window = 0, model.find_window

    def count(seq: int) -> TextWindow:
        nonlocal n_considered
        n_considered += 1
        return find_window(seq)

    monkeypatch.setattr(model, "find_window", count)
    n_calls = model.n_calls
    replay.run(2000)
    assert model.n_calls > n_calls
    assert n_considered < 600


# t(n) / t(1) of a model of 135M weights in F16 on two cores with AVX-512, as measured.
_SMALL_MODEL = {2: 1.7, 3: 2.56, 4: 2.64, 8: 3.28, 12: 4.79, 16: 5.34, 24: 7.34, 32: 8.93}
_MEDIUM_SLOPE = {2: 1.3, 3: 1.6, 4: 1.9, 8: 2.8, 12: 3.8, 16: 4.8, 24: 7.0, 32: 9.0}


def make_measured_replay(ratios: dict[int, float], is_right: IsRight) -> Replay:
    """Return a replay with a model whose drafts were measured in idle time."""
    replay = Replay(ratios)
    replay.add_model(is_right, step_cost=0.28, token_cost=0.05)
    replay.reader.reply, replay.reader.position = [1] * 100, 10
    assert replay.source is not None
    replay.source.measure({0: 1})
    return replay


@pytest.mark.parametrize("share", [0.0, 0.45])
def test_trials_without_hope_slow_down_few_replies(share: float) -> None:
    rng = random.Random(0)
    replay = make_measured_replay(_SMALL_MODEL, lambda _position: rng.random() < share)
    for _ in range(21):
        replay.run(100)
    slow_replies = [cost for cost in replay.costs_of_replies if cost > 1.005]
    assert 2 <= len(slow_replies) <= 8  # 12 or 14 if every trial had four drafts
    assert max(slow_replies) <= 1.026


@pytest.mark.parametrize("seed", range(4))
def test_drafter_that_was_wrong_first_is_used_later(seed: int) -> None:
    rng, n_replies = random.Random(seed), 0
    replay = make_measured_replay(_MEDIUM_SLOPE, lambda _position: n_replies > 1 and rng.random() < 0.95)
    for _ in range(80):
        replay.run(100)
        n_replies += 1
    assert sum(replay.costs_of_replies[-20:]) / 20 < 0.9


def test_trial_does_not_end_the_drafts_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tokens of each reply do not repeat, so that a trial could use the budget before the texts do."""

    class RepeatingText(ScriptedText):
        def draft(self, max_tokens: int) -> Draft:
            return super().draft(max_tokens) if self.reader.position % 24 >= 4 else NO_DRAFT

    monkeypatch.setattr(replies, "ScriptedText", RepeatingText)
    replay = Replay(STAIRCASE)
    replay.add_model(lambda _position: False, step_cost=0.3, token_cost=0.05)
    replay.reader.reply, replay.reader.position = [1] * 100, 10
    assert replay.source is not None
    replay.source.measure({0: 1})
    for _ in range(20):
        replay.run(100, [(lambda _position: True, 30)])
    assert replay.profile.schedule.interval > TrialSchedule().interval  # trials were made
    fastest = min(replay.costs_of_replies)
    assert max(replay.costs_of_replies) < fastest + 0.05  # 1.02 if a trial used the whole budget first
