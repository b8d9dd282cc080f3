"""Check of the write-ahead log before SQLite uses it.

SQLite ignores a damaged frame and every frame after it, and deletes the log at the next checkpoint. A log that belongs
to another database, or to an earlier state of this one, overwrites pages. In both cases saved messages would be lost.
"""

from __future__ import annotations

import array
import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.store import page_format
from edgechat.store.page_format import FRAME_HEADER_BYTES, WAL_HEADER_BYTES
from edgechat.store.sqlite_errors import is_damage_error

# Maximum size of a log whose checksums are computed: 30 ms per MB. Logs have up to 16 MB.
_MAX_CHECKED_BYTES: Final = 32 << 20
_WAL_MAGIC: Final = 0x377F0682
"""First four bytes of a log; the lowest bit is set if the checksums are computed from big-endian words."""
# Range of the database file that every connection locks for reading (os.h of SQLite).
_SHARED_LOCK_START: Final = 0x40000002
_SHARED_LOCK_BYTES: Final = 510

Connect = Callable[[Path, str], sqlite3.Connection]
"""Function that opens a database with URI parameters."""


class LogDamage(NamedTuple):
    """Damage of a write-ahead log."""

    reason: str
    first_offset: int
    """Offset, in the log, of the first transaction that SQLite must not read or will not read."""


def find_log_damage(path: Path, connect: Connect) -> LogDamage | None:
    """Return the damage of the log of the database at `path`; None if there is no log, or no damage was found.

    A log that is in use counts as undamaged, because the process that uses it has already read it. If that is this
    process, the function does not open the database: closing it would release all of SQLite's locks on the database,
    because POSIX locks belong to the process.
    """
    if _is_open_in_this_process(path):
        return None
    try:
        with path.with_name(path.name + "-wal").open("rb") as file:
            log = file.read(_MAX_CHECKED_BYTES)
        database_bytes = path.stat().st_size
        if len(log) <= WAL_HEADER_BYTES:
            return None
        damage = None
        break_offset = _find_break(log)
        if not database_bytes:  # SQLite would delete the log
            damage = LogDamage("its file is empty", WAL_HEADER_BYTES)
        elif break_offset is not None:
            damage = LogDamage("its write-ahead log is damaged", break_offset)
        elif _overwrites_newer_pages(path, log, connect):
            damage = LogDamage("its write-ahead log belongs to another database or an earlier state", WAL_HEADER_BYTES)
        return damage if damage is not None and not _is_used_by_another_process(path) else None
    except OSError:
        return None  # there is no log, or SQLite reports the error


def _is_open_in_this_process(path: Path) -> bool:
    """Return whether a file descriptor of this process refers to the file; False on systems that do not list them."""
    try:
        file_status = path.stat()
        descriptors = os.listdir("/dev/fd")  # noqa: PTH208  (only the names)
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # /dev/fd also lists the descriptor of the listing, which is closed by now
            if os.path.samestat(os.fstat(int(descriptor)), file_status):
                return True
    return False


def _is_used_by_another_process(path: Path) -> bool:
    """Return whether another process has opened the database with SQLite, which locks it for reading."""
    with path.open("r+b") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(_SHARED_LOCK_START)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, _SHARED_LOCK_BYTES)
                file.seek(_SHARED_LOCK_START)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, _SHARED_LOCK_BYTES)
            else:
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_LOCK_BYTES, _SHARED_LOCK_START)
        except OSError:
            return True
    return False


