"""An engine that hangs: its requests get an error, a new engine follows, and signals still end the server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from typing import Any

import pytest

from tests.serve.client import CANCELLED_TICKS, DRAIN_TIMEOUT_S, NEVER, STOPPED_TICKS, ServerProcess
from tests.serve.conftest import Start
from tests.serve.test_faults import LONG, gauge
from tests.waiting import until


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
        except (OSError, http.client.HTTPException) as error:  # the server closed the connection
            self.answers.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()


def suspend_engine(server: ServerProcess) -> int:
    pid = server.engine_pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def count_requests(server: ServerProcess) -> float:
    return gauge(server, "running") + gauge(server, "waiting")


def test_reply_of_a_suspended_engine_ends_with_an_error_and_the_next_request_works(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "2048", constants={STOPPED_TICKS: 5})
    stream = server.stream(LONG)
    next(stream)
    pid = suspend_engine(server)
    requests = Requests(server)
    requests.add({"messages": "Hi", "max_tokens": 2})  # its prompt is built again after the engine was killed
    events = list(stream)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "engine_died"
    assert events[-2]["error"]["message"] == (
        "The engine process was killed, because it was suspended for 5 s. Send the request again. "
        "The next request restarts the engine."
    )
    requests.join()
    assert requests.answers[0][0] == 200
    assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200
    assert server.engine_pid != pid


def test_one_signal_ends_a_server_whose_engine_hangs(start: Start) -> None:
    constants = {DRAIN_TIMEOUT_S: 1, STOPPED_TICKS: NEVER, CANCELLED_TICKS: NEVER}
    server = start("-m", "starter", "--ctx", "2048", constants=constants)
    requests = Requests(server)
    requests.add(LONG)
    until(lambda: gauge(server, "running") == 1)
    suspend_engine(server)
    requests.add({"messages": "Hi"})
    with server.connect() as connection:  # a client that leaves: only its thread still waits for the engine
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: count_requests(server) == 3)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    requests.join()
    server.close()
    assert not server.has_printed("Traceback")


@pytest.mark.parametrize("n_signals", [2, 3])
def test_further_signals_end_a_server_whose_engine_hangs_at_once(start: Start, n_signals: int) -> None:
    constants = {DRAIN_TIMEOUT_S: NEVER, STOPPED_TICKS: NEVER, CANCELLED_TICKS: NEVER}
    server = start("-m", "starter", "--ctx", "2048", constants=constants)
    requests = Requests(server)
    requests.add(LONG)
    until(lambda: gauge(server, "running") == 1)
    suspend_engine(server)
    server.interrupt()
    until(lambda: server.has_printed("to finish"))
    for _ in range(1, n_signals):
        server.interrupt()
        threading.Event().wait(0.2)  # if the system merges the last two signals, the second one ends the server
    assert server.process.wait(120) == 0
    requests.join()
