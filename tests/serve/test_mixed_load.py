"""Mixed load: four honest clients are served while 200 hostile ones abuse the server, and nothing leaks.

All clients have loopback addresses, to which the limits of one address do not apply, so the server must withstand the
hostile clients without these limits. `tests/unit/serve/test_connections.py` and `test_model_queue.py` test the limits
with other addresses.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.fuzzing import shorten
from tests.serve.client import ServerProcess, user
from tests.serve.conftest import Start
from tests.waiting import until

# Seconds of mixed load. A run of ten minutes finds slower leaks: EDGECHAT_LOAD_TEST_S=600.
LOAD_S = float(os.environ.get("EDGECHAT_LOAD_TEST_S", shorten(30, 8)))
# Growth of the memory that is no leak: blocks that the allocator keeps. A large body has 15 MiB.
MAX_GROWTH_KIB = 40 << 10
N_HOSTILE = 200
N_HONEST = 4
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
QUESTIONS = ["What is gravity?", "Name a river.", "Why is the sky blue?", "Tell me about bees.", "What is a poem?"]
OPTIONS: list[dict[str, Any]] = [
    {}, {"stream": True}, {"response_format": {"type": "json_object"}}, {"tools": [TOOL], "tool_choice": "required"},
]  # fmt: skip


class HonestClient(threading.Thread):
    """Client that sends one request after another and checks every answer."""

    def __init__(self, server: ServerProcess, number: int) -> None:
        super().__init__(daemon=True)
        self.durations_s: list[float] = []
        self.failures: list[Any] = []
        self.is_stopped = threading.Event()
        self._server = server
        self._number = number

    def run(self) -> None:
        request_number = self._number
        while not self.is_stopped.is_set():
            options = OPTIONS[request_number % len(OPTIONS)]
            question = QUESTIONS[request_number // len(OPTIONS) % len(QUESTIONS)]
            body = {"messages": user(question), "max_tokens": 24, "temperature": 0} | options
            started_at = time.monotonic()
            try:
                self._check(body)
            except Exception as error:  # noqa: BLE001  (every kind of failure counts)
                self.failures.append((body, repr(error)))
            self.durations_s.append(time.monotonic() - started_at)
            request_number += 1

    def _check(self, body: dict[str, Any]) -> None:
        if body.get("stream"):
            events = list(self._server.stream(body))
            assert events[-1] == "[DONE]"
            assert events[-2]["choices"][0]["finish_reason"] in {"stop", "length"}
            return
        status, answer = self._server.chat(body)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] > 0


def run_honest_clients(server: ServerProcess, duration_s: float) -> list[float]:
    """Return the durations of all requests; fail if one was not answered."""
    clients = [HonestClient(server, i) for i in range(N_HONEST)]
    for client in clients:
        client.start()
    clients[0].is_stopped.wait(duration_s)
    for client in clients:
        client.is_stopped.set()
    for client in clients:
        client.join(600)
        assert not client.is_alive()
    failures = [failure for client in clients for failure in client.failures]
    assert not failures, (len(failures), failures[:3])
    return [duration for client in clients for duration in client.durations_s]


@contextlib.contextmanager
def hostile_clients(server: ServerProcess, seed: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.hostile_clients", str(server.port), str(N_HOSTILE), str(seed)], cwd=ROOT
    )
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


class Resources:
    """Memory and open files of the server and its child processes, without connections."""

    def __init__(self, server: ServerProcess) -> None:
        until(lambda: count_sockets(server.process.pid) == 1, 60, "only the listening socket is open")
        self.pids = list_processes(server.process.pid)
        self.rss_kib = 1 << 40

        def is_settled() -> bool:
            """The server returns memory of large bodies a second after the last one."""
            before, self.rss_kib = self.rss_kib, sum(read_rss_kib(pid) for pid in self.pids)
            return self.rss_kib > 0.995 * before

        until(is_settled, 60, "the memory does not shrink", interval_s=1.5)

    def count_files(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)


def list_processes(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(child) for task in tasks for child in task.read_text().split())]


def read_rss_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def count_sockets(pid: int) -> int:
    n_sockets = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            n_sockets += fd.readlink().name.startswith("socket:")
    return n_sockets - 2  # asyncio's own pair


@pytest.mark.long
def test_honest_clients_are_served_among_hostile_ones(start: Start) -> None:
    # With this budget the prefix cache has 5 MB of memory, which it fills in the warm-up. Its growth is no leak. The
    # queue has room for requests that a busy server has not cancelled yet.
    server = start("-m", "starter", "--ctx", "2048", "--budget", "280MB", "--max-requests", "256")
    run_honest_clients(server, LOAD_S / 6)
    quiet = run_honest_clients(server, LOAD_S / 4)
    with hostile_clients(server, seed=1):
        run_honest_clients(server, LOAD_S / 3)
    before = Resources(server)
    n_files_before = before.count_files()
    with hostile_clients(server, seed=2):
        loaded = run_honest_clients(server, LOAD_S)
    after = Resources(server)
    figures = (
        f"median {statistics.median(quiet):.3f} s without and {statistics.median(loaded):.3f} s with hostile clients, "
        f"{len(loaded)} requests, slowest {max(loaded):.2f} s; RSS {before.rss_kib} and {after.rss_kib} KiB; "
        f"files {n_files_before} and {after.count_files()}"
    )
    sys.stdout.write(figures + "\n")
    assert after.rss_kib <= before.rss_kib + MAX_GROWTH_KIB, figures
    until(lambda: after.count_files() <= n_files_before, description=figures)
    assert len(after.pids) == len(before.pids)
    assert "Traceback" not in "".join(server.errors), "".join(server.errors)[-3000:]
