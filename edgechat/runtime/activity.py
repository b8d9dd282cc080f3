"""Activities of the engine process, recorded in memory that its client can still read after the engine died.

A crash says something about the kernels of a CPU module only if the engine was computing. The engine therefore marks
its activities in a small file, which the client creates and passes on. Bytes written to a shared mapping stay in the
file even if the engine dies, and a mark takes less than a microsecond.
"""

from __future__ import annotations

import contextlib
import enum
import io
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import msgspec


class Activity(enum.IntEnum):
    """Work of llama.cpp that can crash. The value is the index of the byte that counts the threads doing it."""

    LOADING = 0
    TOKENIZING = 1
    COMPILING_GRAMMAR = 2
    COMPUTING = 3
    RESIZING = 4
    DRAFTING = 5
    OPENING_DRAFTER = 6
    DRAFTING_ON_GPU = 7

    @property
    def description(self) -> str:
        """Description for error messages, such as "loading the model"."""
        return {
            Activity.LOADING: "loading the model", Activity.TOKENIZING: "tokenising a text",
            Activity.COMPILING_GRAMMAR: "compiling a grammar", Activity.COMPUTING: "computing",
            Activity.RESIZING: "resizing the context", Activity.DRAFTING: "drafting with a model",
            Activity.OPENING_DRAFTER: "opening the drafter",
            Activity.DRAFTING_ON_GPU: "drafting with a model on the GPU",
        }[self]  # fmt: skip


_HAS_COMPUTED_INDEX = len(Activity)
# Byte with the exit code plus one of a process that exits by itself; 0 otherwise.
_EXIT_CODE_INDEX = _HAS_COMPUTED_INDEX + 1
_SIZE = _EXIT_CODE_INDEX + 1
_MAX_COUNT = 255


class ActivityState(msgspec.Struct, frozen=True):
    """Snapshot of an engine process's activities, for example at the time of its crash."""

    activities: frozenset[Activity] = frozenset()
    has_computed: bool = False
    """True if at least one batch has been computed with the loaded model."""
    exit_code: int | None = None
    """Exit code of a process that exited by itself; None while it runs, and after a crash."""

    @property
    def description(self) -> str:
        """Description for error messages; "" if the engine was idle, or if its activities are unknown."""
        return " and ".join(activity.description for activity in sorted(self.activities))


class ActivityFile:
    """The client's end of the memory that it shares with the engine.

    The file of a private engine is never visible in a directory.
    """

    def __init__(self, file: BinaryIO | io.FileIO | None = None) -> None:
        """Create the file, or use `file` of a resident engine. Raises OSError, for example if the disk is full."""
        self._file = _open_file() if file is None else file
        if file is not None and not file.writable():
            return  # another client has started the engine
        try:
            self._file.write(bytes(_SIZE))  # a mapping of unwritten bytes could fail later, if the disk is full
        except OSError:
            self._file.close()
            raise

    @property
    def fd(self) -> int:
        """File descriptor to be inherited by the engine process."""
        return self._file.fileno()

    def read(self) -> ActivityState:
        """Return the activities that the engine marked last."""
        try:
            self._file.seek(0)
            counts = self._file.read(_SIZE)
        except (OSError, ValueError):  # ValueError: the file was closed
            counts = b""
        return decode_state(counts)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._file.close()


def _open_file() -> BinaryIO | io.FileIO:
    """Open a file in RAM if the system supports it, otherwise a deleted temporary file. Raises OSError.

    Python lacks `memfd_create` outside Linux and in builds for a glibc older than 2.27 (conda, Amazon Linux 2). Kernels
    before 3.17, and containers that filter system calls, refuse it.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.memfd_create("edgechat-activity"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def decode_state(counts: bytes) -> ActivityState:
    """Decode the bytes of an activity file. Data of the wrong length yields an empty state."""
    if len(counts) != _SIZE:
        return ActivityState()
    activities = frozenset(activity for activity in Activity if counts[activity])
    exit_code = counts[_EXIT_CODE_INDEX] - 1 if counts[_EXIT_CODE_INDEX] else None
    return ActivityState(activities, bool(counts[_HAS_COMPUTED_INDEX]), exit_code)


# Without a client, the marks are written to private memory.
_counts: bytearray | mmap.mmap = bytearray(_SIZE)
_lock = threading.Lock()


def share(fd: int) -> None:
    """Write all later marks of this process to the file `fd`, and close `fd`. Raises OSError and ValueError."""
    global _counts  # noqa: PLW0603  (there is one set of marks per process)
    _counts = mmap.mmap(fd, _SIZE)
    os.close(fd)


@contextlib.contextmanager
def during(activity: Activity) -> Iterator[None]:
    """Mark that the calling thread performs `activity` in the `with` block. The same activity must not be nested."""
    _add(activity, 1)
    try:
        yield
    finally:
        _add(activity, -1)


def _add(activity: Activity, change: int) -> None:
    with _lock:
        _counts[activity] = min(_MAX_COUNT, max(0, _counts[activity] + change))


def set_has_computed(has_computed: bool) -> None:  # noqa: FBT001  (a switch)
    """Mark whether a batch has been computed with the loaded model."""
    _counts[_HAS_COMPUTED_INDEX] = has_computed


def record_exit(exit_code: int) -> None:
    """Record that this process is about to exit with `exit_code`, which is less than 255."""
    _counts[_EXIT_CODE_INDEX] = exit_code + 1


def read_state() -> ActivityState:
    """Return the current marks of this process."""
    return decode_state(bytes(_counts[:]))
