"""Locks and status requests of the clients of resident engines."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgechat.engine import frames, protocol, resident_client
from edgechat.engine.local_socket import socket_dir
from edgechat.errors import EngineDiedError, LocalSocketError
from edgechat.files import FileLock

STATUS = protocol.EngineStatus(id=1, load=None, loaded=None, clients=[], idle_s=1.0, keep_alive_s=2.0, decode_tps=None)
HOLDER = """
import sys, time
from pathlib import Path
from edgechat.files import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
lock.write_owner()
print("held", flush=True)
time.sleep(600)
"""


def raise_closed() -> None:
    raise EngineDiedError("closed")


def test_status_is_found_behind_heartbeats() -> None:
    bodies = [frames.encode(event)[4:] for event in (protocol.Heartbeat(id=0), protocol.Heartbeat(id=0), STATUS)]
    channel = SimpleNamespace(
        set_timeout=lambda timeout_s: None, write=lambda frame: True, read=lambda: bodies.pop(0) if bodies else None
    )
    link = cast("Any", SimpleNamespace(channel=channel))
    assert resident_client._ask_for_status(link) == STATUS
    assert resident_client._ask_for_status(link) is None


@pytest.mark.skipif(sys.platform == "win32", reason="uses flock")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks_is_an_error(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    socket_dir()
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(LocalSocketError, match="no locks"), resident_client.lock_loading(lambda: None):
        pass


@pytest.fixture
def holder() -> Any:
    command = [sys.executable, "-c", HOLDER, str(socket_dir() / "loading.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_waiting_for_the_lock_ends_when_the_client_is_closed(holder: subprocess.Popen[str]) -> None:
    waits: list[bool] = []
    with (
        pytest.raises(EngineDiedError, match="closed"),
        resident_client.lock_loading(lambda: waits.append(True), raise_closed),
    ):
        pass
    assert waits == [True]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that suspend")
def test_suspended_program_with_the_lock_is_named(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LocalSocketError, match=f"process {holder.pid}"), resident_client.lock_loading(lambda: None):
        pass


def test_lock_is_free_after_its_holder_has_ended(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with resident_client.lock_loading(lambda: pytest.fail("nobody holds the lock")):
        assert FileLock(socket_dir() / "loading.lock").read_owner() == os.getpid()
