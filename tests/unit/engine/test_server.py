"""The engine server's idle work, which a request aborts, and its end after a failure of the GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgechat.engine import frames, protocol, server
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.server import EngineServer
from edgechat.errors import ComputeError, EngineError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.process import EXIT_GPU_FAILED
from edgechat.runtime.backends import gpu_probe
from tests.time_limit import HANG_S

AllowAbort = Callable[[bool], None]


class IdleModel(EngineModel):
    """Does the given idle work; like a context, it can be aborted during a long decode."""

    def __init__(self, work: Callable[[AllowAbort, threading.Event], float | None]) -> None:
        self.aborted = threading.Event()
        self._work = work

    def idle_step(self, allow_abort: AllowAbort) -> float | None:
        return self._work(allow_abort, self.aborted)

    def abort(self) -> None:
        self.aborted.set()

    def clear_abort(self) -> None:
        self.aborted.clear()


def server_with(model: EngineModel) -> EngineServer:
    engine_server = EngineServer()
    engine_server._model = model
    return engine_server


def test_request_aborts_idle_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_DELAY_S", 0.01)
    entered = threading.Event()
    outcomes: list[bool] = []

    def work(allow_abort: AllowAbort, aborted: threading.Event) -> None:
        allow_abort(True)
        entered.set()
        outcomes.append(aborted.wait(HANG_S))
        allow_abort(False)

    model = IdleModel(work)
    engine_server = server_with(model)
    bodies: list[bytes] = [frames.encode(protocol.Stats(id=1))[4:]]

    def read() -> bytes | None:
        if bodies:
            entered.wait(HANG_S)
            return bodies.pop()
        threading.Event().wait()  # blocks forever: the end of the pipe would end this process
        return None

    engine_server.clients.add(cast("Any", SimpleNamespace(read=read)))
    request, _ = engine_server._wait_for_request()
    assert outcomes == [True]
    assert getattr(request, "id", 0) == 1
    assert not model.aborted.is_set()  # the request itself must not be aborted


def test_request_that_arrived_before_idle_work_aborts_it() -> None:
    def work(allow_abort: AllowAbort, aborted: threading.Event) -> float | None:
        engine_server._requests.put((protocol.Stats(id=1), 0.0))
        allow_abort(True)
        return 0.0 if aborted.is_set() else None

    engine_server = server_with(IdleModel(work))
    assert engine_server._idle_step() == 0.0


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), EngineError("no")])
def test_error_in_idle_work_is_logged_and_ends_the_idle_work(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(allow_abort: AllowAbort, aborted: threading.Event) -> None:
        raise error

    engine_server = server_with(IdleModel(work))
    assert engine_server._idle_step() is None
    assert "Idle work failed" in capsys.readouterr().err


def test_resident_engine_sends_a_failure_of_its_gpu_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingModel(EngineModel):
        def execute(self, request: protocol.AnyRequest, arrived_at: float) -> None:
            raise ComputeError("The device was lost.")

    calls: list[object] = []

    def end(code: int) -> None:
        calls.append(code)
        raise SystemExit

    engine_server = EngineServer(is_resident=True)
    engine_server._model = FailingModel()
    plan = make_manual_plan("m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=9)
    engine_server._load_request = protocol.Load(id=1, plan=plan)
    monkeypatch.setattr(server, "find_bundle", lambda: None)
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *_: calls.append("recorded"))
    monkeypatch.setattr(engine_server.clients, "write", lambda event: calls.append(type(event).__name__))
    monkeypatch.setattr(engine_server.clients, "flush", lambda _: calls.append("flushed"))
    monkeypatch.setattr("os._exit", end)
    engine_server.receive(protocol.Embed(id=5, inputs=[[1]]))
    engine_server.receive(protocol.Embed(id=6, inputs=[[1]]))
    with pytest.raises(SystemExit):
        engine_server.serve()
    assert calls[:2] == ["recorded", "RequestFailed"]
    assert calls[-2:] == ["flushed", EXIT_GPU_FAILED]
