"""Idle work of a loaded text model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from edgechat.engine.computing_mark import ComputingMark
from edgechat.engine.reply_speeds import SpeedRecorder
from edgechat.engine.text_model import TextModel
from edgechat.planner.load_plan import make_manual_plan

if TYPE_CHECKING:
    import pytest


class FakeMark(ComputingMark):
    def __init__(self) -> None:
        super().__init__(None)
        self.is_other_computing = True

    def is_set_by_others(self) -> bool:
        return self.is_other_computing


class FakeSizer:
    n_steps = 0

    def idle_step(self, _idle_s: float) -> float:
        self.n_steps += 1
        return 5.0


class FakeCache:
    n_steps = 0

    def idle_step(self) -> bool:
        self.n_steps += 1
        return True


def test_idle_work_waits_for_other_engines_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    model = cast("Any", object.__new__(TextModel))
    model._speed_recorder = SpeedRecorder(make_manual_plan("m.gguf", n_threads=1, n_ctx=512), "cpu-x64")
    model._sizer = FakeSizer()
    model._mark, model._cache, model._disk, model._draft_manager, model._idle_since = (
        FakeMark(),
        FakeCache(),
        None,
        None,
        None,
    )
    assert model.idle_step(lambda _: None) == 0.5  # seconds until the next look
    assert model._sizer.n_steps == 1, "the memory that the other engine needs is not checked"
    model._mark.is_other_computing = False
    assert model.idle_step(lambda _: None) == 0.0
    assert model._cache.n_steps == 1
    model._mark.is_other_computing = True
    assert model.idle_step(lambda _: None) == 0.5
    now_s += 121
    assert model.idle_step(lambda _: None) == 0.0
    assert model._cache.n_steps == 2
