"""HTTP connections to a server without models: deadlines, limits per address, half-closed and broken connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edgechat.serve import connections
from edgechat.serve import server as server_module
from edgechat.serve.connections import ConnectionTable
from edgechat.serve.middleware import AccessRules, RequestGuard
from edgechat.serve.server import BACKLOG, HttpServer, bind_socket
from tests.waiting import until

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Clock:
    """Clock of the server that only the test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class App:
    """ASGI application: `/health` answers at once, `/wait` when the test allows it, `/large` with 64 MiB."""

    def __init__(self) -> None:
        self.can_respond = threading.Event()
        self.paths: list[str] = []
        self.n_disconnected = 0
        self.n_running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.paths.append(path)
        body = b"x" * (64 << 20) if path == "/large" else b"ok"
        if path == "/wait":
            self.n_running += 1
            is_gone = await self._wait(receive)
            self.n_running -= 1
            if is_gone:
                self.n_disconnected += 1
                return
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _wait(self, receive: Any) -> bool:
        """Wait until the test allows the response; return True if the client disconnected before."""
        message = asyncio.ensure_future(receive())
        while not self.can_respond.is_set():
            await asyncio.wait({message}, timeout=0.01)
            if message.done():
                if message.result()["type"] == "http.disconnect":
                    return True
                message = asyncio.ensure_future(receive())
        message.cancel()
        return False


