"""Engine processes that hang: they are replaced, and their requests end with an error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgechat.config import Sampling
from edgechat.engine import engine_process, hang_detector, protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, EngineDiedError
from tests.engine.conftest import load_request
from tests.models import write_tiny_llama
from tests.time_limit import ends_within
from tests.waiting import has_ended, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
SHORT_TICK_S = 0.1
N_TICKS = 10
"""Limit under test, in ticks."""
NO_LIMIT = 1_000_000
# sitecustomize runs in every child. Each step of the engine takes 50 ms longer, so that a request with 1,500 tokens
# cannot end by itself. When the file HANG exists, the engine's main thread hangs in its next step. In the mode "lock",
# it keeps the interpreter lock, and in the mode "stall", the limit for work other than computing is 0.3 s. A grammar
# may take 1 GiB to compile, so that no limit ends a compilation before the test does.
SITECUSTOMIZE = """
import os, sys, threading, time
from importlib import util
class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "edgechat.engine.text_model":
            return None
        sys.meta_path.remove(Finder)
        spec = util.find_spec(name)
        execute = spec.loader.exec_module
        def execute_and_patch(module):
            execute(module)
            patch(module.TextModel)
        spec.loader.exec_module = execute_and_patch
        return spec
def patch(text_model):
    import ctypes
    from edgechat.engine import grammar_compiler, heartbeat
    grammar_compiler.MAX_CPU_S, grammar_compiler.MAX_GROWTH_BYTES = 600, 1 << 30
    step, mode = text_model.step, os.environ.get("HANG_MODE")
    def slow_step(self, cancelled_ids):
        time.sleep(0.05)
        if os.path.exists(os.environ["HANG"]):
            if mode == "stall":
                heartbeat.TICK_S, heartbeat.MAX_OTHER_TICKS = 0.1, 3
            (ctypes.PyDLL(None).pause if mode == "lock" else threading.Event().wait)()
        step(self, cancelled_ids)
    text_model.step = slow_step
if "_engine" in sys.orig_argv:
    sys.meta_path.insert(0, Finder)
