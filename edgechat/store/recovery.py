"""Recovery of a damaged database: the file is moved aside, and its readable rows are copied into a new database."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgechat.errors import StoreError
from edgechat.store.database import (
    FILE_SUFFIXES,
    Database,
    describe_irregular_file,
    find_irregular_file,
    is_locked_error,
    is_read_only_error,
)
from edgechat.store.sqlite import OnDeleted, SqliteStore

_COPY_INFIX: Final = ".damaged-"
"""Part of the name of a damaged copy, which is the name of the database, this text, and the time of the recovery."""
_MARKER_SUFFIX: Final = ".recovered"
"""Suffix of the empty file that marks a damaged copy as recovered."""
_SIGNATURE: Final = b"SQLite format 3\0"
"""First bytes of every database file (https://www.sqlite.org/fileformat2.html#magic_header_string)."""
_PAYLOAD_FRACTIONS: Final = b"\x40\x20\x20"
"""Payload fractions, constant header bytes that identify a database even if its signature is damaged (same source)."""
_PAYLOAD_FRACTIONS_OFFSET: Final = 21
_REPAIR_INFIX: Final = ".repair-"
"""Part of the name of the temporary folder that contains a copy with a repaired signature."""
_LOCK_TIMEOUT_S: Final = 60.0
# Tables in the order of recovery: referenced tables come before the tables that refer to them.
_TABLES: Final = ("conversations", "messages", "attachments", "message_attachments")


def is_intact(path: Path) -> bool:
    """Return whether the database at `path` passes SQLite's integrity check or does not exist.

    The check takes seconds for a large database. Raises StoreError if the database is locked or cannot be opened, which
    does not mean that it is damaged.
    """
    if find_irregular_file(path) is not None:
        return False
    if not path.exists():
        return True
    try:
        with contextlib.closing(_open_damaged_database(path)) as db:
            return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
    except sqlite3.OperationalError as error:
        if is_locked_error(error):
            advice = "Close other edgechat processes, and try again."
        elif is_read_only_error(error):
            advice = "Check the permissions of the file and its folder."
        else:
            return False  # damage also raises this class, for example "unsupported file format"
        raise StoreError(f"Cannot check {path}: {error}. {advice}") from error
    except (sqlite3.DatabaseError, UnicodeError):
        return False


def recover(path: Path, on_deleted: Sequence[OnDeleted] = ()) -> SqliteStore:
    """Move the damaged database at `path` aside, and open a new database with the readable rows.

    No file is deleted or overwritten. Raises StoreError if the damaged database cannot be moved, or if the new database
    cannot be created.
    """
    damaged_inode = _read_inode(path)
    with _recovery_lock(path):
        if _read_inode(path) == damaged_inode:  # otherwise another process has already recovered the database
            _move_aside(path)
        store = SqliteStore(Database(path), on_deleted)
        recover_copies(store)
    return store


def recover_copies(store: SqliteStore) -> None:
    """Recover rows from all damaged copies in the folder of the database that are not marked as recovered.

    A damaged copy stays unmarked if its recovery failed or was killed. Appends a message about each copy to
    `store.notices`, and continues with the next copy after an error.
    """
    if store.path is None or store.read_only_reason:
        return
    for copy in sorted(store.path.parent.glob(f"{store.path.name}{_COPY_INFIX}*")):
        marker = copy.with_name(copy.name + _MARKER_SUFFIX)
        if copy.name.endswith(("-wal", "-shm", "-journal", _MARKER_SUFFIX)) or marker.exists():
            continue
        if not copy.is_file():
            store.notices.append(
                f"Nothing could be recovered from {copy}, because it is {describe_irregular_file(copy)}. "
                "New conversations are saved in a new database."
            )
        else:
            try:
                n_messages, n_lost_rows = _salvage(store.database, copy)
            except (StoreError, sqlite3.Error, OSError) as error:
                reason = str(error).rstrip(".")
                store.notices.append(
                    f"Nothing could be recovered from {copy} yet: {reason}. "
                    "Keep the file, fix the problem, and restart edgechat."
                )
                continue
            loss_note = f"; {n_lost_rows} rows could not be read" if n_lost_rows else ""
            store.notices.append(
                f"The database of conversations was damaged: {n_messages} messages were recovered{loss_note}. "
                f"The damaged file was renamed to {copy}."
            )
        with contextlib.suppress(OSError):
            marker.touch(mode=0o600)


def _read_inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def _recovery_lock(path: Path) -> Iterator[None]:
    """Context manager that holds the recovery lock of a database. The system releases the lock if the process dies."""
    lock_file = path.with_name(path.name + ".lock")
    try:
        with contextlib.closing(sqlite3.connect(lock_file, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as error:
        wait = "Wait until the other edgechat process has recovered it"
        advice = wait if is_locked_error(error) else "Delete the lock file"
        raise StoreError(
            f"Cannot recover the damaged {path}: {error} ({lock_file}). {advice}, and try again."
        ) from error


def _move_aside(path: Path) -> None:
    default_copy = path.with_name(f"{path.name}{_COPY_INFIX}{time.strftime('%Y%m%d-%H%M%S')}")
    copy, number = default_copy, 1
    while copy.exists():
        number += 1
        copy = default_copy.with_name(f"{default_copy.name}_{number}")
    try:
        for suffix in FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):  # not every database has all of these files
                path.with_name(path.name + suffix).rename(copy.with_name(copy.name + suffix))
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be moved aside: {error.strerror or error}. Move it to another folder."
        ) from error


def _salvage(database: Database, copy: Path) -> tuple[int, int]:
    """Insert every readable row of a damaged copy; return the numbers of inserted messages and of lost rows."""
    n_messages = n_lost_rows = 0
    with (
        _copy_with_signature(copy) as path, contextlib.closing(_open_damaged_database(path)) as damaged_db,
        database.write_transaction(durable=True) as db,
    ):  # fmt: skip
        damaged_db.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses to read a truncated file
        db.execute("PRAGMA defer_foreign_keys = ON")
        for table in _TABLES:
            columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]
            placeholders = ", ".join("?" * len(columns))
            statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({placeholders})"
            for row in _read_rows(damaged_db, table, columns):
                n_inserted = _insert_row(db, statement, row)
                n_lost_rows += n_inserted is None
                n_messages += (n_inserted or 0) if table == "messages" else 0
        n_lost_rows += _repair_references(db)
    return n_messages, n_lost_rows


