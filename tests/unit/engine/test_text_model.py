"""Idle work of a loaded text model, and its end after a failure."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import MagicMock

from edgechat.engine import protocol
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


def test_idle_work_continues_after_a_write_that_ends_between_two_checks() -> None:
    disk = SimpleNamespace(is_busy=True, resume=lambda: None)

    def find_disk_busy() -> bool:
        disk.is_busy = False
        return False

    model = cast("Any", object.__new__(TextModel))
    model._speed_recorder = SpeedRecorder(make_manual_plan("m.gguf", n_threads=1, n_ctx=512), "cpu-x64")
    model._mark, model._sizer, model._disk = FakeMark(), FakeSizer(), disk
    model._mark.is_other_computing = False
    model._cache, model._draft_manager, model._idle_since = SimpleNamespace(idle_step=find_disk_busy), None, None
    assert model.idle_step(lambda _: None) == 0.02


def fail_request(*, uses_gpu: bool) -> Any:
    """Return a text model whose first request has failed."""
    model = cast("Any", object.__new__(TextModel))
    for name in (
        "cache", "cache_miss_finder", "context", "disk", "draft_manager", "grammar_compiler", "mark", "model",
        "on_finished", "scheduler", "selftests", "sizer", "speed_recorder",
    ):  # fmt: skip
        setattr(model, f"_{name}", MagicMock())
    model._cache.idle_step.return_value = False
    model._compiling_requests, model._idle_since, model._uses_gpu = [], None, uses_gpu
    model._mark.is_set_by_others.return_value = False
    failed = protocol.RequestFailed(id=1, error_type="ComputeError", message="The device was lost.")
    model._finish_request(MagicMock(), failed)
    model.idle_step(lambda _: None)
    model.close()
    return model


def test_nothing_is_saved_after_a_failed_computation_on_a_gpu() -> None:
    model = fail_request(uses_gpu=True)
    assert [call[0] for call in model._cache.method_calls] == ["drop_lost_sequences"]
    assert not model._disk.method_calls
    assert not model._sizer.method_calls
    assert [call[0] for call in model._draft_manager.method_calls] == ["add_outputs", "close"]
    model = fail_request(uses_gpu=False)
    assert [call[0] for call in model._cache.method_calls] == ["idle_step", "finish"]
