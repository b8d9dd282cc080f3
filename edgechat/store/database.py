"""SQLite connection with durable transactions; also opens damaged, read-only and unreadable databases."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edgechat.errors import StoreError
from edgechat.store.log_check import find_log_damage
from edgechat.store.schema import (
    APPLICATION_ID,
    MIGRATIONS,
    Migration,
    apply_migration,
    current_schema,
    read_schema,
    read_schema_version,
)
from edgechat.store.sqlite_errors import (
    BUSY_TIMEOUT_S,
    describe_error,
    is_read_only_error,
    make_damaged_error,
    translate_errors,
)

# Length of the write-ahead log, in pages (16 MB in total), at which SQLite starts a checkpoint. A checkpoint waits for
# the disk, so checkpoints are made less often than by default (1000 pages).
_AUTOCHECKPOINT_PAGES: Final = 4000
# `shrink` compacts a file if at least this many bytes, and at least half of the file, are free.
_MIN_FREE_BYTES: Final = 32 << 20
# Maximum amount of data in a file that `shrink` compacts, because SQLite copies this data into memory.
_MAX_COMPACTED_BYTES: Final = 256 << 20
# SQLite's limit for the length of a file name (MAX_PATHNAME in os_unix.c), minus the suffix of a log.
_MAX_PATH_BYTES: Final = 504
REPLACEMENT_CHARACTER: Final = "\ufffd"
"""Character that is shown for bytes that are not valid UTF-8."""
# Oldest supported SQLite version, the first with STRICT tables. Ubuntu 22.04 and JetPack 6 have 3.37.2.
MIN_SQLITE_VERSION: Final = (3, 37, 0)
FILE_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
"""File name suffixes of the logs and of the database itself. A recovery moves the files in this order, logs first, so
that a new database never reads the logs of the old database."""


class Database:
    """SQLite connection that all threads of this process share; a lock allows only one thread at a time."""

    def __init__(self, path: Path | None, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Open or create the database at `path`; if `path` is None, open a database in memory that writes no files.

        A file that cannot be read is replaced by an empty database in memory. Raises DamagedDatabaseError if the file
        is not a database, and StoreError if it belongs to another program or the disk is full.
        """
        self.path = path
        self.read_only_reason = ""
        """Reason why the database is read-only; "" if it is writable."""
        self.is_readable = True
        """False if a file exists at `path`, or may exist, but cannot be read."""
        self.notices: list[str] = []
        """Messages for the user about damage in the database."""
        self._lock = threading.RLock()
        self._synchronous = ""
        self._has_reported_damage = False
        if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
            raise StoreError(f"This Python has SQLite {sqlite3.sqlite_version}, but edgechat needs 3.37 or newer.")
        with translate_errors(self.path):
            self.connection = self._open(migrations)
            self.connection.text_factory = self._decode_text
            self._file_identity = _read_file_identity(path)

    def _open(self, migrations: Sequence[Migration]) -> sqlite3.Connection:
        if self.path is None:
            memory_connection = _connect(":memory:")
            memory_connection.execute("PRAGMA temp_store = MEMORY")
            self._migrate(memory_connection, migrations)
            return memory_connection
        connection: sqlite3.Connection | None = None
        try:
            _check_files(self.path)
            _create_file(self.path)
            connection = connect(self.path, "mode=rw")
            self._check_owner(connection, len(migrations))
            if not self.read_only_reason:
                _enable_wal(connection)
                # Without fullfsync, macOS leaves written data in the cache of the disk.
                connection.execute("PRAGMA fullfsync = ON")
                connection.execute("PRAGMA checkpoint_fullfsync = ON")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
                # Deleted rows are overwritten in their page, so that a recovery does not find them.
                connection.execute("PRAGMA secure_delete = FAST")
                self._migrate(connection, migrations)
                return connection
        except (sqlite3.OperationalError, OSError) as error:
            _close(connection)
            if not is_read_only_error(error):
                raise
            self.read_only_reason = _describe_refusal(self.path, error)
        except BaseException:
            _close(connection)
            raise
        _close(connection)
        return self._open_read_only(self.path)

    def _migrate(self, connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        for number, migration in enumerate(migrations, start=1):
            version = read_schema_version(connection)
            if version >= number:
                continue
            if migration.rewrites_rows and self.path is not None and version:
                _back_up_database(connection, self.path, version)
            apply_migration(connection, number, migration)

    def _check_owner(self, connection: sqlite3.Connection, newest_version: int) -> None:
        """Raise StoreError if another program owns the database; set `read_only_reason` if its schema is too new."""
        connection.execute("BEGIN")  # another process could create the tables between these queries
        schema = read_schema(connection)
        application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = read_schema_version(connection)
        connection.execute("COMMIT")
        if schema and application_id != APPLICATION_ID:
            if schema == current_schema():
                raise make_damaged_error(self.path, "its application ID is wrong")
            raise StoreError(
                f"{self.path} is the database of another program and was not changed. Move it to another folder."
            )
        if version > newest_version:
            self.read_only_reason = (
                f"{self.path} was written by a newer edgechat (schema version {version}, this edgechat supports "
                f"{newest_version}) and is read-only. Update edgechat."
            )

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        # The second mode works even if SQLite cannot open the write-ahead log.
        for mode in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.OperationalError), contextlib.ExitStack() as stack:
                connection = connect(path, mode)
                stack.callback(connection.close)
                connection.execute("SELECT count(*) FROM conversations")
                stack.pop_all()
                return connection
        self.is_readable = _has_no_database(path)
        connection = _connect(":memory:")
        self._migrate(connection, MIGRATIONS)
        return connection

    def _decode_text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.report_damaged_value()
            return data.decode("utf-8", "replace")

    def report_damaged_value(self) -> None:
        """Add a notice that the database has damaged values, unless it was added before."""
        notice = (
            f"{self.path} has damaged values, which are left out or shown as {REPLACEMENT_CHARACTER}. "
            "Run `edgechat history recover` to repair it."
        )
        if not self._has_reported_damage:
            self._has_reported_damage = True
            self.notices.append(notice)

    @contextlib.contextmanager
    def read_connection(self) -> Iterator[sqlite3.Connection]:
        """Context manager that locks the connection for SELECT statements and translates errors into StoreError."""
        with self._lock, translate_errors(self.path):
            yield self.connection

    @contextlib.contextmanager
    def write_transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Context manager for a write transaction: commit at the end, or roll back on an exception.

        If `durable` is true, the commit waits until the data is on the disk; otherwise, the commit only passes the data
        to the operating system. Raises StoreError if the database is read-only or was replaced, or if another process
        writes for longer than `BUSY_TIMEOUT_S`.
        """
        if self.read_only_reason:
            raise StoreError(self.read_only_reason)
        if _read_file_identity(self.path) != self._file_identity:
            raise StoreError(
                f"{self.path} was moved or replaced while it was open, perhaps by a recovery. Restart edgechat."
            )
        with self._lock, translate_errors(self.path):
            synchronous = "FULL" if durable else "NORMAL"
            if synchronous != self._synchronous:
                self.connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                    self.connection.execute("ROLLBACK")
                raise

    def truncate_wal(self) -> None:
        """Copy the write-ahead log into the database, and truncate the log to remove deleted data. Ignores errors."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def shrink(self) -> None:
        """Move deleted data out of the write-ahead log, and return free space to the disk if most of the file is free.

        Ignores errors.
        """
        with self._lock, contextlib.suppress(sqlite3.Error, MemoryError):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            n_pages, n_free_pages, page_bytes = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            used_bytes, free_bytes = (n_pages - n_free_pages) * page_bytes, n_free_pages * page_bytes
            if free_bytes >= max(_MIN_FREE_BYTES, used_bytes) and used_bytes <= _MAX_COMPACTED_BYTES:
                # SQLite would otherwise copy the conversations to a temporary file outside the user's folder.
                self.connection.execute("PRAGMA temp_store = MEMORY")
                self.connection.execute("VACUUM")
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        """Close the connection. Further calls have no effect."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _count_path_bytes(path: Path) -> int:
    return len(os.fsencode(path.absolute()))


def _describe_refusal(path: Path, error: BaseException) -> str:
    """Return the reason why the database at `path` cannot be opened for writing."""
    folder, path_bytes = path.parent, _count_path_bytes(path)
    ancestor = _find_existing_ancestor(path)
    if not os.path.isdir(ancestor):  # noqa: PTH112  (Path raises for some names)
        subject = "it" if ancestor == folder else str(ancestor)
        return f"Cannot write to {folder}: {subject} is not a folder. Move that file, or set another folder."
    if path_bytes > _MAX_PATH_BYTES:
        return f"Cannot open {path}: the path has {path_bytes} bytes, but SQLite accepts at most {_MAX_PATH_BYTES}."
    return f"Cannot write to {folder}: {describe_error(error)}. Check the permissions of the folder and of its files."


def _has_no_database(path: Path) -> bool:
    """Return whether there is no database at `path` (no file, or an empty file), but one could be created."""
    if _count_path_bytes(path) > _MAX_PATH_BYTES:
        return False
    if os.path.lexists(path):
        return path.is_file() and not path.stat().st_size
    return os.path.isdir(_find_existing_ancestor(path))  # noqa: PTH112


def _find_existing_ancestor(path: Path) -> Path:
    return next((folder for folder in path.parents if os.path.lexists(folder)), path.parent)


def _check_files(path: Path) -> None:
    irregular_file = find_irregular_file(path)
    if irregular_file is not None:
        raise make_damaged_error(path, f"{irregular_file.name} is {describe_irregular_file(irregular_file)}")
    log_damage = find_log_damage(path, connect)
    if log_damage is not None:
        raise make_damaged_error(path, log_damage.reason)


def find_irregular_file(path: Path) -> Path | None:
    """Return the database file or log that is a directory, pipe or device; None if all of them are regular files."""
    files = (path.with_name(path.name + suffix) for suffix in reversed(FILE_SUFFIXES))
    return next((file for file in files if _is_irregular(file)), None)


def _is_irregular(file: Path) -> bool:
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def describe_irregular_file(path: Path) -> str:
    """Return a description of a directory, pipe or device for error messages."""
    return "a directory" if path.is_dir() else "a pipe or a device, not a file"


def _read_file_identity(path: Path | None) -> tuple[int, int]:
    """Return the device and inode numbers, which change if the file is replaced; (0, 0) if there is no file."""
    if path is None:
        return 0, 0
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def connect(path: Path, parameters: str) -> sqlite3.Connection:
    """Open a database file with URI parameters. Raises sqlite3.Error."""
    # A file name may have bytes that are not UTF-8; percent-encoding passes these bytes to SQLite unchanged.
    return _connect(f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?{parameters}")


def _connect(location: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        location, uri=location.startswith("file:"), timeout=BUSY_TIMEOUT_S,
        isolation_level=None, check_same_thread=False,
    )  # fmt: skip
    connection.row_factory = sqlite3.Row
    return connection


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, so that reads do not wait for a writer.

    On file systems without shared memory, SQLite keeps the previous journal mode. SQLite does not wait if another
    process switches the mode at the same time, so this function retries for up to `BUSY_TIMEOUT_S` seconds.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203  (the loop waits for another process)
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _create_file(path: Path) -> None:
    """Create the database file if it does not exist, and make it readable only by its owner.

    SQLite copies the permissions of the file to the logs.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _back_up_database(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the database to `history.db.before-vN` before its migration to version N, unless that copy exists."""
    target = path.with_name(f"{path.name}.before-v{version + 1}")
    if target.exists():
        return
    partial_file = target.with_name(target.name + ".partial")
    partial_file.unlink(missing_ok=True)
    os.close(os.open(partial_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(partial_file)) as copy:
        connection.backup(copy)
    partial_file.rename(target)


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