def _insert_row(db: sqlite3.Connection, statement: str, row: tuple[object, ...] | None) -> int | None:
    """Insert `row`; return the number of added rows, or None if `row` is None (unreadable) or violates the schema."""
    if row is None:
        return None
    try:
        return db.execute(statement, row).rowcount
    except sqlite3.Error:
        return None


@contextlib.contextmanager
def _copy_with_signature(copy: Path) -> Iterator[Path]:
    """Yield `copy`, or a temporary file with a repaired signature if the signature of `copy` is damaged.

    The temporary file is in the folder of the database, not in the system's folder for temporary files, because it
    contains conversations. Raises OSError.
    """
    with copy.open("rb") as file:
        header = file.read(_PAYLOAD_FRACTIONS_OFFSET + len(_PAYLOAD_FRACTIONS))
    if header.startswith(_SIGNATURE) or header[_PAYLOAD_FRACTIONS_OFFSET:] != _PAYLOAD_FRACTIONS:
        yield copy
        return
    prefix = copy.name.partition(_COPY_INFIX)[0] + _REPAIR_INFIX
    for old_folder in copy.parent.glob(prefix + "*"):  # left by a recovery that was killed
        shutil.rmtree(old_folder, ignore_errors=True)
    # A failed cleanup must not make a committed recovery fail, because a second recovery would restore messages that
    # the user deleted after the first one.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=copy.parent, ignore_cleanup_errors=True) as folder:
        repaired_file = Path(folder, "history.db")
        shutil.copyfile(copy, repaired_file)
        wal = copy.with_name(copy.name + "-wal")
        if wal.is_file():
            shutil.copyfile(wal, repaired_file.with_name(repaired_file.name + "-wal"))
        with repaired_file.open("r+b") as file:
            file.write(_SIGNATURE)
        yield repaired_file


def _open_damaged_database(path: Path) -> sqlite3.Connection:
    """Open a damaged database read-only; queries replace invalid UTF-8 in texts. Raises sqlite3.OperationalError."""
    # If there is no write-ahead log, `immutable` prevents SQLite from creating files next to the database.
    has_wal = path.with_name(path.name + "-wal").is_file()
    mode = "mode=ro" if has_wal else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


def _read_rows(damaged_db: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[object, ...] | None]:
    """Yield each readable row of a table, and None for each unreadable row whose rowid could be read."""
    names = ", ".join(columns)
    if table == "message_attachments":  # this table has no rowid
        for direction in ("ASC", "DESC"):
            yield from _read_rows_until_damage(
                damaged_db, f"SELECT {names} FROM {table} ORDER BY message_key {direction}"
            )
        return
    for rowid in sorted(_collect_rowids(damaged_db, table)):
        try:
            row = damaged_db.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
        except (sqlite3.Error, UnicodeError):
            row = None
        yield row


def _collect_rowids(damaged_db: sqlite3.Connection, table: str) -> set[int]:
    """Return the rowids that can be read from the table, scanned from both ends, or from one of its indexes."""
    statements = [f"SELECT rowid FROM {table} NOT INDEXED ORDER BY rowid {direction}" for direction in ("ASC", "DESC")]
    # With ORDER BY, SQLite would read the table instead of the index.
    indexes = [row[1] for row in _read_rows_until_damage(damaged_db, f"PRAGMA index_list({table})")]
    statements += [f"SELECT rowid FROM {table} INDEXED BY {index}" for index in indexes]
    return {row[0] for statement in statements for row in _read_rows_until_damage(damaged_db, statement)}


def _read_rows_until_damage(damaged_db: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error, UnicodeError):
        yield from damaged_db.execute(statement)


def _repair_references(db: sqlite3.Connection) -> int:
    """Create conversations for messages whose conversation was lost, and clear references to lost messages.

    Returns the number of attachments that were removed because their bytes or their message were lost.
    """
    db.execute(
        """
        INSERT OR IGNORE INTO conversations
            SELECT conversation_key, printf('%016x', conversation_key), 'Recovered', '', '{}', 0, 0, '[]', '',
                   min(created_at_ms), max(created_at_ms), NULL
            FROM messages WHERE conversation_key NOT IN (SELECT key FROM conversations) GROUP BY conversation_key
        """
    )
    for column in ("parent_key", "active_child_key", "hidden_by"):
        db.execute(f"UPDATE messages SET {column} = NULL WHERE {column} NOT IN (SELECT key FROM messages)")
    db.execute(
        """
        UPDATE conversations
        SET head_key = (
            SELECT max(key) FROM messages m WHERE m.conversation_key = conversations.key AND hidden_by IS NULL
        )
        WHERE head_key IS NULL OR head_key NOT IN (SELECT key FROM messages WHERE hidden_by IS NULL)
        """
    )
    return db.execute(
        "DELETE FROM message_attachments WHERE message_key NOT IN (SELECT key FROM messages)"
        " OR sha256 NOT IN (SELECT sha256 FROM attachments)"
    ).rowcount
