"""Connections over real local sockets, as Unix sockets and as loopback TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.engine import socket_listener
from edgechat.engine.local_socket import connect, listen
from edgechat.engine.loopback import LoopbackAddress
from edgechat.engine.pipe import make_frame
from edgechat.engine.socket_channel import SocketChannel
from edgechat.engine.socket_listener import SECRET_BYTES, Listener
from edgechat.errors import LocalSocketError
from tests.waiting import until

WAIT_S = 60
VARIANTS = [
    pytest.param(False, id="unix", marks=pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")),
    pytest.param(True, id="loopback"),
]
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@pytest.fixture(autouse=True)
def long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test whose threads are stopped by a busy machine more time."""
    monkeypatch.setattr(socket_listener, "HANDSHAKE_TIMEOUT_S", WAIT_S)
    monkeypatch.setattr(socket_listener, "_LOCK_TIMEOUT_S", WAIT_S)


@pytest.fixture(params=VARIANTS)
def uses_loopback(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # shorter than the paths of pytest
        yield Path(directory) / "engine.sock"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


@contextlib.contextmanager
def connected(path: Path, *, uses_loopback: bool) -> Iterator[tuple[SocketChannel, SocketChannel]]:
    """Yield the client's and the listener's end of a connection."""
    with ThreadPoolExecutor() as executor, contextlib.closing(listen(path, uses_loopback=uses_loopback)) as listener:
        accepted = executor.submit(listener.accept, WAIT_S)
        client = connect(path, WAIT_S, uses_loopback=uses_loopback)
        server = accepted.result(WAIT_S)
        assert client is not None
        assert server is not None
        with contextlib.closing(client), contextlib.closing(server):
            yield client, server


@pytest.fixture
def channels(path: Path, uses_loopback: bool) -> Iterator[tuple[SocketChannel, SocketChannel]]:
    with connected(path, uses_loopback=uses_loopback) as pair:
        yield pair


BODIES = st.lists(
    st.builds(lambda part, size: (part * size)[:size], st.binary(min_size=1, max_size=9), st.integers(1, 1 << 20)),
    max_size=4,
)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25)
@given(sent=BODIES, answered=BODIES)
def test_frames_arrive_whole_and_in_order_in_both_directions(
    variant: bool, sent: list[bytes], answered: list[bytes]
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        connected(Path(directory) / "s", uses_loopback=variant) as (client, server),
        ThreadPoolExecutor() as executor,
    ):
        ends = ((client, sent), (server, answered))
        writes = [executor.submit(channel.write, b"".join(map(make_frame, bodies))) for channel, bodies in ends]
        received = executor.submit(lambda: [client.read() for _ in answered])
        assert [server.read() for _ in sent] == sent
        assert received.result(WAIT_S) == answered
        assert all(write.result(WAIT_S) for write in writes)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_part_of_a_frame_before_the_end_is_none(channels: tuple[SocketChannel, SocketChannel], data: bytes) -> None:
    client, server = channels
    assert client.write(data)
    client.close()
    assert server.read() is None


def test_close_ends_a_read_in_another_thread(
    channels: tuple[SocketChannel, SocketChannel], pool: ThreadPoolExecutor
) -> None:
    client, _server = channels
    has_started = threading.Event()

    def read() -> bytes | None:
        has_started.set()
        return client.read()

    reply = pool.submit(read)
    assert has_started.wait(WAIT_S)
    client.close()
    assert reply.result(WAIT_S) is None
    client.close()
    assert client.read() is None


def test_close_ends_a_write_for_which_the_other_end_has_no_room(
    channels: tuple[SocketChannel, SocketChannel], pool: ThreadPoolExecutor
) -> None:
    client, server = channels
    write = pool.submit(client.write, bytes(64 << 20))
    assert server._reader.read(1) == b"\0"  # the write has started
    client.close()
    assert not write.result(WAIT_S)


def test_write_to_a_closed_end_returns_false(channels: tuple[SocketChannel, SocketChannel]) -> None:
    client, server = channels
    server.close()
    until(lambda: not client.write(make_frame(b"x")))  # TCP reports the end after the first write
    assert client.read() is None


def test_process_at_the_other_end_is_known(channels: tuple[SocketChannel, SocketChannel], uses_loopback: bool) -> None:
    expected_pid = None if uses_loopback else os.getpid()
    assert [channel.peer_pid for channel in channels] == [expected_pid, expected_pid]


def test_child_processes_inherit_no_socket(path: Path, uses_loopback: bool) -> None:
    with connected(path, uses_loopback=uses_loopback) as (client, server):
        assert not client._connection.get_inheritable()
        assert not server._connection.get_inheritable()
    with contextlib.closing(listen(path, uses_loopback=uses_loopback)) as listener:
        assert not listener._server.get_inheritable()
        if sys.platform != "win32":
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_nobody_listens_at_a_missing_path(path: Path, uses_loopback: bool) -> None:
    assert connect(path, WAIT_S, uses_loopback=uses_loopback) is None
    listen(path, uses_loopback=uses_loopback).close()
    assert not path.exists()
    assert connect(path, WAIT_S, uses_loopback=uses_loopback) is None


