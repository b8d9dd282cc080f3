"""Recovery of a damaged database: the file is moved aside, and its readable rows are copied into a new database."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from edgechat.errors import DamagedDatabaseError, StoreError
from edgechat.humanize import format_count
from edgechat.store.damaged_copies import choose_copy_name, find_unrecovered_copies, marker_file
from edgechat.store.database import (
    FILE_SUFFIXES,
    Database,
    connect,
    describe_irregular_file,
    find_irregular_file,
)
from edgechat.store.log_check import LogDamage, find_log_damage
from edgechat.store.page_format import WAL_HEADER_BYTES
from edgechat.store.row_repair import COLUMNS, repair_row
from edgechat.store.salvage import (
    DAMAGED_REFERENCES,
    SalvageResult,
    find_structural_damage,
    open_damaged_database,
    salvage,
)
from edgechat.store.schema import current_schema, read_schema
from edgechat.store.sqlite import OnDeleted, SqliteStore
from edgechat.store.sqlite_errors import is_locked_error, translate_errors

_LOCK_TIMEOUT_S: Final = 60.0


def is_intact(path: Path) -> bool:
    """Return whether the database at `path` has no damage in its structure, values, log and search index.

    Returns True if the database does not exist. The check takes seconds for a large database. Raises StoreError if the
    database is locked or cannot be opened, because neither means that it is damaged.
    """
    is_damaged = find_irregular_file(path) is not None
    if is_damaged or not os.path.lexists(path):
        return not is_damaged
    try:
        database = Database(path)
        with contextlib.closing(database), translate_errors(path):
            with contextlib.closing(open_damaged_database(path)) as db:
                is_damaged = find_structural_damage(db) or _has_damaged_rows(db)
            return not is_damaged and (bool(database.read_only_reason) or _is_schema_intact(database))
    except DamagedDatabaseError:
        return False


def _has_damaged_rows(db: sqlite3.Connection) -> bool:
    for table in COLUMNS:
        for row in db.execute(f"SELECT * FROM {table}"):
            if repair_row(table, row).is_changed:
                return True
            if table == "attachments" and hashlib.sha256(row["data"]).hexdigest().encode() != row["sha256"]:
                return True
    return any(db.execute(statement).fetchone() for statement in DAMAGED_REFERENCES)


def _is_schema_intact(database: Database) -> bool:
    """Return whether the schema is complete and the search indexes are intact. Raises DamagedDatabaseError."""
    with database.write_transaction() as db:
        for table in ("message_search", "title_search"):
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
        return current_schema() <= read_schema(db)


def recover(path: Path, on_deleted: Sequence[OnDeleted] = ()) -> SqliteStore:
    """Move a damaged log, or the whole damaged database at `path`, aside; open a database with all readable rows.

    No file is deleted or overwritten. Raises StoreError if a file cannot be moved, or if the new database cannot be
    created.
    """
    damaged_inode = _read_inode(path)
    with _recovery_lock(path):
        log_damage = find_log_damage(path, connect) if find_irregular_file(path) is None else None
        if log_damage is not None:
            _move_log_aside(path, log_damage)
        elif _read_inode(path) == damaged_inode:  # no other process has recovered the database yet
            _move_aside(path)
        try:
            database = Database(path)
        except DamagedDatabaseError:
            if log_damage is None:
                raise
            _move_aside(path)
            database = Database(path)
        store = SqliteStore(database, on_deleted)
        recover_copies(store)
    return store


def recover_copies(store: SqliteStore) -> None:
    """Recover rows from all damaged copies in the folder of the database that are not marked as recovered.

    A damaged copy stays unmarked if its recovery failed or was killed. Appends a message about each copy to
    `store.notices`, and continues with the next copy after an error.
    """
    if store.path is None or store.read_only_reason:
        return
    for copy in find_unrecovered_copies(store.path):
        if not copy.is_file():
            store.notices.append(
                f"Nothing could be recovered from {copy}, because it is {describe_irregular_file(copy)}. "
                "New conversations are saved in a new database."
            )
        else:
            try:
                result = salvage(copy, store.database, store.path.name)
            except (StoreError, sqlite3.Error, OSError) as error:
                reason = str(error).rstrip(".")
                store.notices.append(
                    f"Nothing could be recovered from {copy} yet: {reason}. "
                    "Keep the file, fix the problem, and restart edgechat."
                )
                continue
            log = copy.with_name(copy.name + "-wal")
            damaged_file = copy if copy.stat().st_size else log  # `_move_log_aside` makes an empty file
            store.notices.append(
                f"The database of conversations was damaged: {_describe(result)}. The damaged file was renamed to "
                f"{damaged_file}."
            )
        with contextlib.suppress(OSError):
            marker_file(copy).touch(mode=0o600)


def _describe(result: SalvageResult) -> str:
    parts = [f"{format_count(result.n_messages, 'message')} {'was' if result.n_messages == 1 else 'were'} recovered"]
    if result.n_repaired:
        parts.append(f"damaged values in {format_count(result.n_repaired, 'row')} were replaced")
    if result.n_lost:
        parts.append(f"{format_count(result.n_lost, 'row')} could not be read")
    return "; ".join(parts)


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
        advice = "Delete the lock file" if os.path.lexists(lock_file) else "Check the permissions of the folder"
        if is_locked_error(error):
            advice = "Wait until the other edgechat process has recovered it"
        raise StoreError(
            f"Cannot recover the damaged {path}: {error} ({lock_file}). {advice}, and try again."
        ) from error


def _move_aside(path: Path) -> None:
    copy = choose_copy_name(path)
    try:
        for suffix in FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):  # not every database has all of these files
                path.with_name(path.name + suffix).rename(copy.with_name(copy.name + suffix))
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be moved aside: {error.strerror or error}. Move it to another folder."
        ) from error


def _move_log_aside(path: Path, damage: LogDamage) -> None:
    """Move the frames of a log that SQLite must not read into the log of a new, empty damaged copy.

    The log of the database keeps the earlier frames.
    """
    copy = choose_copy_name(path)
    log, saved_log = (file.with_name(file.name + "-wal") for file in (path, copy))
    try:
        if damage.first_offset == WAL_HEADER_BYTES:
            _create_private(copy).close()
            log.rename(saved_log)
        else:
            with log.open("rb") as source, _create_private(saved_log) as target:
                target.write(source.read(WAL_HEADER_BYTES))
                source.seek(damage.first_offset)
                shutil.copyfileobj(source, target)
            _create_private(copy).close()
            os.truncate(log, damage.first_offset)
    except OSError as error:
        raise StoreError(
            f"The write-ahead log of {path} is damaged and cannot be moved aside: {error.strerror or error}. "
            "Move it to another folder."
        ) from error


def _create_private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb")
