"""Engine processes that hang: they are replaced, and their requests end with an error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgechat.config import Sampling
from edgechat.engine import engine_process, hang_detector, protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.hang_detector import SILENT_TICKS, STOPPED_TICKS
from edgechat.errors import EdgechatError, EngineDiedError
from tests.engine.conftest import load_request
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
SHORT_TICK_S = 0.1
# sitecustomize runs in every child. When the file HANG exists, the engine's main thread hangs in its next step, and
# keeps the interpreter lock if the file contains "lock". The limit for other work than computing is 3 s.
HANG = """
import os, sys, threading, time
def patch():
    while "edgechat.engine.text_model" not in sys.modules:
        time.sleep(0.01)
    time.sleep(0.1)
    import ctypes
    from edgechat.engine import heartbeat
    from edgechat.engine.text_model import TextModel
    heartbeat.MAX_OTHER_TICKS = 3
    step = TextModel.step
    def hang(self, cancelled_ids):
        if os.path.exists(os.environ["HANG"]):
            (ctypes.PyDLL(None).pause if open(os.environ["HANG"]).read() == "lock" else threading.Event().wait)()
        step(self, cancelled_ids)
    TextModel.step = hang
if "_engine" in sys.orig_argv:
    threading.Thread(target=patch, daemon=True).start()
"""


def long_request(engine: EngineClient) -> protocol.Generate:
    sampling = Sampling(temperature=0)
    return protocol.Generate(id=engine.next_id(), text="Once", max_tokens=1500, ignore_eog=True, sampling=sampling)


class Outcomes(list["protocol.AnyEvent | EdgechatError"]):
    @property
    def error(self) -> EdgechatError | None:
        return self[-1] if self and isinstance(self[-1], EdgechatError) else None


def submit(engine: EngineClient, request: protocol.Request) -> Outcomes:
    outcomes = Outcomes()
    engine.submit(request, outcomes.append)
    return outcomes


@pytest.fixture
def new_engine(starter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], EngineClient]]:
    """Return a function that starts an engine with the starter model, and whose seconds are short."""
    monkeypatch.setattr(engine_process, "TICK_S", SHORT_TICK_S)
    clients: list[EngineClient] = []

    def start() -> EngineClient:
        clients.append(EngineClient())
        clients[-1].load(load_request(clients[-1], starter))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_suspended_engine_is_replaced_and_all_its_requests_fail(new_engine: Callable[[], EngineClient]) -> None:
    engine = new_engine()
    pid = engine.pid
    assert pid is not None
    outcomes = [submit(engine, long_request(engine)), submit(engine, protocol.Tokenize(id=engine.next_id(), text="x"))]
    until(lambda: all(outcomes))
    os.kill(pid, signal.SIGSTOP)
    outcomes.append(submit(engine, protocol.Stats(id=engine.next_id())))
    until(lambda: outcomes[0].error and outcomes[2].error)
    for error in (outcomes[0].error, outcomes[2].error):
        assert isinstance(error, EngineDiedError)
        assert str(error) == (
            f"The engine process was killed, because it was suspended for {STOPPED_TICKS} s. Send the request again."
        )
    assert len(engine.tokenize("Hello")) > 0  # in a new process
    assert engine.pid != pid
    until(lambda: not psutil.pid_exists(pid))


def test_program_that_is_suspended_as_a_whole_resumes(new_engine: Callable[[], EngineClient]) -> None:
    engine = new_engine()
    pid = engine.pid
    assert pid is not None
    request = long_request(engine)
    outcomes = submit(engine, request)
    until(lambda: outcomes)
    # The engine stops a little before this process, and both are stopped for longer than the limit.
    os.kill(pid, signal.SIGSTOP)
    limit_s = STOPPED_TICKS * SHORT_TICK_S
    waker = f"sleep {3 * limit_s} && kill -CONT {os.getpid()} && kill -CONT {pid}"
    process = psutil.Popen(["sh", "-c", waker])
    os.kill(os.getpid(), signal.SIGSTOP)
    process.wait()
    n_outcomes = len(outcomes)
    until(lambda: len(outcomes) > n_outcomes)
    engine.cancel(request.id)
    until(lambda: isinstance(outcomes[-1], protocol.RequestFinished))
    assert engine.pid == pid


def test_large_request_to_a_suspended_engine_does_not_block(
    new_engine: Callable[[], EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_detector, "STOPPED_TICKS", 300)  # a write that blocks would wait for the end of the engine
    engine = new_engine()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    started_at = time.monotonic()
    request = protocol.Tokenize(id=engine.next_id(), text="x" * (8 << 20))  # a pipe holds 64 KiB
    outcomes = submit(engine, request)
    engine.cancel(request.id)
    assert time.monotonic() - started_at < 15
    until(lambda: outcomes.error)


@pytest.mark.parametrize("mode", ["wait", "lock", "stall"])
def test_main_thread_that_hangs_is_noticed(
    new_engine: Callable[[], EngineClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANG, encoding="utf-8")
    trigger = tmp_path / "hang"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("HANG", str(trigger))
    engine = new_engine()
    outcomes, request = Outcomes(), long_request(engine)
    engine.submit(request, outcomes.append)
    until(lambda: outcomes)
    trigger.write_text(mode)
    if mode == "wait":  # heartbeats still arrive, but the request does not end
        engine.cancel(request.id)
        until(lambda: outcomes.error)
        assert "did not end a cancelled request within 10 s" in str(outcomes.error)
    elif mode == "stall":  # no request is cancelled: the engine ends itself
        until(lambda: outcomes.error)
        assert "a step of its work took too long" in str(outcomes.error)
    else:
        until(lambda: outcomes.error)
        assert f"did not respond for {SILENT_TICKS} s" in str(outcomes.error)
    trigger.unlink()
    assert len(engine.tokenize("Hello")) > 0


def test_close_does_not_wait_for_an_engine_that_hangs(
    new_engine: Callable[[], EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STOPPED_TICKS", "CANCELLED_TICKS"):  # `close` ends the engine earlier
        monkeypatch.setattr(hang_detector, name, 300)
    engine = new_engine()
    pid = engine.pid
    assert pid is not None
    outcomes, request = Outcomes(), long_request(engine)
    engine.submit(request, outcomes.append)
    os.kill(pid, signal.SIGSTOP)
    engine.cancel(request.id)
    cancelled_at = time.monotonic()
    until(lambda: time.monotonic() - cancelled_at > 0.4)
    engine.close(timeout_s=30)
    assert time.monotonic() - cancelled_at < 15
    until(lambda: outcomes.error)


def test_killed_engine_leaves_no_process_that_compiles_a_grammar(new_engine: Callable[[], EngineClient]) -> None:
    engine = new_engine()
    process = psutil.Process(engine.pid)
    grammar = 'start: %json {"type": "integer", "multipleOf": 99999989}'
    outcomes = submit(engine, protocol.Generate(id=engine.next_id(), text="Once", grammars=[grammar]))
    until(lambda: any("_grammar" in child.cmdline() for child in process.children()))
    (child,) = process.children()
    until(lambda: child.cpu_times().user > 0.1)
    process.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    until(lambda: outcomes.error)
