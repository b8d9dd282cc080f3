"""Recovery of a damaged database: the file is moved aside, and its readable rows are copied into a new one."""

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
from edgechat.store.database import FILE_SUFFIXES, Database, file_kind, irregular_file
from edgechat.store.sqlite import OnDeleted, SqliteStore

_COPY_INFIX: Final = ".damaged-"
"""Part of the file name of a damaged copy, before the time at which the database was moved aside."""
_MARKER_SUFFIX: Final = ".recovered"
"""Suffix of an empty marker file: the readable rows of the damaged copy have been recovered."""
_SIGNATURE: Final = b"SQLite format 3\0"
"""First bytes of every database file (https://www.sqlite.org/fileformat2.html#magic_header_string)."""
_FRACTIONS: Final = b"\x40\x20\x20"
"""Constant bytes of the header (payload fractions in the same specification), which other files do not have."""
_FRACTIONS_OFFSET: Final = 21
_REPAIR_INFIX: Final = ".repair-"
"""Part of the name of the temporary folder for a file with a repaired signature."""
_LOCK_TIMEOUT_S: Final = 60.0
# Tables in the order of recovery: referenced tables come before the tables that refer to them.
_TABLES: Final = ("conversations", "messages", "attachments", "message_attachments")


def is_intact(path: Path) -> bool:
    """Return whether the database passes SQLite's integrity check, or does not exist.

    The check takes seconds for a large database.
    """
    if irregular_file(path) is not None:
        return False
    if not path.exists():
        return True
    try:
        with contextlib.closing(_open_damaged(path)) as db:
            return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
    except (sqlite3.DatabaseError, UnicodeError):
        return False


def recover(path: Path, on_deleted: Sequence[OnDeleted] = ()) -> SqliteStore:
    """Move the damaged database at `path` aside, and open a new one with its readable rows.

    Deletes and overwrites no file. Raises StoreError if the damaged database cannot be moved, or the new database
    cannot be created.
    """
    damaged_inode = _inode(path)
    with _exclusive(path):
        if _inode(path) == damaged_inode:  # otherwise another process has recovered the database meanwhile
            _move_aside(path)
        store = SqliteStore(Database(path), on_deleted)
        recover_copies(store)
    return store


