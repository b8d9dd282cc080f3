"""Directories of local sockets, and attempts of other users to connect."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from edgechat import paths
from edgechat.engine import local_socket
from edgechat.engine.local_socket import MAX_NAME_BYTES, MAX_PATH_BYTES, connect, listen, socket_dir
from edgechat.engine.private_directory import make_private_directory
from edgechat.engine.socket_channel import read_peer_identity
from edgechat.errors import LocalSocketError

if sys.platform == "win32":
    pytest.skip("users and permissions of POSIX systems", allow_module_level=True)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="creates files and processes of other users")
OTHER_UID = 65534
SHORT_PARENT = Path("/tmp")  # noqa: S108  (the directories in it are checked)
WAIT_S = 60


@pytest.fixture
def shared_dir() -> Iterator[Path]:
    """Directory that other users can enter; those of pytest are private."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_directory_is_private_and_below_edgechat_home(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(shared_dir / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_dir))
    assert socket_dir() == shared_dir / "home" / "cache" / "engines"
    assert _mode(socket_dir()) == 0o700


def test_runtime_directory_of_the_user_is_used_without_edgechat_home(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECHAT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_dir / "cache"))
    cache_directory = paths.cache_dir() / "engines"
    for name in ("", "relative", str(shared_dir / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        assert socket_dir() == cache_directory
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_dir))
    assert socket_dir() == shared_dir / "edgechat"
    assert _mode(shared_dir / "edgechat") == 0o700


@needs_root
def test_runtime_directory_of_another_user_is_not_used(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECHAT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_dir / "cache"))
    runtime_dir = shared_dir / "run"
    runtime_dir.mkdir()
    os.chown(runtime_dir, OTHER_UID, OTHER_UID)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir))
    assert socket_dir() == paths.cache_dir() / "engines"
    assert not list(runtime_dir.iterdir())


def test_long_path_is_replaced_by_a_short_one(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = []
    for name in ("a" * 100, "b" * 100):
        monkeypatch.setenv("EDGECHAT_HOME", str(shared_dir / name))
        directory = socket_dir()
        directories.append(directory)
        try:
            assert directory.parent in {SHORT_PARENT, Path(tempfile.gettempdir())}
            assert directory.name.startswith(f"edgechat-{os.geteuid()}-")
            assert _mode(directory) == 0o700
            assert socket_dir() == directory
            path = directory / ("n" * MAX_NAME_BYTES)
            assert len(os.fsencode(path)) <= MAX_PATH_BYTES
            with contextlib.closing(listen(path)):
                client = connect(path, WAIT_S)
                assert client is not None
                client.close()
        finally:
            (directory / ".listen.lock").unlink(missing_ok=True)
            directory.rmdir()
    assert directories[0] != directories[1]


def test_temporary_directory_with_a_long_path_is_an_error(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(shared_dir / ("a" * 100)))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "tempdir", str(shared_dir / ("t" * 60)))
    with pytest.raises(LocalSocketError, match="too long for a socket"):
        socket_dir()


def test_access_of_others_is_withdrawn(shared_dir: Path) -> None:
    directory = shared_dir / "engines"
    directory.mkdir()
    directory.chmod(0o777)
    make_private_directory(directory)
    assert _mode(directory) == 0o700