class Server:
    """HTTP server of an `App`, with a table of few connections, in a thread."""

    def __init__(self, app: App, max_connections: int = 8) -> None:
        self.app = app
        self.statuses: list[int] = []
        guard = RequestGuard(app, AccessRules(host="127.0.0.1"), lambda path, status: self.statuses.append(status))
        self.server = HttpServer(guard, {}, print)
        self.table = self.server._connections
        self.table._max_connections = max_connections
        self._socket = bind_socket("127.0.0.1", 0)
        self._socket.listen(BACKLOG)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        client.sendall(data)
        return client

    def close(self) -> None:
        self.app.can_respond.set()
        self.server.should_exit = self.server.force_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(server_module, "_TICKS_PER_S", 1)  # check deadlines ten times per second
    for name in ("HEAD_TIMEOUT_S", "KEEP_ALIVE_TIMEOUT_S", "WRITE_TIMEOUT_S"):  # a busy machine can stop the client
        monkeypatch.setattr(connections, name, 600.0)
    server = Server(app)
    yield server
    server.close()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def read_all(client: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            data += chunk
    return data


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def read_response(client: socket.socket) -> bytes:
    """Return one response with the body `ok`."""
    data = b""
    while not data.endswith(b"\r\n\r\nok"):
        chunk = client.recv(1 << 16)
        assert chunk, data
        data += chunk
    return data


@pytest.mark.parametrize("n_whole_requests", [0, 1, 2])
@pytest.mark.parametrize("tail", [b"G", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-", b"\r\n"])
def test_slow_head_is_closed_after_any_request(
    server: Server, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, n_whole_requests: int, tail: bytes
) -> None:
    client = stack.enter_context(server.connect())
    for _ in range(n_whole_requests):
        client.sendall(HEALTH)
        read_response(client)
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.2)
    client.sendall(tail)

    def is_closed_in_spite_of_more_bytes() -> bool:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"a")
        return is_closed(client)

    until(is_closed_in_spite_of_more_bytes, interval_s=0.05)
    until(lambda: len(server.table) == 0)
    assert server.statuses == [200] * n_whole_requests


def test_body_after_an_early_response_has_a_deadline(
    server: Server, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgechat.serve.bodies._DISCARD_TIMEOUT_S", 0.1)
    client = stack.enter_context(server.connect(HEALTH.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n")))
    assert read_response(client).startswith(b"HTTP/1.1 200")
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.2)

    def is_closed_in_spite_of_more_bytes() -> bool:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"a")
        return is_closed(client)

    until(is_closed_in_spite_of_more_bytes, interval_s=0.05)


def test_idle_connection_is_closed_and_a_used_one_stays_open(
    server: Server, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(connections, "time", clock)
    monkeypatch.setattr(connections, "KEEP_ALIVE_TIMEOUT_S", 30.0)
    idle, used = (stack.enter_context(server.connect(HEALTH)) for _ in range(2))
    read_response(idle)
    read_response(used)
    for clock.now in (20.0, 40.0):
        used.sendall(HEALTH)
        read_response(used)
    until(lambda: is_closed(idle))
    used.sendall(HEALTH)
    read_response(used)


def test_new_local_connection_replaces_the_slowest_one(server: Server, stack: contextlib.ExitStack) -> None:
    slow: list[socket.socket] = []
    for _ in range(8):
        slow.append(stack.enter_context(server.connect(HEALTH)))
        read_response(slow[-1])
        slow[-1].sendall(b"G")
    assert len(server.table) == 8
    for number in range(20):
        with server.connect(HEALTH) as client:
            read_response(client)
        until(lambda: len(server.table) <= 8)
        if number == 0:
            until(lambda: is_closed(slow[0]))
            assert not is_closed(slow[7])


def test_running_requests_are_never_replaced(server: Server, app: App, stack: contextlib.ExitStack) -> None:
    running = [stack.enter_context(server.connect(HEALTH.replace(b"/health", b"/wait"))) for _ in range(8)]
    until(lambda: app.n_running == 8)
    with server.connect(HEALTH) as client:
        assert read_all(client).startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n")
    app.can_respond.set()
    for client in running:
        assert read_response(client).startswith(b"HTTP/1.1 200")
    with server.connect(HEALTH) as client:
        assert read_response(client)


class FakeConnection:
    """Connection without a socket, for `ConnectionTable`."""

    def __init__(self, phase_started_at: float, *, has_whole_request: bool = False) -> None:
        self.phase_started_at = phase_started_at
        self.has_whole_request = has_whole_request
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def test_one_address_cannot_shut_out_others() -> None:
    table = ConnectionTable(10)

    def add(address: str, connection: FakeConnection) -> bool:
        is_accepted = table.add(connection, address)  # type: ignore[arg-type]
        for c in [c for c in table._all() if c.is_aborted]:  # type: ignore[attr-defined]
            table.discard(c, next(a for a, known in table._by_address.items() if c in known))
        return is_accepted

    hostile = [FakeConnection(i) for i in range(20)]
    assert all(add("1.1.1.1", c) for c in hostile)
    assert [c.is_aborted for c in hostile] == [True] * 15 + [False] * 5  # half of the table remains
    honest = [FakeConnection(100 + i) for i in range(5)]
    assert all(add("2.2.2.2", c) for c in honest)
    assert not any(c.is_aborted for c in (*honest, *hostile[15:]))
    busy = [FakeConnection(200 + i, has_whole_request=True) for i in range(4)]
    assert all(add("loopback", c) for c in busy)  # closes connections of the addresses with the most connections
    assert not any(c.is_aborted for c in busy)
    assert len(table) == 10
    assert sum(c.is_aborted for c in honest) == 2
    full = ConnectionTable(4)
    busy = [FakeConnection(i, has_whole_request=True) for i in range(2)]
    assert all(full.add(c, "1.1.1.1") for c in busy)  # type: ignore[arg-type]
    assert not full.add(FakeConnection(9), "1.1.1.1")  # type: ignore[arg-type]
    assert full.add(FakeConnection(9), "2.2.2.2")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_half_closed_connection_gets_its_responses(
    server: Server, app: App, stack: contextlib.ExitStack, version: bytes
) -> None:
    request = HEALTH.replace(b"1.1", version)
    with server.connect(request) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")
    client = stack.enter_context(server.connect(request.replace(b"/health", b"/wait")))
    client.shutdown(socket.SHUT_WR)
    until(lambda: app.n_running == 1)
    app.can_respond.set()
    answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\nok")
    until(lambda: len(server.table) == 0)


def test_half_closed_connection_gets_the_responses_of_all_its_requests(server: Server, app: App) -> None:
    with server.connect(HEALTH.replace(b"/health", b"/wait") + HEALTH + HEALTH) as client:
        client.shutdown(socket.SHUT_WR)
        until(lambda: app.n_running == 1)
        app.can_respond.set()
        answer = read_all(client)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == answer.count(b"\r\n\r\nok") == 3


def test_request_of_a_closed_connection_is_cancelled(server: Server, app: App) -> None:
    client = server.connect(HEALTH.replace(b"/health", b"/wait"))
    until(lambda: app.n_running == 1)
    client.close()
    until(lambda: app.n_disconnected == 1)
    client = server.connect(b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
    until(lambda: app.n_running == 1)
    client.shutdown(socket.SHUT_WR)  # the rest of the body cannot come any more
    until(lambda: app.n_disconnected == 2)
    client.close()


def test_body_with_two_lengths_is_refused_and_not_taken_for_a_request(server: Server, app: App) -> None:
    smuggled = b"0\r\n\r\n" + HEALTH.replace(b"/health", b"/secret")
    with server.connect(
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s"
        % (len(smuggled), smuggled)
    ) as client:
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"must not have both" in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert app.paths == []


def test_body_of_many_tiny_chunks_is_refused(server: Server, app: App) -> None:
    head = HEALTH.replace(b"GET /health", b"POST /wait").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    with server.connect(head) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"1\r\n \r\n" * 100_000)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer  # the reset of the rest of the body can arrive first
    until(lambda: app.n_disconnected == 1)
    app.can_respond.set()
    with server.connect(head + b"1\r\n \r\n" * 900 + b"0\r\n\r\n") as client:
        assert read_response(client).startswith(b"HTTP/1.1 200 ")


def test_client_that_does_not_read_is_disconnected(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 0.2)
    with server.connect(HEALTH.replace(b"/health", b"/large")):
        until(lambda: server.statuses == [200])  # the request ends although the response was not read
        until(lambda: len(server.table) == 0)


def test_slow_reader_gets_its_whole_response(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, n_checks, check_deadlines = Clock(), 0, server.table.check_deadlines

    def count_checks() -> None:
        nonlocal n_checks
        check_deadlines()
        n_checks += 1

    monkeypatch.setattr(connections, "time", clock)
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 30.0)
    monkeypatch.setattr(server.table, "check_deadlines", count_checks)
    request = HEALTH.replace(b"/health", b"/large").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    n_bytes, n_checked_bytes = 0, 0
    with server.connect(request) as client:
        while chunk := client.recv(1 << 20):
            n_bytes += len(chunk)
            clock.now = n_bytes / (1 << 20)  # the client reads one megabyte per second
            if n_bytes - n_checked_bytes >= 20 << 20:  # more than the system buffers
                n_checked_bytes, n_checks_before = n_bytes, n_checks
                until(lambda: n_checks > n_checks_before + 1)  # noqa: B023
    assert n_bytes > 64 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"A" * 100_000,
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)  # fmt: skip
def test_invalid_request_leaves_no_traceback(
    server: Server, caplog: pytest.LogCaptureFixture, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        with server.connect() as client:
            with contextlib.suppress(OSError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            read_all(client)
        with server.connect(HEALTH) as client:
            read_response(client)
        until(lambda: len(server.table) == 0)
    assert [r for r in caplog.records if r.exc_info] == []
    assert "Traceback" not in capsys.readouterr().err


def test_invalid_request_after_a_valid_one_gets_a_response(server: Server) -> None:
    with server.connect(HEALTH) as client:
        read_response(client)
        client.sendall(b"\x00\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 400 ")


def test_requests_that_end_with_the_server_leave_no_traceback(app: App, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(app)
    client = server.connect(HEALTH.replace(b"/health", b"/wait"))
    until(lambda: app.n_running == 1)
    server.server.should_exit = server.server.force_exit = True
    server._thread.join(60)
    client.close()
    assert [r for r in caplog.records if r.exc_info] == []


def test_number_of_connections_follows_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = [(256, 300)]

    def set_limit(kind: int, values: tuple[int, int]) -> None:
        limits.append(values)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert connections.raise_connection_limit() == 300 - connections._RESERVED_FILES
    assert limits[-1] == (300, 300)
    limits.append((1024, resource.RLIM_INFINITY))
    assert connections.raise_connection_limit() == connections.MAX_CONNECTIONS
    assert limits[-1] == (4096, resource.RLIM_INFINITY)
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connections.raise_connection_limit() == connections.MAX_CONNECTIONS
