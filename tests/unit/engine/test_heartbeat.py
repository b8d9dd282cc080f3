"""Heartbeats: sent only while requests are in progress; the process ends itself if nothing progresses."""

from __future__ import annotations

import os
import threading

import pytest

from edgechat.engine import heartbeat
from edgechat.engine.heartbeat import HeartbeatThread
from edgechat.engine.protocol import Event, Heartbeat
from edgechat.process import EXIT_STALLED
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from tests.time_limit import HANG_S
from tests.waiting import until


class ProcessEnded(BaseException):
    pass


@pytest.fixture
def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def end_process(code: int) -> None:
        codes.append(code)
        threading.Event().wait()  # never returns, like os._exit

    monkeypatch.setattr(os, "_exit", end_process)
    monkeypatch.setattr(heartbeat, "TICK_S", 0.005)
    monkeypatch.setattr(heartbeat, "MAX_COMPUTE_TICKS", 1_000_000)
    monkeypatch.setattr(heartbeat, "MAX_OTHER_TICKS", 20)
    return codes


def test_heartbeats_are_sent_while_requests_are_in_progress(exit_codes: list[int]) -> None:
    events: list[Event] = []
    thread = HeartbeatThread(events.append)
    thread.start()
    with activity.during(Activity.COMPUTING):
        thread.add_request()
        thread.add_request()
        until(lambda: len(events) > 30)
        assert set(events) == {Heartbeat(id=0)}
        thread.remove_request()
        thread.remove_request()
        until(lambda: _is_constant(events))
        thread.add_request()
        n_events = len(events)
        until(lambda: len(events) > n_events)
        thread.remove_request()
    assert not exit_codes


def _is_constant(events: list[Event]) -> bool:
    n_events = len(events)
    threading.Event().wait(0.1)
    return len(events) == n_events


def test_process_without_progress_ends_itself(exit_codes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []

    def send(event: Event) -> None:
        events.append(event)
        if len(events) < 60:  # here and not in this thread, which a busy machine can stop for longer than the limit
            thread.record_progress()

    thread = HeartbeatThread(send)
    thread.start()
    thread.add_request()
    until(lambda: exit_codes)
    assert (exit_codes, len(events)) == ([EXIT_STALLED], 59 + heartbeat.MAX_OTHER_TICKS)
    assert "No progress" in capsys.readouterr().err


@pytest.mark.parametrize("work", Activity)
def test_only_work_with_models_may_take_long(exit_codes: list[int], work: Activity) -> None:
    events: list[Event] = []
    thread = HeartbeatThread(events.append)
    thread.start()
    with activity.during(work):
        thread.add_request()
        until(lambda: exit_codes or len(events) > 60)  # three times the limit
        may_take_long = work not in {Activity.TOKENIZING, Activity.COMPILING_GRAMMAR}
        assert exit_codes == ([] if may_take_long else [EXIT_STALLED])
        if may_take_long:
            with activity.during(Activity.TOKENIZING):  # the grammar thread's work changes nothing
                n_events = len(events)
                until(lambda: len(events) > n_events + 30)
            assert not exit_codes
    until(lambda: exit_codes)  # the main thread hangs after its computation


def test_computation_without_end_is_ended(exit_codes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "MAX_COMPUTE_TICKS", 40)
    events: list[Event] = []
    thread = HeartbeatThread(events.append)
    thread.start()
    with activity.during(Activity.COMPUTING):
        thread.add_request()
        until(lambda: exit_codes)
    assert len(events) >= 40


def test_write_that_waits_for_a_stopped_client_does_not_count(exit_codes: list[int]) -> None:
    may_write = threading.Event()
    n_events = 0

    def send(_event: Event) -> None:
        nonlocal n_events
        n_events += 1
        if n_events == 10:
            may_write.wait(HANG_S)

    thread = HeartbeatThread(send)
    thread.start()
    thread.add_request()
    until(lambda: n_events == 10)
    assert not may_write.wait(0.5)  # much longer than the limit
    assert not exit_codes
    may_write.set()
    until(lambda: exit_codes)
