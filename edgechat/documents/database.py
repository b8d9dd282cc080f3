"""SQLite connection to the database of one collection, and the translation of SQLite's errors into DocumentError."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.documents.bigrams import separate_text
from edgechat.documents.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION
from edgechat.errors import DamagedCollectionError, DocumentError, FullDiskError
from edgechat.files import FileLock
from edgechat.humanize import format_size

DAMAGE_SUFFIX: Final = ".damaged"
"""Suffix of an empty file that marks a database in which damage was found: the next update rebuilds it."""
FILE_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
"""Suffixes of the logs and of the database, in the order in which the files are moved or deleted."""
# Maximum time to wait for another process that writes. Its transactions take less than a second.
_BUSY_TIMEOUT_S: Final = 30.0
_MIN_SQLITE_VERSION: Final = (3, 37, 0)  # the first version with STRICT tables
_SEARCH_MODULE: Final = "fts5"
# Texts of SQLite's errors for damaged files. Python 3.10 has no error codes.
_DAMAGE_TEXTS: Final = (
    "malformed", "not a database", "corrupt", "unsupported file format", "no such table", "no such column",
    "vtable constructor failed", "Could not decode",
)  # fmt: skip


class CollectionDatabase:
    """Connection to the database of a collection. Threads of this process can share it; a lock serialises them."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        """Open the database at `path`, or create it if `is_new`.

        Raises DamagedCollectionError if the file is damaged or has an older schema, and DocumentError if it does not
        exist, belongs to another program or a newer version, or cannot be opened.
        """
        if sqlite3.sqlite_version_info < _MIN_SQLITE_VERSION:
            raise DocumentError(f"This Python has SQLite {sqlite3.sqlite_version}, but documents need 3.37 or newer.")
        self.path = path
        self._lock = threading.RLock()
        self._identity = _read_identity(path)  # before the file is opened: a later replacement is noticed
        with translate_errors(path):
            self._connection = connect(path, "rwc" if is_new else "rw")
        try:
            with translate_errors(path):
                _check_search_module(self._connection)
                if is_new:
                    self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                    self._connection.executescript(f"BEGIN;\n{SCHEMA}COMMIT;")
                check_owner(self._connection, path)
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lock the connection for a consistent read of several statements. Raises DocumentError."""
        with self._lock, translate_errors(self.path):
            if self._connection.in_transaction:  # nested in `write` or `read`
                yield self._connection
                return
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._roll_back()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Context manager for a write transaction: commit at the end, roll back on an exception. Raises DocumentError.

        A kill at any time leaves the transaction out.
        """
        with self._lock, translate_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def check_identity(self) -> None:
        """Raise DocumentError if the file was removed or replaced since it was opened."""
        if self._identity != _read_identity(self.path):
            raise DocumentError(
                f"The collection {self.path.stem} was removed or replaced by another process meanwhile. Try again."
            )

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection. Further calls have no effect."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database file with the given mode of a URI: ro, rw or rwc. Raises sqlite3.Error."""
    location = f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?mode={mode}"
    connection = sqlite3.connect(
        location, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )  # fmt: skip
    connection.create_function("separate_text", 1, separate_text, deterministic=True)
    connection.execute("PRAGMA trusted_schema = ON")  # the default; without it, views cannot use the function
    return connection


@contextlib.contextmanager
def lock_updates(path: Path) -> Iterator[None]:
    """Hold the lock of updates of the collection at `path`, which need not exist. Raises DocumentError."""
    try:
        lock = FileLock(path.with_name(path.name + ".lock"))
    except OSError as error:
        raise DocumentError(f"Cannot create the lock of {path}: {error.strerror}.") from error
    try:
        try:
            is_free = lock.try_acquire()
        except OSError as error:
            raise DocumentError(f"Cannot lock {path}: {error.strerror}. Check the file system.") from error
        if not is_free:
            owner = lock.read_owner()
            by = f" by process {owner}" if owner else ""
            raise DocumentError(f"The collection {path.stem} is being updated{by}. Wait for it, and try again.")
        lock.write_owner()
        yield
    finally:
        lock.close()


def _read_identity(path: Path) -> tuple[int, int] | None:
    """Return the device and number of a file, which another file at the same path does not have."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _check_search_module(connection: sqlite3.Connection) -> None:
    """Raise DocumentError if SQLite was built without the module of the keyword search."""
    modules = {row[0] for row in connection.execute("PRAGMA module_list")}
    if modules and _SEARCH_MODULE not in modules:
        raise DocumentError(
            f"The SQLite of this Python has no full-text search ({_SEARCH_MODULE}), which documents need. Install "
            "edgechat with another Python, for example one from python.org or `uv python install`."
        )


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Store a value of the meta table."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def get_meta(db: sqlite3.Connection, key: str) -> str:
    """Return a value of the meta table; "" if there is none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def check_owner(connection: sqlite3.Connection, path: Path) -> None:
    """Raise DocumentError unless the database is a collection of this version, and sqlite3.Error if it is damaged."""
    check_program(connection, path)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise DocumentError(
            f"{path} was written by a newer edgechat (schema version {version}; this one supports {SCHEMA_VERSION}). "
            f"Update edgechat, or remove the collection with `edgechat docs remove {path.stem}`."
        )
    if version < SCHEMA_VERSION:
        reason = "it is incomplete" if not version else f"schema version {version} is no longer supported"
        raise make_damaged_error(path, reason)


def check_program(connection: sqlite3.Connection, path: Path) -> None:
    """Raise DocumentError if the database belongs to another program, and sqlite3.Error if it is damaged."""
    application_id, n_tables = (
        int(connection.execute(statement).fetchone()[0])
        for statement in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
    )
    if n_tables and application_id != APPLICATION_ID:
        raise DocumentError(f"{path} is the database of another program. Move it to another folder.")


def make_damaged_error(path: Path, reason: str) -> DamagedCollectionError:
    """Return the error for a damaged collection, with the advice to rebuild it."""
    return DamagedCollectionError(
        f"The collection {path.stem} cannot be used ({reason}). Run `edgechat docs update {path.stem}` to rebuild it "
        "from its files.",
        path.stem,
    )


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Context manager that translates errors of SQLite and of the file system into DocumentError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _make_error(error, path) from error
    except OSError as error:
        raise DocumentError(f"Cannot use {path}: {error.strerror or error}.") from error


def _make_error(error: sqlite3.Error, path: Path) -> DocumentError:
    reason = str(error)
    if any(text in reason for text in _DAMAGE_TEXTS):
        with contextlib.suppress(OSError):
            path.with_name(path.name + DAMAGE_SUFFIX).touch()
        return make_damaged_error(path, reason)
    if "full" in reason or "disk I/O error" in reason:
        free = ""
        with contextlib.suppress(OSError):
            free = f"{format_size(paths.free_bytes(path.parent))} free"
        state = f"is full ({free})" if "full" in reason else f"reported an error ({reason}, {free}); it may be full"
        sentence = f"The disk that contains {path} {state}."
        advice = f"Free some space, then run `edgechat docs update {path.stem}`."
        return FullDiskError(f"{sentence} What was indexed before is unchanged. {advice}", sentence)
    if "locked" in reason or "busy" in reason:
        return DocumentError(
            f"Another program has been writing to {path} for over {_BUSY_TIMEOUT_S:g} s. Wait for it, and try again."
        )
    if "unable to open" in reason:
        return DocumentError(f"Cannot open {path}. Check the permissions of the file and of its folder.")
    return DocumentError(f"Cannot read or write {path}: {reason}.")
