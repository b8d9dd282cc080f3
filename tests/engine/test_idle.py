"""What an engine does while nothing is asked gives way at once, and harms nobody when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgechat.engine import protocol
from edgechat.engine import server as hosts
from edgechat.engine.pipe import Channel
from edgechat.engine.server import EngineServer
from edgechat.errors import EngineError


class Context:
    """Blocks like a long decode until it is aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def abort(self) -> None:
        self.aborted.set()

    def clear_abort(self) -> None:
        self.aborted.clear()


def a_host(speculation: Callable[[Callable[[bool], None], Context], bool]) -> tuple[EngineServer, Context]:
    host, context = EngineServer(cast("Channel", None)), Context()
    host._context = cast("Any", context)
    host._speculation = cast("Any", SimpleNamespace(idle_step=lambda allow: speculation(allow, context)))
    return host, context


def test_a_request_ends_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "IDLE_AFTER_S", 0.01)
    entered = threading.Event()

    def rehearse(allow: Callable[[bool], None], context: Context) -> bool:
        allow(True)
        entered.set()
        was_aborted = context.aborted.wait(20)
        allow(False)
        assert was_aborted
        return False

    host, context = a_host(rehearse)
    frames: list[bytes] = [protocol.encode(protocol.Stats(id=1))[4:]]

    def read() -> bytes | None:
        if frames:
            entered.wait(20)
            return frames.pop()
        threading.Event().wait()  # for good: when a client is gone, its engine ends the process
        return None

    host._channel = cast("Any", SimpleNamespace(read=read))
    threading.Thread(target=host._read, daemon=True).start()
    started = time.monotonic()
    request, _ = host._next()
    assert time.monotonic() - started < 10
    assert getattr(request, "id", 0) == 1
    assert not context.aborted.is_set()  # what comes next is not stopped


def test_a_request_that_came_just_before_ends_it_too() -> None:
    def rehearse(allow: Callable[[bool], None], context: Context) -> bool:
        host._requests.put((protocol.Stats(id=1), 0.0))
        allow(True)
        return context.aborted.is_set()

    host, _ = a_host(rehearse)
    assert host._idle_step() == 0.0


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), EngineError("no")])
def test_what_fails_in_idle_time_ends_nothing(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(allow: Callable[[bool], None], context: Context) -> bool:
        raise error

    host, _ = a_host(fail)
    assert host._idle_step() is None
    assert "idle work failed" in capsys.readouterr().err
