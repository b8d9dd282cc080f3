"""Model drafter as a source of drafts: what counts as a draft, and what a reply learns from it."""

from __future__ import annotations

from edgechat.speculation.calibration import CalibrationCounts
from edgechat.speculation.drafter import FROM_MODEL
from edgechat.speculation.trial_schedule import TrialSchedule
from tests.unit.speculation.costs import STAIRCASE
from tests.unit.speculation.replies import Replay


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