"""
# Wakes two processes, of which the first is this one, when both have been stopped for some seconds.
WAKER = """
import os, psutil, signal, sys, time
pids = [int(argument) for argument in sys.argv[1:3]]
def is_awake(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_STOPPED
while any(map(is_awake, pids)):
    time.sleep(0.02)
time.sleep(float(sys.argv[3]))
for pid in pids:
    os.kill(pid, signal.SIGCONT)
"""


def long_request(engine: EngineClient) -> protocol.Generate:
    sampling = Sampling(temperature=0)
    return protocol.Generate(
        id=engine.next_id(), text="Once", max_tokens=1500, ignore_eog=True, sampling=sampling, speculate=False
    )


class Outcomes(list["protocol.AnyEvent | EdgechatError"]):
    @property
    def error(self) -> EdgechatError | None:
        return self[-1] if self and isinstance(self[-1], EdgechatError) else None


def submit(engine: EngineClient, request: protocol.Request) -> Outcomes:
    outcomes = Outcomes()
    engine.submit(request, outcomes.append)
    return outcomes


def suspend(engine: EngineClient) -> int:
    """Stop the engine process, and return its id."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    process = psutil.Process(engine.pid)
    until(lambda: process.status() == psutil.STATUS_STOPPED)
    return int(process.pid)


@pytest.fixture
def trigger(tmp_path: Path) -> Path:
    """Path of the file at which the engine hangs."""
    return tmp_path / "hang"


@pytest.fixture
def new_engine(tmp_path: Path, trigger: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], EngineClient]]:
    """Return a function that starts an engine whose steps are slow.

    The seconds of its client are short, and its client has no limits: each test sets the limit that it is about.
    """
    monkeypatch.setattr(engine_process, "TICK_S", SHORT_TICK_S)
    for name in ("STOPPED_TICKS", "SILENT_TICKS", "START_TICKS", "CANCELLED_TICKS"):
        monkeypatch.setattr(hang_detector, name, NO_LIMIT)
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("HANG", str(trigger))
    path = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=2048)
    clients: list[EngineClient] = []

    def start() -> EngineClient:
        clients.append(EngineClient())
        clients[-1].load(load_request(clients[-1], path))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_suspended_engine_is_replaced_and_all_its_requests_fail(
    new_engine: Callable[[], EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_detector, "STOPPED_TICKS", N_TICKS)
    engine = new_engine()
    outcomes = [submit(engine, long_request(engine)), submit(engine, protocol.Tokenize(id=engine.next_id(), text="x"))]
    until(lambda: all(outcomes))
    pid = suspend(engine)
    outcomes.append(submit(engine, protocol.Stats(id=engine.next_id())))
    until(lambda: outcomes[0].error and outcomes[2].error)
    for error in (outcomes[0].error, outcomes[2].error):
        assert isinstance(error, EngineDiedError)
        assert str(error) == (
            f"The engine process was killed, because it was suspended for {N_TICKS} s. Send the request again."
        )
    assert len(engine.tokenize("Hello")) > 0  # in a new process
    assert engine.pid != pid
    until(lambda: not psutil.pid_exists(pid))


def test_program_that_is_suspended_as_a_whole_resumes(
    new_engine: Callable[[], EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_detector, "STOPPED_TICKS", N_TICKS)
    engine = new_engine()
    pid = engine.pid
    assert pid is not None
    request = long_request(engine)
    outcomes = submit(engine, request)
    until(lambda: outcomes)
    # The engine stops a little before this process, and both are stopped for longer than the limit.
    duration_s = 2 * N_TICKS * SHORT_TICK_S
    with subprocess.Popen([sys.executable, "-c", WAKER, str(os.getpid()), str(pid), str(duration_s)]) as waker:
        os.kill(pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    assert waker.returncode == 0
    n_outcomes = len(outcomes)
    until(lambda: len(outcomes) > n_outcomes)
    engine.cancel(request.id)
    until(lambda: isinstance(outcomes[-1], protocol.RequestFinished))
    assert engine.pid == pid


def test_large_request_to_a_suspended_engine_does_not_block(
    new_engine: Callable[[], EngineClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    pid = suspend(engine)
    request = protocol.Tokenize(id=engine.next_id(), text="x" * (8 << 20))  # a pipe holds 64 KiB
    with ends_within(120):  # a write that blocks would never end
        outcomes = submit(engine, request)
        engine.cancel(request.id)
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    monkeypatch.setattr(hang_detector, "CANCELLED_TICKS", N_TICKS)
    until(lambda: outcomes.error)


@pytest.mark.parametrize("mode", ["wait", "lock", "stall"])
def test_main_thread_that_hangs_is_noticed(
    new_engine: Callable[[], EngineClient], trigger: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("HANG_MODE", mode)
    engine = new_engine()
    request = long_request(engine)
    outcomes = submit(engine, request)
    until(lambda: outcomes)
    trigger.touch()
    with monkeypatch.context() as patch:
        if mode == "wait":  # heartbeats still arrive, but the request does not end
            patch.setattr(hang_detector, "CANCELLED_TICKS", N_TICKS)
            engine.cancel(request.id)
            until(lambda: outcomes.error)
            assert f"did not end a cancelled request within {N_TICKS} s" in str(outcomes.error)
        elif mode == "stall":  # no request is cancelled: the engine ends itself
            until(lambda: outcomes.error)
            assert "a step of its work took too long" in str(outcomes.error)
        else:
            patch.setattr(hang_detector, "SILENT_TICKS", N_TICKS)
            until(lambda: outcomes.error)
            assert f"did not respond for {N_TICKS} s" in str(outcomes.error)
    trigger.unlink()
    assert len(engine.tokenize("Hello")) > 0


def test_close_does_not_wait_for_an_engine_that_hangs(new_engine: Callable[[], EngineClient]) -> None:
    engine = new_engine()
    request = long_request(engine)
    outcomes = submit(engine, request)
    suspend(engine)
    engine.cancel(request.id)
    cancelled_at = time.monotonic()
    until(lambda: time.monotonic() - cancelled_at > 0.4)
    with ends_within(120):
        engine.close(timeout_s=3600)
    until(lambda: outcomes.error)


def test_killed_engine_leaves_no_process_that_compiles_a_grammar(new_engine: Callable[[], EngineClient]) -> None:
    engine = new_engine()
    process = psutil.Process(engine.pid)
    grammar = 'start: %json {"type": "integer", "multipleOf": 99999989}'
    outcomes = submit(engine, protocol.Generate(id=engine.next_id(), text="Once", grammars=[grammar]))

    def find_compilers() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in process.children() if "_grammar" in child.cmdline()]
        return []

    until(find_compilers)
    [child] = find_compilers()
    until(lambda: child.memory_info().rss > 200 << 20)  # it is compiling
    process.kill()
    until(lambda: has_ended(child))
    until(lambda: outcomes.error)
