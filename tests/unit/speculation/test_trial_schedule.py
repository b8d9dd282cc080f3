"""Schedule of trials of a model drafter that does not pay."""

from __future__ import annotations

from edgechat.speculation.trial_schedule import MAX_INTERVAL, MIN_INTERVAL, TrialSchedule


def fail_trial(schedule: TrialSchedule) -> int:
    """Wait for the next trial and let it fail; return the number of its drafts."""
    schedule.wait(schedule.interval)
    n_drafts = 0
    while schedule.is_due:
        schedule.record_draft(pays=False)
        n_drafts += 1
    return n_drafts


def test_trials_get_ever_rarer_and_the_memory_is_freed() -> None:
    schedule = TrialSchedule()
    assert not schedule.is_due
    intervals = []
    for _ in range(20):
        intervals.append(schedule.interval)
        assert not schedule.should_sleep or schedule.interval >= 1024
        assert fail_trial(schedule) == 4
    assert intervals[:3] == [MIN_INTERVAL, 2 * MIN_INTERVAL, 4 * MIN_INTERVAL]
    assert intervals[-1] == MAX_INTERVAL
    schedule.wait(MIN_INTERVAL)
    assert schedule.should_sleep


def test_success_ends_a_trial_and_finally_the_long_interval() -> None:
    schedule = TrialSchedule()
    for _ in range(5):
        fail_trial(schedule)
    schedule.wait(schedule.interval)
    schedule.record_draft(pays=False)
    schedule.record_draft(pays=True)
    assert not schedule.is_due
    assert schedule.interval > MIN_INTERVAL
    for _ in range(40):
        schedule.record_draft(pays=True)
    assert schedule.interval == MIN_INTERVAL


def test_memory_that_is_needed_is_not_taken_again_soon() -> None:
    schedule = TrialSchedule()
    schedule.wait(MIN_INTERVAL)
    schedule.defer()
    schedule.wait(1000)
    assert not schedule.is_due


def test_trial_that_cannot_go_on_ends() -> None:
    schedule = TrialSchedule()
    schedule.wait(MIN_INTERVAL)
    schedule.record_draft(pays=False)
    schedule.wait(MIN_INTERVAL - 1)
    assert schedule.is_due
    schedule.wait(1)
    assert not schedule.is_due
    assert fail_trial(schedule) == 4
