"""A damaged database: kept aside as it is, and what can be read of it goes into a new one."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgechat.errors import StoreError
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore

_ASIDE: Final = ".damaged-"
_DONE: Final = ".recovered"
_WAIT_S: Final = 60.0
# Parents before children; only what a row refers to can be missing.
_TABLES: Final = ("conversations", "messages", "attachments", "message_attachments")


def is_intact(path: Path) -> bool:
    """True if SQLite finds nothing wrong with the database, or there is none; takes a while for a large one."""
    if not path.exists():
        return True
    try:
        with contextlib.closing(_open_damaged(path)) as db:
            return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
    except (sqlite3.DatabaseError, UnicodeError):
        return False


def recover(path: Path) -> SqliteStore:
    """Put the damaged database at `path` aside, and open a new one in its place with what could be read.

    Raises StoreError if that cannot be done; nothing is deleted or overwritten in any case.
    """
    damaged = _inode(path)
    with _exclusive(path):
        if _inode(path) == damaged:  # else another edgechat did it meanwhile
            _move_aside(path)
        store = SqliteStore(Database(path))
        recover_copies(store)
    return store


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One process at a time; a lock of SQLite's, which is gone with its process on every system."""
    lock = path.with_name(path.name + ".lock")
    try:
        with contextlib.closing(sqlite3.connect(lock, timeout=_WAIT_S, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path} is damaged and cannot be recovered now: {error} ({lock})") from error


def _move_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}{_ASIDE}{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.split('_')[0]}_{number}")
    try:
        # The log goes first: a new database must not find the old one's.
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):  # another edgechat may be doing the same
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be moved aside: {error.strerror or error}") from error


def recover_copies(store: SqliteStore) -> None:
    """Read what was put aside and is not recovered yet, also by a recovery that was cut off."""
    if store.path is None or store.read_only_reason:
        return
    for aside in sorted(store.path.parent.glob(f"{store.path.name}{_ASIDE}*")):
        done = aside.with_name(aside.name + _DONE)
        if aside.name.endswith(("-wal", "-shm", _DONE)) or done.exists():
            continue
        try:
            n_messages, n_lost = _salvage(store.database, aside)
        except StoreError as error:  # whatever is in that file, it must not keep anybody from a new one
            store.notices.append(f"{aside} is damaged, and nothing could be recovered from it yet: {error}")
            continue
        with contextlib.suppress(OSError):
            done.touch(mode=0o600)
        store.notices.append(
            f"the database of conversations was damaged: {n_messages} messages were recovered"
            + (f", {n_lost} rows could not be read" if n_lost else "")
            + f"; the damaged file is kept as {aside}"
        )


def _salvage(database: Database, aside: Path) -> tuple[int, int]:
    """Copy every row that can be read; returns how many messages, and how many rows are known to be lost."""
    n_messages = n_lost = 0
    with contextlib.closing(_open_damaged(aside)) as damaged, database.writing(durable=True) as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        for table in _TABLES:
            columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]
            marks = ", ".join("?" * len(columns))
            statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
            for row in _rows(damaged, table, columns):
                added = _insert(db, statement, row)
                n_lost += added is None
                n_messages += (added or 0) if table == "messages" else 0
        n_lost += _repair_references(db)
    return n_messages, n_lost


def _insert(db: sqlite3.Connection, statement: str, row: tuple[object, ...] | None) -> int | None:
    """How many rows that added; None if the row could not be read, or holds garbage."""
    if row is None:
        return None
    try:
        return db.execute(statement, row).rowcount
    except sqlite3.Error:
        return None


def _open_damaged(aside: Path) -> sqlite3.Connection:
    # The damaged file is only read, so that it stays as it is; as text, anything that is there.
    # Without a log nothing needs to be shared, and no file is made beside it.
    how = "mode=ro" if aside.with_name(aside.name + "-wal").exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{aside.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


def _rows(damaged: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[object, ...] | None]:
    """Each row that can be read; None for each that is known to be there and cannot."""
    names = ", ".join(columns)
    if table == "message_attachments":  # small rows, which have no number of their own
        for direction in ("ASC", "DESC"):
            yield from _until_damage(damaged, f"SELECT {names} FROM {table} ORDER BY message_key {direction}")
        return
    for key in sorted(_keys(damaged, table)):
        try:
            row = damaged.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (key,)).fetchone()
        except (sqlite3.Error, UnicodeError):
            row = None
        yield row


def _keys(damaged: sqlite3.Connection, table: str) -> set[int]:
    """The numbers of a table's rows, from the table and from each of its indexes, from both ends of all of them."""
    places = ["NOT INDEXED"]
    places += [f"INDEXED BY {row[1]}" for row in _until_damage(damaged, f"PRAGMA index_list({table})")]
    keys: set[int] = set()
    for place in places:
        for direction in ("ASC", "DESC"):
            statement = f"SELECT rowid FROM {table} {place} ORDER BY rowid {direction}"
            if place != "NOT INDEXED":  # in the index's own order, so that it alone is read
                statement = f"SELECT rowid FROM {table} {place}"
            keys.update(row[0] for row in _until_damage(damaged, statement))
    return keys


def _until_damage(damaged: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error, UnicodeError):
        yield from damaged.execute(statement)


def _repair_references(db: sqlite3.Connection) -> int:
    """Make what was recovered whole: messages without their conversation or parent get one.

    Returns how many attachments are lost.
    """
    db.execute(
        """
        INSERT OR IGNORE INTO conversations
            SELECT conversation_key, printf('%016x', conversation_key), 'Recovered', '', '{}', 0, 0, '[]', '',
                   min(created_at_ms), max(created_at_ms), NULL
            FROM messages WHERE conversation_key NOT IN (SELECT key FROM conversations) GROUP BY conversation_key
        """
    )
    db.execute("UPDATE messages SET parent_key = NULL WHERE parent_key NOT IN (SELECT key FROM messages)")
    db.execute(
        "UPDATE messages SET active_child_key = NULL WHERE active_child_key NOT IN (SELECT key FROM messages)"
    )  # fmt: skip
    db.execute("UPDATE messages SET hidden_by = NULL WHERE hidden_by NOT IN (SELECT key FROM messages)")
    db.execute(
        "UPDATE conversations SET head_key = (SELECT max(key) FROM messages m WHERE m.conversation_key = conversations.key"
        " AND hidden_by IS NULL) WHERE head_key IS NULL OR head_key NOT IN (SELECT key FROM messages WHERE hidden_by IS NULL)"
    )
    return db.execute(
        "DELETE FROM message_attachments WHERE message_key NOT IN (SELECT key FROM messages)"
        " OR sha256 NOT IN (SELECT sha256 FROM attachments)"
    ).rowcount
