"""An engine that hangs: its requests get an error, a new engine follows, and signals still end the server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import pytest

from edgechat.engine.hang_detector import STOPPED_TICKS
from edgechat.serve.server import DRAIN_TIMEOUT_S
from tests.serve.client import ServerProcess
from tests.serve.conftest import Start
from tests.serve.test_faults import LONG, gauge
from tests.waiting import until

MAX_SHUTDOWN_S = DRAIN_TIMEOUT_S + 10  # docs/serve.md: 12 s; the processes of a busy machine end later


class Requests:
    """Chat completions on threads of their own."""

    def __init__(self, server: ServerProcess) -> None:
        self.answers: list[Any] = []
        self._server = server
        self._threads: list[threading.Thread] = []

    def add(self, body: dict[str, Any]) -> None:
        self._threads.append(threading.Thread(target=self._request, args=(body,)))
        self._threads[-1].start()

    def _request(self, body: dict[str, Any]) -> None:
        try:
            self.answers.append(self._server.chat(body))
        except OSError as error:  # the server closed the connection
            self.answers.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def suspend_engine(server: ServerProcess) -> int:
    pid = server.engine_pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_requests_of_a_suspended_engine_end_with_an_error_and_the_next_one_works(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "2048")
    stream = server.stream(LONG)
    next(stream)
    pid = suspend_engine(server)
    suspended_at = time.monotonic()
    requests = Requests(server)
    requests.add({"messages": "Hi", "max_tokens": 2})  # waits for the engine to count its tokens
    events = list(stream)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "engine_died"
    assert events[-2]["error"]["message"] == (
        f"The engine process was killed, because it was suspended for {STOPPED_TICKS} s. Send the request again. "
        "The next request restarts the engine."
    )
    requests.join()
    assert requests.answers[0][0] == 500
    assert time.monotonic() - suspended_at < STOPPED_TICKS + 30
    assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200
    assert server.engine_pid != pid


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_server_whose_engine_hangs(start: Start, stop_signal: signal.Signals) -> None:
    server = start("-m", "starter", "--ctx", "2048")
    requests = Requests(server)
    requests.add(LONG)
    until(lambda: gauge(server, "running") == 1)
    suspend_engine(server)
    requests.add({"messages": "Hi"})
    with server.connect() as connection:  # a client that leaves: only its thread still waits for the engine
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: gauge(server, "running") + gauge(server, "waiting") == 3)
    server.process.send_signal(stop_signal)
    started_at = time.monotonic()
    assert server.process.wait(60) == 0
    assert time.monotonic() - started_at < MAX_SHUTDOWN_S
    requests.join()
    assert "Traceback" not in "".join(server.errors)


def test_further_signals_end_a_server_whose_engine_hangs_at_once(start: Start) -> None:
    for n_signals, max_s in ((2, DRAIN_TIMEOUT_S - 2), (3, DRAIN_TIMEOUT_S - 2)):
        server = start("-m", "starter", "--ctx", "2048")
        requests = Requests(server)
        requests.add(LONG)
        until(lambda server=server: gauge(server, "running") == 1)  # type: ignore[misc]
        suspend_engine(server)
        started_at = time.monotonic()
        for _ in range(n_signals):
            server.interrupt()
            threading.Event().wait(0.2)  # Linux merges signals that arrive at once
        assert server.process.wait(60) == 0
        assert time.monotonic() - started_at < max_s
        requests.join()
