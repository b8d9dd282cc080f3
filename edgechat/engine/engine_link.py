"""Link of a client to an engine process: the connection, the process itself, and how it ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Final, Protocol

from edgechat.engine.local_socket import connect
from edgechat.engine.pipe import Channel, spawn_child
from edgechat.engine.resident_files import EngineRecord, ResidentFiles
from edgechat.engine.socket_channel import SocketChannel
from edgechat.errors import EngineDiedError, LocalSocketError, format_reason
from edgechat.files import open_new_private
from edgechat.process import KILL_SIGNAL
from edgechat.runtime import logs
from edgechat.runtime.activity import ActivityFile, ActivityState

_POLL_S: Final = 0.02
CONNECT_TIMEOUT_S: Final = 2.0


class EngineLink(Protocol):
    """What a client needs of an engine process."""

    pid: int
    is_shared: bool
    """True if other clients may use the engine, so that it must not end with this client."""

    @property
    def channel(self) -> Channel:
        """Connection to the process."""

    def kill(self) -> None:
        """Kill the process; do nothing if it has ended."""

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process; return its exit code, or the negative number of the signal that ended it.

        Raises TimeoutError.
        """

    def read_state(self) -> ActivityState:
        """Return the last activities of the process."""

    def close(self) -> None:
        """Close the connection and the activity file."""


class StartedEngine:
    """Link to an engine process that this client has started, private or resident."""

    def __init__(self, files: ResidentFiles | None = None) -> None:
        """Start a process, of a resident engine if `files` is given. Raises EngineDiedError and LocalSocketError."""
        self.is_shared = files is not None
        self._activity_file = _create_activity_file() if files is None else _create_shared_activity_file(files.activity)
        log = logs.open_log()
        extra_fds = (self._activity_file.fd,) if self._activity_file is not None else ()
        arguments = ["_engine", files.name] if files is not None else ["_engine"]
        try:
            self._child, self.channel = spawn_child(
                arguments, log or subprocess.DEVNULL, extra_fds, is_independent=self.is_shared
            )
        except EngineDiedError:
            if self._activity_file is not None:
                self._activity_file.close()
            raise
        finally:
            if log:
                log.close()
        self.pid = self._child.pid

    def kill(self) -> None:
        """Kill the process; do nothing if it has ended."""
        self._child.kill()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process; return its exit code. Raises TimeoutError."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error

    def read_state(self) -> ActivityState:
        """Return the last activities of the process."""
        return self._activity_file.read() if self._activity_file is not None else ActivityState()

    def close(self) -> None:
        """Close the connection and the activity file. A thread waits for the end of a process that is still running."""
        self.channel.close()
        if self._activity_file is not None:
            self._activity_file.close()
        if self._child.poll() is None:
            threading.Thread(target=self._child.wait, name="engine-end", daemon=True).start()


class AttachedEngine:
    """Link to a resident engine that another client has started."""

    is_shared = True

    def __init__(self, record: EngineRecord, channel: SocketChannel) -> None:
        """Use `connect_to_engine` to create a link. Raises OSError."""
        self.pid = record.pid
        self.channel: SocketChannel = channel
        self._record = record
        self._files = ResidentFiles(record.name)
        self._activity_file = ActivityFile(self._files.activity.open("rb", buffering=0))

    def kill(self) -> None:
        """Kill the process; do nothing if it has ended."""
        if self._record.is_running:
            with contextlib.suppress(OSError):  # it ended meanwhile
                os.kill(self.pid, KILL_SIGNAL)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process; return its exit code. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._record.is_running:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_POLL_S)
        exit_code = self.read_state().exit_code
        return self._files.find_fault() if exit_code is None else exit_code

    def read_state(self) -> ActivityState:
        """Return the last activities of the process."""
        return self._activity_file.read()

    def close(self) -> None:
        """Close the connection and the activity file."""
        self.channel.close()
        self._activity_file.close()


def connect_to_engine(record: EngineRecord) -> AttachedEngine | None:
    """Connect to a resident engine; return None if it does not listen any more. Raises LocalSocketError."""
    channel = connect(ResidentFiles(record.name).socket, CONNECT_TIMEOUT_S)
    if channel is None or channel.peer_pid not in {None, record.pid}:
        return None
    try:
        return AttachedEngine(record, channel)
    except OSError:
        channel.close()
        return None


def _create_activity_file() -> ActivityFile | None:
    """Create the activity file of a private engine; None if this fails (crashes then have an unknown cause)."""
    try:
        return ActivityFile()
    except OSError:
        return None


def _create_shared_activity_file(path: Path) -> ActivityFile:
    """Create the activity file of a resident engine. Raises LocalSocketError."""
    try:
        return ActivityFile(open_new_private(path))
    except OSError as error:
        raise LocalSocketError(f"Cannot write the files of a shared engine: {path}: {format_reason(error)}.") from error