def test_linked_directory_is_refused(shared_dir: Path) -> None:
    target = shared_dir / "target"
    target.mkdir(mode=0o755)
    for link_target in (target, shared_dir / "missing"):
        link = shared_dir / "engines"
        link.symlink_to(link_target)
        with pytest.raises(LocalSocketError, match=r"symbolic link|Cannot use the folder"):
            make_private_directory(link)
        link.unlink()
    assert _mode(target) == 0o755
    assert [path.name for path in shared_dir.iterdir()] == ["target"]


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/missing"])
def test_directory_that_cannot_be_created_is_an_error(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", home)
    with pytest.raises(LocalSocketError, match=r"Cannot use the folder .* Correct its permissions"):
        socket_dir()


def test_unknown_home_directory_is_a_local_socket_error(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(shared_dir / ("x" * 300)))
    with pytest.raises(LocalSocketError, match="File name too long"):
        socket_dir()


@needs_root
def test_directory_of_another_user_is_refused(shared_dir: Path) -> None:
    directory = shared_dir / "engines"
    directory.mkdir()
    directory.chmod(0o755)
    os.chown(directory, OTHER_UID, OTHER_UID)
    with pytest.raises(LocalSocketError, match=f"belongs to user {OTHER_UID}, and edgechat runs as user 0"):
        make_private_directory(directory)
    assert _mode(directory) == 0o755


@needs_root
@pytest.mark.parametrize("existing", ["", "cache", "cache/engines"])
def test_root_in_the_home_of_a_user_creates_nothing(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch, existing: str
) -> None:
    home = shared_dir / "home"
    (home / existing).mkdir(parents=True)
    os.chown(home, OTHER_UID, OTHER_UID)
    for directory in home.rglob("*"):
        os.chown(directory, OTHER_UID, OTHER_UID)
    monkeypatch.setenv("EDGECHAT_HOME", str(home))
    before = sorted(home.rglob("*"))
    with pytest.raises(LocalSocketError, match=f"belongs to user {OTHER_UID}, and edgechat runs as user 0"):
        socket_dir()
    assert sorted(home.rglob("*")) == before
    assert all(path.stat().st_uid == OTHER_UID for path in [home, *before])


@needs_root
def test_root_does_not_use_its_own_folder_in_the_home_of_a_user(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shared_dir / "home"
    (home / "cache").mkdir(parents=True)
    os.chown(home, OTHER_UID, OTHER_UID)
    monkeypatch.setenv("EDGECHAT_HOME", str(home))
    with pytest.raises(LocalSocketError, match=f"{home} belongs to user {OTHER_UID}"):
        socket_dir()
    assert not list((home / "cache").iterdir())


# Processes of other users.


# Other users may have no access to the interpreter, so it is started by root.
BECOME_OTHER_USER = f"""
import os, socket, sys
os.setgroups([])
os.setgid({OTHER_UID})
os.setuid({OTHER_UID})
"""


def _make_command(program: str, path: Path) -> list[str]:
    """Return the command that runs a Python program as another user."""
    return [sys.executable, "-I", "-c", BECOME_OTHER_USER + program, str(path)]


def _run_as_other_user(program: str, path: Path) -> str:
    result = subprocess.run(_make_command(program, path), cwd="/", check=True, stdout=subprocess.PIPE, text=True)
    return result.stdout.strip()


CONNECT_PROGRAM = """
for action in (lambda: os.listdir(os.path.dirname(sys.argv[1])),
               lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1])):
    try:
        action()
    except OSError as error:
        print(type(error).__name__, end=" ")
    else:
        print("success", end=" ")
"""


@needs_root
def test_other_user_can_neither_list_the_directory_nor_connect(
    shared_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(shared_dir / "home"))
    path = socket_dir() / "engine.sock"
    with contextlib.closing(listen(path)) as listener:
        assert _run_as_other_user(CONNECT_PROGRAM, path) == "PermissionError PermissionError"
        path.chmod(0o666)
        assert _run_as_other_user(CONNECT_PROGRAM, path) == "PermissionError PermissionError"
        assert listener.accept(0) is None
        path.chmod(0o600)
        path.parent.chmod(0o755)
        assert _run_as_other_user(CONNECT_PROGRAM, path) == "success PermissionError"
        assert listener.accept(0) is None


READ_PROGRAM = f"""
connection = socket.socket(socket.AF_UNIX)
connection.settimeout({WAIT_S})
connection.connect(sys.argv[1])
print("connected", flush=True)
try:
    print("received", len(connection.recv(1)))
except OSError as error:
    print(type(error).__name__)
"""


@needs_root
def test_listener_closes_the_connection_of_another_user(shared_dir: Path) -> None:
    path = shared_dir / "engine.sock"
    with contextlib.closing(listen(path)) as listener:
        path.chmod(0o666)
        with subprocess.Popen(_make_command(READ_PROGRAM, path), cwd="/", stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            own_client = connect(path, WAIT_S)
            assert own_client is not None
            # The connection of the other user is the first one, and `accept` goes on to the next.
            channel = listener.accept(WAIT_S)
            assert channel is not None
            assert channel.peer_pid == os.getpid()
            assert listener.accept(0) is None
            assert process.stdout.read() == "received 0\n"
        own_client.close()
        channel.close()


LISTEN_PROGRAM = """
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@needs_root
def test_client_refuses_the_listener_of_another_user(shared_dir: Path) -> None:
    shared_dir.chmod(0o777)
    path = shared_dir / "engine.sock"
    with subprocess.Popen(
        _make_command(LISTEN_PROGRAM, path), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        for function in (listen, lambda path: connect(path, WAIT_S)):
            with pytest.raises(LocalSocketError, match=f"socket {path} belongs to user {OTHER_UID}"):
                function(path)
        os.chown(path, 0, 0)
        for function in (listen, lambda path: connect(path, WAIT_S)):
            with pytest.raises(LocalSocketError, match=r"process that listens at .* belongs to another user"):
                function(path)
        assert path.exists()


@needs_root
def test_address_file_of_another_user_is_refused(shared_dir: Path) -> None:
    path = shared_dir / "engine.sock"
    with contextlib.closing(listen(path, uses_loopback=True)):
        assert _mode(path) == 0o600
        os.chown(path, OTHER_UID, OTHER_UID)
        with pytest.raises(LocalSocketError, match=f"belongs to user {OTHER_UID}"):
            connect(path, WAIT_S, uses_loopback=True)


def test_system_without_unix_sockets_is_an_error(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(LocalSocketError, match="no Unix sockets"):
        local_socket.listen(shared_dir / "engine.sock")


class _MacSocket:
    """Socket that answers `getsockopt` as macOS does for a Unix socket."""

    def __init__(self, credentials: bytes, pid: bytes) -> None:
        self._values = {(0, 1): credentials, (0, 2): pid}

    def getsockopt(self, level: int, option: int, n_bytes: int) -> bytes:
        return self._values[level, option][:n_bytes]


def test_user_and_process_are_read_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    credentials = struct.pack("=IIhh16I", 0, 501, 1, 0, 20, *[0] * 15)  # struct xucred of sys/ucred.h
    connection = cast("socket.socket", _MacSocket(credentials, struct.pack("i", 4711)))
    assert read_peer_identity(connection) == (501, 4711)
    with pytest.raises(OSError, match="does not report the user"):
        read_peer_identity(cast("socket.socket", _MacSocket(b"", b"")))
