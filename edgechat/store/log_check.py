"""Check of the write-ahead log before SQLite uses it.

SQLite ignores a damaged frame and every frame after it, and deletes the log at the next checkpoint. A log that belongs
to another database, or to an earlier state of this one, overwrites pages. In both cases saved messages would be lost.
"""

from __future__ import annotations

import array
import contextlib
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
# Another process may write a checkpoint while this module reads the database, so a difference is confirmed.
_N_COMPARISONS: Final = 3

Connect = Callable[[Path, str], sqlite3.Connection]
"""Function that opens a database with URI parameters."""


class LogDamage(NamedTuple):
    """Damage of a write-ahead log."""

    reason: str
    first_offset: int
    """Offset of the first transaction that SQLite must not read or will not read."""


def find_log_damage(path: Path, connect: Connect) -> LogDamage | None:
    """Return the damage of the log of the database at `path`; None if there is no log, or no damage was found."""
    try:
        with path.with_name(path.name + "-wal").open("rb") as file:
            log = file.read(_MAX_CHECKED_BYTES)
        database_bytes = path.stat().st_size
    except OSError:
        return None  # there is no log, or SQLite reports the error
    if len(log) <= WAL_HEADER_BYTES:
        return None
    if not database_bytes:  # SQLite would delete the log
        return LogDamage("its file is empty", WAL_HEADER_BYTES)
    break_offset = _find_break(log)
    if break_offset is not None:
        return LogDamage("its write-ahead log is damaged", break_offset)
    if all(_loses_messages(path, connect) for _ in range(_N_COMPARISONS)):
        return LogDamage("its write-ahead log belongs to another database or an earlier state", WAL_HEADER_BYTES)
    return None


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


def _loses_messages(path: Path, connect: Connect) -> bool:
    """Return whether SQLite would not find all messages of the database with the log.

    Deleted messages are no reason, because edgechat writes a checkpoint after each deletion.
    """
    try:
        keys_without_log = _read_message_keys(path, connect, "mode=ro&immutable=1")
    except sqlite3.Error:
        return False  # the damage is not in the log
    try:
        return not keys_without_log <= _read_message_keys(path, connect, "mode=ro")
    except sqlite3.Error as error:
        return bool(keys_without_log) and is_damage_error(error)


def _read_message_keys(path: Path, connect: Connect, parameters: str) -> set[int]:
    with contextlib.closing(connect(path, parameters)) as db:
        db.execute("PRAGMA busy_timeout = 0")
        return {row[0] for row in db.execute("SELECT rowid FROM messages INDEXED BY messages_of")}
