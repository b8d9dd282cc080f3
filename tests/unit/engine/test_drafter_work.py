"""Idle work of a model drafter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine.drafter_work import DrafterWork
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime.context import DecodeAborted
from edgechat.speculation.trial_schedule import MIN_INTERVAL, TrialSchedule


def test_trial_is_postponed_after_requests_ended_three_loads() -> None:
    schedule = TrialSchedule(n_waited=MIN_INTERVAL)

    def wake(_has_memory: Any) -> None:
        raise DecodeAborted

    model: Any = SimpleNamespace(wants_wake=True, wake=wake, profile=SimpleNamespace(schedule=schedule))
    context: Any = SimpleNamespace(is_open=False)
    work = DrafterWork(context, DrafterPlan(kind="draft-model"), model)
    for is_due in (True, True, False):
        with pytest.raises(DecodeAborted):
            work.wake(lambda _n_bytes: True, lambda _is_allowed: None)
        assert schedule.is_due == is_due