def recover_copies(store: SqliteStore) -> None:
    """Recover rows from each unprocessed damaged copy in the folder of the database.

    A recovery that was killed leaves an unprocessed copy. Appends a result for each copy to `store.notices`, and
    continues with the next copy after an error.
    """
    if store.path is None or store.read_only_reason:
        return
    for copy in sorted(store.path.parent.glob(f"{store.path.name}{_COPY_INFIX}*")):
        marker = copy.with_name(copy.name + _MARKER_SUFFIX)
        if copy.name.endswith(("-wal", "-shm", "-journal", _MARKER_SUFFIX)) or marker.exists():
            continue
        if not copy.is_file():
            store.notices.append(
                f"Nothing could be recovered from {copy}, because it is {file_kind(copy)}. "
                "New conversations are saved in a new database."
            )
        else:
            try:
                n_messages, n_lost = _salvage(store.database, copy)
            except (StoreError, sqlite3.Error, OSError) as error:
                reason = str(error).rstrip(".")
                store.notices.append(
                    f"Nothing could be recovered from {copy} yet: {reason}. "
                    "Keep the file, correct the cause, and start edgechat again."
                )
                continue
            lost = f", {n_lost} rows could not be read" if n_lost else ""
            store.notices.append(
                f"The database of conversations was damaged: {n_messages} messages were recovered{lost}. "
                f"The damaged file is kept as {copy}."
            )
        with contextlib.suppress(OSError):
            marker.touch(mode=0o600)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the recovery lock of the database at `path`, which the system releases if the process dies."""
    lock = path.with_name(path.name + ".lock")
    try:
        with contextlib.closing(sqlite3.connect(lock, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as error:
        raise StoreError(
            f"Cannot recover the damaged {path}: {error} ({lock}). "
            "Close other edgechat programs, delete the lock file, and try again."
        ) from error


def _move_aside(path: Path) -> None:
    first = path.with_name(f"{path.name}{_COPY_INFIX}{time.strftime('%Y%m%d-%H%M%S')}")
    copy, number = first, 1
    while copy.exists():
        number += 1
        copy = first.with_name(f"{first.name}_{number}")
    try:
        for suffix in FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):  # not every database has all of these files
                path.with_name(path.name + suffix).rename(copy.with_name(copy.name + suffix))
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be moved aside: {error.strerror or error}. Move it elsewhere."
        ) from error


def _salvage(database: Database, copy: Path) -> tuple[int, int]:
    """Insert every readable row of a damaged copy; return the number of inserted messages and of lost rows."""
    n_messages = n_lost = 0
    with (
        _with_signature(copy) as path, contextlib.closing(_open_damaged(path)) as damaged_db,
        database.writing(durable=True) as db,
    ):  # fmt: skip
        damaged_db.execute("PRAGMA writable_schema = ON")  # otherwise SQLite refuses to read a truncated file
        db.execute("PRAGMA defer_foreign_keys = ON")
        for table in _TABLES:
            columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]
            placeholders = ", ".join("?" * len(columns))
            statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({placeholders})"
            for row in _rows(damaged_db, table, columns):
                n_inserted = _insert(db, statement, row)
                n_lost += n_inserted is None
                n_messages += (n_inserted or 0) if table == "messages" else 0
        n_lost += _repair_references(db)
    return n_messages, n_lost


def _insert(db: sqlite3.Connection, statement: str, row: tuple[object, ...] | None) -> int | None:
    """Insert a row and return the number of rows added; None if the row is unreadable or violates the schema."""
    if row is None:
        return None
    try:
        return db.execute(statement, row).rowcount
    except sqlite3.Error:
        return None


@contextlib.contextmanager
def _with_signature(copy: Path) -> Iterator[Path]:
    """Yield `copy` itself or, if only its signature is damaged, a temporary file with the signature repaired.

    The temporary file is next to the database, because it contains conversations. Raises OSError.
    """
    with copy.open("rb") as file:
        header = file.read(_FRACTIONS_OFFSET + len(_FRACTIONS))
    if header.startswith(_SIGNATURE) or header[_FRACTIONS_OFFSET:] != _FRACTIONS:
        yield copy
        return
    prefix = copy.name.partition(_COPY_INFIX)[0] + _REPAIR_INFIX
    for abandoned in copy.parent.glob(prefix + "*"):  # of a recovery that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    # An error of the cleanup must not make a committed recovery fail: it would run again and restore deleted messages.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=copy.parent, ignore_cleanup_errors=True) as folder:
        repaired = Path(folder, "history.db")
        shutil.copyfile(copy, repaired)
        log = copy.with_name(copy.name + "-wal")
        if log.is_file():
            shutil.copyfile(log, repaired.with_name(repaired.name + "-wal"))
        with repaired.open("r+b") as file:
            file.write(_SIGNATURE)
        yield repaired


def _open_damaged(path: Path) -> sqlite3.Connection:
    """Open a damaged database read-only and replace invalid UTF-8 in texts. Raises sqlite3.OperationalError."""
    # If there is no write-ahead log, `immutable` keeps SQLite from creating files next to the database.
    has_wal = path.with_name(path.name + "-wal").is_file()
    mode = "mode=ro" if has_wal else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


def _rows(damaged_db: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[object, ...] | None]:
    """Yield each readable row of a table, and None for each unreadable row whose rowid is in the table or an index."""
    names = ", ".join(columns)
    if table == "message_attachments":  # this table has no rowid
        for direction in ("ASC", "DESC"):
            yield from _rows_until_damage(damaged_db, f"SELECT {names} FROM {table} ORDER BY message_key {direction}")
        return
    for key in sorted(_keys(damaged_db, table)):
        try:
            row = damaged_db.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (key,)).fetchone()
        except (sqlite3.Error, UnicodeError):
            row = None
        yield row


def _keys(damaged_db: sqlite3.Connection, table: str) -> set[int]:
    """Collect rowids from the table and from each of its indexes, scanning each from both ends."""
    sources = ["NOT INDEXED"]
    sources += [f"INDEXED BY {row[1]}" for row in _rows_until_damage(damaged_db, f"PRAGMA index_list({table})")]
    keys: set[int] = set()
    for source in sources:
        for direction in ("ASC", "DESC"):
            statement = f"SELECT rowid FROM {table} {source} ORDER BY rowid {direction}"
            if source != "NOT INDEXED":  # without ORDER BY rowid, SQLite reads only the index
                statement = f"SELECT rowid FROM {table} {source}"
            keys.update(row[0] for row in _rows_until_damage(damaged_db, statement))
    return keys


def _rows_until_damage(damaged_db: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(sqlite3.Error, UnicodeError):
        yield from damaged_db.execute(statement)


def _repair_references(db: sqlite3.Connection) -> int:
    """Create new conversations for messages whose conversation is lost, and clear references to lost messages.

    Returns the number of attachments that were removed because their bytes or their message are lost.
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
