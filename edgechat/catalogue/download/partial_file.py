"""Partial downloads: NAME.part contains the received bytes, and NAME.part.log lists their ranges.

Each log record is written after its bytes, so that a killed process loses at most the write in progress. The hash check
detects damage caused by a power failure.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from edgechat import files

_RECORD: Final = struct.Struct("<QQ")
_MAX_VERSION_BYTES: Final = 4096


class FileVersion(msgspec.Struct, frozen=True):
    """Version of a remote file, saved at the start of NAME.part.log, so that bytes of two versions are never mixed."""

    size_bytes: int | None
    """File size; None if the server does not send it."""
    version: str
    """Hash, ETag or modification date; "" if none is known."""


class PartialFile:
    """An open `.part` file with its log. All methods except `close`, `discard` and `finish` are thread-safe."""

    def __init__(self, path: Path, version: FileVersion) -> None:
        """Open or create the partial file of `path`. If its bytes are from another version of the file, delete them.

        Raises OSError.
        """
        self.path = path
        self.version = version
        self.data_path = path.with_name(path.name + ".part")
        self._log_path = path.with_name(path.name + ".part.log")
        self._lock = threading.Lock()
        self._spans: list[tuple[int, int]] = []
        self._is_closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        logged_spans = self._read_log() if version.version else []
        self._data_fd = os.open(self.data_path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        size_bytes = os.fstat(self._data_fd).st_size
        for start, end in logged_spans:
            if start < end <= min(size_bytes, version.size_bytes or size_bytes):
                self._add_span(start, end)
        self.resumed_bytes = self.received_bytes
        self._log_fd = self._start_log()

    def _read_log(self) -> list[tuple[int, int]]:
        try:
            with files.open_regular(self._log_path) as file:
                first_line = file.readline(_MAX_VERSION_BYTES)
                records = file.read()
            if msgspec.json.decode(first_line, type=FileVersion) != self.version:
                return []
        except (OSError, msgspec.MsgspecError):
            return []
        complete_bytes = len(records) - len(records) % _RECORD.size
        return [(start, end) for start, end in _RECORD.iter_unpack(records[:complete_bytes])]

    def _start_log(self) -> int:
        """Replace the log with a log that lists only `_spans`, and return its file descriptor."""
        new_log = self._log_path.with_name(self._log_path.name + ".new")
        spans = b"".join(_RECORD.pack(*span) for span in self._spans)
        with files.open_private(new_log) as file:
            file.write(msgspec.json.encode(self.version) + b"\n" + spans)
        if not self._spans:
            os.ftruncate(self._data_fd, 0)
        new_log.replace(self._log_path)
        return os.open(self._log_path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def write(self, offset: int, data: bytes) -> None:
        """Write received bytes at `offset`, and log their range. If it raises OSError, the range counts as missing."""
        view = memoryview(data)
        with self._lock:
            if self._is_closed:  # the descriptor may belong to another file by now
                raise OSError(errno.EBADF, "The partial file is closed", str(self.data_path))
            position = offset
            while view:
                n_written = _pwrite(self._data_fd, view, position)
                position, view = position + n_written, view[n_written:]
            os.write(self._log_fd, _RECORD.pack(offset, position))
            self._add_span(offset, position)

    def read(self, offset: int, count: int) -> bytes:
        """Return at most `count` received bytes from `offset`. Raises OSError."""
        return _pread(self._data_fd, count, offset, self._lock)

    def flush(self) -> None:
        """Sync the data to disk, so that `finish` has little data to sync. Raises OSError."""
        getattr(os, "fdatasync", os.fsync)(self._data_fd)

    def _add_span(self, start: int, end: int) -> None:
        merged_spans: list[tuple[int, int]] = []
        for span in sorted([*self._spans, (start, end)]):
            if merged_spans and span[0] <= merged_spans[-1][1]:
                merged_spans[-1] = merged_spans[-1][0], max(merged_spans[-1][1], span[1])
            else:
                merged_spans.append(span)
        self._spans = merged_spans

    @property
    def received_bytes(self) -> int:
        """Number of received bytes."""
        return sum(end - start for start, end in self._spans)

    @property
    def contiguous_bytes(self) -> int:
        """Number of received bytes before the first gap."""
        spans = self._spans
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    def missing_ranges(self, size_bytes: int) -> list[tuple[int, int]]:
        """Return the missing ranges (start, end) of a file with the size `size_bytes`."""
        missing_ranges, position = [], 0
        for start, end in self._spans:
            if start > position:
                missing_ranges.append((position, start))
            position = end
        return [*missing_ranges, (position, size_bytes)] if position < size_bytes else missing_ranges

    def close(self) -> None:
        """Close the part file and its log, but keep both, so that a later download can resume."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._data_fd)
                os.close(self._log_fd)

    def discard(self) -> None:
        """Close and delete the part file and its log."""
        self.close()
        for path in (self._log_path, self.data_path):
            with suppress(OSError):
                path.unlink()

    def finish(self) -> None:
        """Sync and close the complete file, and rename it to `path`. Raises OSError."""
        try:
            os.fsync(self._data_fd)
        finally:
            self.close()
        self.data_path.replace(self.path)
        with suppress(OSError):
            self._log_path.unlink()


def _pwrite(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows has no pwrite; the caller holds the lock
    return os.write(fd, data)


def _pread(fd: int, n_bytes: int, offset: int, lock: threading.Lock) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, n_bytes, offset)
    with lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, n_bytes)