def test_accept_ends_after_its_time_and_at_close(path: Path, uses_loopback: bool, pool: ThreadPoolExecutor) -> None:
    listener = listen(path, uses_loopback=uses_loopback)
    assert listener.accept(0) is None
    assert listener.accept(0.01) is None
    waiting = pool.submit(listener.accept, None)
    until(listener._accept_lock.locked)
    listener.close()
    assert waiting.result(WAIT_S) is None
    listener.close()
    assert listener.accept(None) is None


LISTENING_PROGRAM = """
import sys, pathlib
from edgechat.engine.local_socket import listen
listener = listen(pathlib.Path(sys.argv[1]), uses_loopback=sys.argv[2] == "True")
print("listening", flush=True)
while True:
    listener.accept(None)
"""


def test_socket_of_a_killed_process_is_replaced(path: Path, uses_loopback: bool) -> None:
    command = [sys.executable, "-c", LISTENING_PROGRAM, str(path), str(uses_loopback)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"listening"
        channel = connect(path, WAIT_S, uses_loopback=uses_loopback)
        assert channel is not None
        assert channel.peer_pid in (None, process.pid)
        with pytest.raises(LocalSocketError, match="already listens"):
            listen(path, uses_loopback=uses_loopback)
        process.kill()
        assert channel.read() is None
        channel.close()
    assert path.exists()
    assert connect(path, WAIT_S, uses_loopback=uses_loopback) is None
    assert path.exists()
    with connected(path, uses_loopback=uses_loopback) as (client, server):
        assert client.write(make_frame(b"new"))
        assert server.read() == b"new"


def test_one_of_several_processes_that_start_at_once_listens(
    path: Path, uses_loopback: bool, pool: ThreadPoolExecutor
) -> None:
    _leave_stale_socket(path, uses_loopback=uses_loopback)
    barrier = threading.Barrier(4)

    def start() -> Listener | None:
        barrier.wait(WAIT_S)
        try:
            listener = listen(path, uses_loopback=uses_loopback)
        except LocalSocketError:
            return None
        with contextlib.closing(listener):
            while not are_others_done.is_set():
                channel = listener.accept(0.01)
                if channel is not None:
                    channel.close()
            assert listener.owns_path()
        return listener

    are_others_done = threading.Event()
    starts = [pool.submit(start) for _ in range(barrier.parties)]
    try:
        until(lambda: sum(future.done() for future in starts) == len(starts) - 1)
    finally:
        are_others_done.set()
    assert sum(future.result(WAIT_S) is not None for future in starts) == 1
    assert not path.exists()


def _leave_stale_socket(path: Path, *, uses_loopback: bool) -> None:
    if uses_loopback:
        with contextlib.closing(listen(path, uses_loopback=True)):
            content = path.read_bytes()
        path.write_bytes(content)
    else:
        with socket.socket(socket.AF_UNIX) as stale_socket:
            stale_socket.bind(str(path))


def test_closed_listener_leaves_the_socket_of_its_successor(
    path: Path, uses_loopback: bool, pool: ThreadPoolExecutor
) -> None:
    first = listen(path, uses_loopback=uses_loopback)
    assert first.owns_path()
    path.unlink()
    assert not first.owns_path()
    with contextlib.closing(listen(path, uses_loopback=uses_loopback)) as second:
        assert not first.owns_path()
        first.close()
        accepted = pool.submit(second.accept, WAIT_S)
        client = connect(path, WAIT_S, uses_loopback=uses_loopback)
        server = accepted.result(WAIT_S)
        assert client is not None
        assert server is not None
        client.close()
        server.close()


def test_check_for_a_listener_is_a_connection_that_ends(
    path: Path, uses_loopback: bool, pool: ThreadPoolExecutor
) -> None:
    with contextlib.closing(listen(path, uses_loopback=uses_loopback)) as listener:
        accepted = pool.submit(listener.accept, WAIT_S)
        with pytest.raises(LocalSocketError, match="already listens"):
            listen(path, uses_loopback=uses_loopback)
        channel = accepted.result(WAIT_S)
        assert channel is not None
        assert channel.read() is None
        channel.close()


def test_locked_directory_is_an_error(path: Path, uses_loopback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_listener, "_LOCK_TIMEOUT_S", 0.01)
    with socket_listener.lock_directory(path.parent), pytest.raises(LocalSocketError, match="has locked"):
        listen(path, uses_loopback=uses_loopback)
    listen(path, uses_loopback=uses_loopback).close()


@unix_only
def test_path_that_cannot_hold_a_socket_is_an_error(path: Path) -> None:
    for bad_path in (path.with_name("x" * 120), path.parent / "missing" / "engine.sock"):
        with pytest.raises(LocalSocketError, match="Cannot create the socket"):
            listen(bad_path)
    path.write_text("text")
    for function in (listen, lambda path: connect(path, WAIT_S)):
        with pytest.raises(LocalSocketError, match="is not a socket of edgechat"):
            function(path)
    assert path.read_text() == "text"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report a full backlog as a refused connection")
def test_listener_that_accepts_no_connection_is_an_error(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(listen(path)))
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(LocalSocketError, match=r"did not answer within 0.01 s"):
            connect(path, 0.01)


# Loopback TCP: secrets.


@pytest.fixture
def loopback_listener(path: Path) -> Iterator[Listener]:
    with contextlib.closing(listen(path, uses_loopback=True)) as listener:
        yield listener


def _read_address(path: Path) -> LoopbackAddress:
    return msgspec.json.decode(path.read_bytes(), type=LoopbackAddress)


def _connect_stranger(path: Path, data: bytes) -> socket.socket:
    stranger = socket.create_connection(("127.0.0.1", _read_address(path).port), WAIT_S)
    stranger.sendall(data)
    return stranger


def _accepts_client(listener: Listener, path: Path, pool: ThreadPoolExecutor) -> bool:
    accepted: Future[SocketChannel | None] = pool.submit(listener.accept, WAIT_S)
    client = connect(path, WAIT_S, uses_loopback=True)
    server = accepted.result(WAIT_S)
    assert client is not None
    assert server is not None
    with contextlib.closing(client), contextlib.closing(server):
        return server.write(make_frame(b"x")) and client.read() == b"x"


@pytest.mark.parametrize("data", [b"", b"\0", bytes(SECRET_BYTES), bytes(SECRET_BYTES) + b"more"])
def test_stranger_without_the_secret_is_closed_and_blocks_nobody(
    path: Path, loopback_listener: Listener, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    with _connect_stranger(path, data) as stranger:
        assert _accepts_client(loopback_listener, path, pool)
        monkeypatch.setattr(socket_listener, "HANDSHAKE_TIMEOUT_S", 0)
        with _connect_stranger(path, data):
            assert loopback_listener.accept(0.01) is None
        if len(data) >= SECRET_BYTES:
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""


def test_late_secret_is_refused(path: Path, loopback_listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_listener, "HANDSHAKE_TIMEOUT_S", 0)
    client_secret = _read_address(path).client_secret
    with _connect_stranger(path, b"") as stranger:
        assert loopback_listener.accept(0.01) is None
        with contextlib.suppress(ConnectionError):
            stranger.sendall(client_secret)
            assert stranger.recv(1) == b""
        assert loopback_listener.accept(0.01) is None


def test_secret_in_several_parts_is_accepted(path: Path, loopback_listener: Listener) -> None:
    address = _read_address(path)
    with _connect_stranger(path, address.client_secret[:5]) as client:
        assert loopback_listener.accept(0.05) is None
        client.sendall(address.client_secret[5:])
        channel = loopback_listener.accept(WAIT_S)
        assert channel is not None
        assert client.recv(SECRET_BYTES) == address.listener_secret
        channel.close()


def test_flood_of_silent_strangers_blocks_nobody(
    path: Path, loopback_listener: Listener, pool: ThreadPoolExecutor
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            for _ in range(socket_listener.BACKLOG - 10):
                stack.enter_context(_connect_stranger(path, b""))
            loopback_listener.accept(0)
            assert _accepts_client(loopback_listener, path, pool)
            assert len(loopback_listener._handshakes) <= socket_listener.BACKLOG


@pytest.mark.parametrize("reply", [b"", b"\0", bytes(SECRET_BYTES)])
def test_other_process_at_the_port_of_an_ended_listener_is_not_used(
    path: Path, pool: ThreadPoolExecutor, reply: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _write_address(path, server.getsockname()[1])

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(reply)
                assert connection.recv(SECRET_BYTES) == bytes(SECRET_BYTES)

        answering = pool.submit(answer)
        assert connect(path, WAIT_S, uses_loopback=True) is None
        answering.result(WAIT_S)


def _write_address(path: Path, port: int) -> None:
    address = LoopbackAddress(port=port, client_secret=bytes(SECRET_BYTES), listener_secret=b"\1" * SECRET_BYTES)
    path.write_bytes(msgspec.json.encode(address))


def test_silent_process_at_the_port_is_an_error(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _write_address(path, server.getsockname()[1])
        with pytest.raises(LocalSocketError, match="did not answer within"):
            connect(path, 0.05, uses_loopback=True)


@pytest.mark.parametrize("content", [b"", b"{", b'{"port":1,"client_secret":"","listener_secret":""}', b"x" * 10_000])
def test_damaged_address_file_is_replaced(path: Path, pool: ThreadPoolExecutor, content: bytes) -> None:
    path.write_bytes(content)
    assert connect(path, WAIT_S, uses_loopback=True) is None
    with contextlib.closing(listen(path, uses_loopback=True)) as listener:
        assert _accepts_client(listener, path, pool)