def _find_break(log: bytes) -> int | None:
    """Return the offset of the first damaged transaction; None if SQLite can read all complete transactions."""
    page_bytes = int.from_bytes(log[8:12], "big")
    if not page_format.is_page_size(page_bytes):
        page_bytes = page_format.DEFAULT_PAGE_BYTES
    frames = page_format.read_wal_frames(lambda start, size: log[start : start + size], len(log), page_bytes)
    # The last frame of a transaction contains the size of the database, which is not 0.
    commits = [
        f.offset
        for f in frames
        if f.offset + page_bytes <= len(log) and any(log[f.offset - 20 : f.offset - 16])
    ]  # fmt: skip
    magic = int.from_bytes(log[:4], "big")
    byte_order = "big" if magic & 1 else "little"
    checksum = _update_checksum((0, 0), log[:24], byte_order)
    is_header_valid = magic & ~1 == _WAL_MAGIC and _encode(checksum) == log[24:32]
    position = transaction_start = WAL_HEADER_BYTES
    while commits and position < commits[-1]:
        frame_header = log[position : position + FRAME_HEADER_BYTES]
        page_start = position + FRAME_HEADER_BYTES
        checksum = _update_checksum(checksum, frame_header[:8], byte_order)
        checksum = _update_checksum(checksum, log[page_start : page_start + page_bytes], byte_order)
        if not is_header_valid or frame_header[8:] != log[16:24] + _encode(checksum):
            return transaction_start
        position = page_start + page_bytes
        if any(frame_header[4:8]):
            transaction_start = position
    return None


def _encode(checksum: tuple[int, int]) -> bytes:
    return checksum[0].to_bytes(4, "big") + checksum[1].to_bytes(4, "big")


def _update_checksum(checksum: tuple[int, int], data: bytes, byte_order: str) -> tuple[int, int]:
    """Continue the checksum of a log with `data` (https://www.sqlite.org/fileformat2.html#checksum_algorithm)."""
    words = array.array("I", data)
    if sys.byteorder != byte_order:
        words.byteswap()
    first, second = checksum
    iterator = iter(words)
    for word in iterator:
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next(iterator) + first) & 0xFFFFFFFF
    return first, second


def _overwrites_newer_pages(path: Path, log: bytes, connect: Connect) -> bool:
    """Return whether messages would be lost with this log, because it belongs to another database or an earlier state.

    A valid log can also remove messages: those that were deleted while it was written. If the newest message is
    missing, the log is not valid, because a checkpoint follows every deletion.
    """
    try:
        keys_without_log = _read_message_keys(path, connect, "mode=ro&immutable=1")
    except sqlite3.Error:
        return False  # the damage is not in the log
    try:
        keys_with_log = _read_message_keys(path, connect, "mode=ro")
        if keys_without_log <= keys_with_log:
            return False
        has_newest_message = max(keys_without_log) <= max(keys_with_log, default=0)
        has_common_messages = not keys_with_log.isdisjoint(keys_without_log)
        return not (
            has_newest_message and has_common_messages and _continues_database(path, log)
            and _is_consistent(path, connect)
        )  # fmt: skip
    except sqlite3.Error as error:
        return bool(keys_without_log) and is_damage_error(error)


def _read_message_keys(path: Path, connect: Connect, parameters: str) -> set[int]:
    with contextlib.closing(connect(path, parameters)) as db:
        db.execute("PRAGMA busy_timeout = 0")
        return {row[0] for row in db.execute("SELECT rowid FROM messages INDEXED BY messages_of")}


def _continues_database(path: Path, log: bytes) -> bool:
    """Return whether the change counters in the log continue the database's counter (section 1.3.6 of the file format).

    Each transaction that changes page 1 increments the counter, and a checkpoint copies it to the database.
    """
    page_bytes = int.from_bytes(log[8:12], "big")
    frames = page_format.read_wal_frames(lambda start, size: log[start : start + size], len(log), page_bytes)
    counters = [int.from_bytes(log[f.offset + 24 : f.offset + 28], "big") for f in frames if f.page_number == 1]
    with path.open("rb") as file:
        counter = int.from_bytes(file.read(page_format.FILE_HEADER_BYTES)[24:28], "big")
    return not counters or counters[0] - 1 <= counter <= counters[-1]


def _is_consistent(path: Path, connect: Connect) -> bool:
    with contextlib.closing(connect(path, "mode=ro")) as db:
        return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
