"""Files of a resident engine, in the directory of its socket: a record of what it is for, its activities and crashes.

Processes other than the parent of an engine cannot read its exit code. They find out how it ended from these files.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.engine.local_socket import connect, locate_socket_dir, socket_dir
from edgechat.errors import LocalSocketError
from edgechat.files import JsonFile
from edgechat.hardware.memory import is_process_running
from edgechat.process import KILL_SIGNAL

_MAX_BYTES: Final = 1 << 16
_CONNECT_TIMEOUT_S: Final = 0.5
# Time after the end of an engine in which its clients read how it ended. Its files are deleted later.
_MAX_AGE_S: Final = 60.0
# First lines of the texts that Python's faulthandler writes, and the signals.
_FAULTS: Final = (
    ("Segmentation fault", "SIGSEGV"), ("Aborted", "SIGABRT"), ("Illegal instruction", "SIGILL"),
    ("Bus error", "SIGBUS"), ("Floating", "SIGFPE"),
)  # fmt: skip

# Exit code of an access violation on Windows, as a signed number; it stands for all crashes there.
_WINDOWS_CRASH_CODE: Final = -1073741819


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A resident engine process. The starter writes the record, and the engine deletes it when it ends."""

    name: str
    pid: int
    started_at: float
    """Start time of the process in seconds since 1970. A later process with the same ID has another start time."""
    version: str
    """Version and installation of edgechat. Only clients of the same installation attach."""
    key: str
    """Model files and load options, except for those below; equal for clients that can share the engine."""
    model_path: str
    n_ctx: int | None = None
    """Context length that the user asked for; None if it grows up to `max_n_ctx`."""
    max_n_ctx: int = 0
    budget_bytes: int | None = None
    """Memory budget that the user set."""
    total_bytes: int = 0
    """Planned memory; 0 until the model is loaded."""

    @property
    def is_running(self) -> bool:
        """True if a process with this id runs. Its start time is not compared, because the clock may have changed."""
        return is_process_running(self.pid)

    @property
    def has_started_then(self) -> bool:
        """True if a process with this id runs that started at the time in the record."""
        return is_process_running(self.pid, self.started_at)


class ResidentFiles:
    """Paths of the files of one resident engine."""

    def __init__(self, name: str) -> None:
        """`name` consists of letters and digits. Raises LocalSocketError."""
        self.name = name
        directory = socket_dir()
        self.socket = directory / f"{name}.sock"
        self.record = directory / f"{name}.json"
        self.activity = directory / f"{name}.activity"
        self.fault = directory / f"{name}.fault"

    @classmethod
    def create(cls) -> ResidentFiles:
        """Return the paths for a new engine. Raises LocalSocketError."""
        return cls(f"e{secrets.token_hex(4)}")

    def write_record(self, record: EngineRecord) -> None:
        """Save the record. Raises OSError."""
        _record_file(self.record).write(record)

    def delete(self) -> None:
        """Delete the record and the socket, but not what tells the clients how the engine ended."""
        for path in (self.record, self.socket):
            with contextlib.suppress(OSError):
                path.unlink()

    def find_fault(self) -> int:
        """Return the negative number of the signal that ended the engine, without an exit code of its own."""
        try:
            text = self.fault.read_text(encoding="utf-8", errors="replace")[:_MAX_BYTES]
        except OSError:
            text = ""
        if "Windows fatal exception" in text:
            return _WINDOWS_CRASH_CODE
        name = next((name for fault, name in _FAULTS if f"Fatal Python error: {fault}" in text), "")
        return -int(getattr(signal, name, KILL_SIGNAL))


def list_records() -> Iterator[EngineRecord]:
    """Yield the records of running resident engines, and delete the files of ended ones. Raises LocalSocketError."""
    if not locate_socket_dir().is_dir():
        return
    directory = socket_dir()
    for path in sorted(directory.glob("*.json")):
        record = _record_file(path).read()
        if record is not None and path.stem != record.name:
            record = None
        if record is not None and record.has_started_then:
            yield record
        elif not _is_listening(path.with_suffix(".sock")):
            with contextlib.suppress(OSError):
                path.unlink()
                path.with_suffix(".sock").unlink()
        elif record is not None and record.is_running:  # the clock has changed
            yield record
    for pattern in ("*.activity", "*.fault"):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                if not path.with_suffix(".json").exists() and time.time() - path.stat().st_mtime > _MAX_AGE_S:
                    path.unlink()


def _is_listening(socket_path: Path) -> bool:
    """Return whether a process listens at the path, perhaps one of another process namespace or machine."""
    try:
        channel = connect(socket_path, _CONNECT_TIMEOUT_S)
    except LocalSocketError:
        return True
    if channel is not None:
        channel.close()
    return channel is not None


def _record_file(path: Path) -> JsonFile[EngineRecord]:
    return JsonFile(path, EngineRecord, max_bytes=_MAX_BYTES)
