"""A file on its way: its bytes in NAME.part, and in NAME.part.log which of them have arrived.

The log is written after the bytes, one record for each write: a kill at any moment costs at most the bytes of the write in
progress. What a power failure leaves is found by the hash.
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

_RECORD: Final = struct.Struct("<QQ")
_MAX_IDENTITY_BYTES: Final = 4096


class FileVersion(msgspec.Struct, frozen=True):
    """Which file this is a part of: bytes of another version must not be mixed with it."""

    size_bytes: int | None
    """None if the server does not say."""
    version: str
    """Its hash, or the server's name for the version; "" if there is neither."""


class PartialFile:
    """Open `PATH.part`. The methods are for several threads, `close` and `finish` for one."""

    def __init__(self, path: Path, identity: FileVersion) -> None:
        """Go on from what is there of the same file; of another, or of one without a version, nothing is kept.

        Raises OSError.
        """
        self.path = path
        self.identity = identity
        self.data_path = path.with_name(path.name + ".part")
        self._log_path = path.with_name(path.name + ".part.log")
        self._lock = threading.Lock()
        self._spans: list[tuple[int, int]] = []
        self._is_closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read_log() if identity.version else []
        self._data = os.open(self.data_path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        size = os.fstat(self._data).st_size
        for start, end in kept:
            if start < end <= min(size, identity.size_bytes or size):
                self._add(start, end)
        self.resumed_bytes = self.received_bytes
        self._log = self._start_log()

    def _read_log(self) -> list[tuple[int, int]]:
        try:
            with self._log_path.open("rb") as file:
                head = file.readline(_MAX_IDENTITY_BYTES)
                records = file.read()
            if msgspec.json.decode(head, type=FileVersion) != self.identity:
                return []
        except (OSError, msgspec.MsgspecError):
            return []
        whole = len(records) - len(records) % _RECORD.size
        return [(start, end) for start, end in _RECORD.iter_unpack(records[:whole])]

    def _start_log(self) -> int:
        """A log of what is known to be there, aside and then in place: it must never claim more than the data has."""
        aside = self._log_path.with_name(self._log_path.name + ".new")
        spans = b"".join(_RECORD.pack(*span) for span in self._spans)
        aside.write_bytes(msgspec.json.encode(self.identity) + b"\n" + spans)
        if not self._spans:
            os.ftruncate(self._data, 0)
        aside.replace(self._log_path)
        return os.open(self._log_path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def write(self, offset: int, data: bytes) -> None:
        """Bytes have arrived. Raises OSError, and then they count as missing."""
        view = memoryview(data)
        with self._lock:
            if self._is_closed:  # the number may be another file's by now
                raise OSError(errno.EBADF, "is closed", str(self.data_path))
            at = offset
            while view:
                written = _pwrite(self._data, view, at)
                at, view = at + written, view[written:]
            os.write(self._log, _RECORD.pack(offset, at))
            self._add(offset, at)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes that have arrived. Raises OSError."""
        return _pread(self._data, count, offset, self._lock)

    def flush(self) -> None:
        """Have the disk take what is there, so that it has little to do at the end. Raises OSError."""
        getattr(os, "fdatasync", os.fsync)(self._data)

    def _add(self, start: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for span in sorted([*self._spans, (start, end)]):
            if merged and span[0] <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], span[1])
            else:
                merged.append(span)
        self._spans = merged

    @property
    def received_bytes(self) -> int:
        """How many bytes are there."""
        return sum(end - start for start, end in self._spans)

    @property
    def contiguous_bytes(self) -> int:
        """How many are there without a gap from the first on."""
        spans = self._spans
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    def missing_ranges(self, size_bytes: int) -> list[tuple[int, int]]:
        """The ranges that are not there, of a file of this size."""
        gaps, at = [], 0
        for start, end in self._spans:
            if start > at:
                gaps.append((at, start))
            at = end
        return [*gaps, (at, size_bytes)] if at < size_bytes else gaps

    def close(self) -> None:
        """Keep what is there for another time."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._data)
                os.close(self._log)

    def discard(self) -> None:
        """Close, and keep nothing."""
        self.close()
        for path in (self._log_path, self.data_path):
            with suppress(OSError):
                path.unlink()

    def finish(self) -> None:
        """Close, and give the file its name; it is on the disk before that. Raises OSError."""
        try:
            os.fsync(self._data)
        finally:
            self.close()
        self.data_path.replace(self.path)
        with suppress(OSError):
            self._log_path.unlink()


def _pwrite(file: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    os.lseek(file, offset, os.SEEK_SET)  # Windows; writers hold the lock
    return os.write(file, data)


def _pread(file: int, count: int, offset: int, lock: threading.Lock) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, count, offset)
    with lock:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, count)
