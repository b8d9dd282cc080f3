"""SQLite connection with durable transactions, and translation of SQLite errors into StoreError."""

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

import msgspec

from edgechat.errors import DamagedDatabaseError, StoreError
from edgechat.store.schema import APPLICATION_ID, MIGRATIONS, Migration, apply_migration, read_schema_version

# Maximum time to wait for another process that is writing. Writes take milliseconds; backups and imports take seconds.
BUSY_TIMEOUT_S: Final = 5.0
# Length of the write-ahead log, in pages (16 MB in total), at which SQLite starts a checkpoint. A checkpoint waits for
# the disk, so checkpoints are made less often than by default (1000 pages).
_AUTOCHECKPOINT_PAGES: Final = 4000
# Oldest supported SQLite version, the first with STRICT tables. Ubuntu 22.04 and JetPack 6 have 3.37.2.
MIN_SQLITE_VERSION: Final = (3, 37, 0)
FILE_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
"""File name suffixes of the logs and of the database itself. A recovery moves the files in this order, logs first, so
that a new database never reads the logs of the old database."""


class Database:
    """SQLite connection that all threads of this process share; a lock allows only one thread at a time."""

    def __init__(self, path: Path | None, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Open or create the database at `path`; if `path` is None, open a database in memory that writes no files.

        The attribute `read_only_reason` says why the database is read-only; "" if the database is writable. Raises
        DamagedDatabaseError if the file is not a database, and StoreError if the file belongs to another program or
        cannot be read.
        """
        self.path = path
        self.read_only_reason = ""
        self._lock = threading.RLock()
        self._synchronous = ""
        if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
            raise StoreError(f"This Python has SQLite {sqlite3.sqlite_version}, but edgechat needs 3.37 or newer.")
        with self.translate_errors():
            self.connection = self._open(migrations)
            self._file_identity = _read_file_identity(path)

    def _open(self, migrations: Sequence[Migration]) -> sqlite3.Connection:
        if self.path is None:
            memory_connection = _connect(":memory:")
            memory_connection.execute("PRAGMA temp_store = MEMORY")
            self._migrate(memory_connection, migrations)
            return memory_connection
        connection: sqlite3.Connection | None = None
        try:
            _check_regular_files(self.path)
            _create_file(self.path)
            connection = _connect(_make_uri(self.path))
            self._check_owner(connection, len(migrations))
            if not self.read_only_reason:
                _enable_wal(connection)
                # Without fullfsync, macOS leaves written data in the cache of the disk.
                connection.execute("PRAGMA fullfsync = ON")
                connection.execute("PRAGMA checkpoint_fullfsync = ON")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
                self._migrate(connection, migrations)
                return connection
        except (sqlite3.OperationalError, OSError) as error:
            _close(connection)
            if not is_read_only_error(error):
                raise
            folder = self.path.parent
            self.read_only_reason = (
                f"Cannot write to {folder}: it is not a folder. Move that file to another folder."
                if folder.exists() and not folder.is_dir()
                else f"Cannot write to {folder}: {_error_reason(error)}. Check the permissions of the folder."
            )
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
        n_tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = read_schema_version(connection)
        connection.execute("COMMIT")
        if n_tables and application_id != APPLICATION_ID:
            raise StoreError(
                f"{self.path} is the database of another program and was not changed. Move it to another folder."
            )
        if version > newest_version:
            self.read_only_reason = (
                f"{self.path} was written by a newer edgechat (schema version {version}, this edgechat supports "
                f"{newest_version}) and is read-only. Update edgechat."
            )

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        if not path.exists():
            connection = _connect(":memory:")  # no conversation was ever saved, so the history is empty
            self._migrate(connection, MIGRATIONS)
            return connection
        # The second mode also works if SQLite cannot open the write-ahead log.
        for mode in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.OperationalError), contextlib.ExitStack() as stack:
                connection = _connect(_make_uri(path, mode))
                stack.callback(connection.close)
                connection.execute("SELECT count(*) FROM conversations")
                stack.pop_all()
                return connection
        raise StoreError(self.read_only_reason)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Context manager that translates errors of SQLite, text encoding and the file system into StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            raise _make_store_error(error, self.path) from error
        except OverflowError as error:
            raise StoreError(f"Cannot use this value: a number is too large ({error}).") from error
        except UnicodeEncodeError as error:
            raise StoreError(f"Cannot use this text: it has an invalid character at position {error.start}.") from error
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise _make_damaged_error(self.path, str(error)) from error
        except OSError as error:
            raise StoreError(f"Cannot save conversations in {self.path}: {_error_reason(error)}.") from error

    @contextlib.contextmanager
    def read_connection(self) -> Iterator[sqlite3.Connection]:
        """Context manager that locks the connection for SELECT statements and translates errors into StoreError."""
        with self._lock, self.translate_errors():
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
        with self._lock, self.translate_errors():
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

    def close(self) -> None:
        """Close the connection. Further calls have no effect."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _check_regular_files(path: Path) -> None:
    irregular_file = find_irregular_file(path)
    if irregular_file is not None:
        raise _make_damaged_error(path, f"{irregular_file.name} is {describe_irregular_file(irregular_file)}")


def find_irregular_file(path: Path) -> Path | None:
    """Return a path of the database or its logs that is a directory, pipe or device; None if there is none."""
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


def _make_uri(path: Path, mode: str = "mode=rw") -> str:
    return f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"


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
    """Create the database file if it does not exist, and make it readable for its owner only.

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


def _error_reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


# Python 3.10 has no SQLite error codes, so errors are recognised by their text.


def is_locked_error(error: BaseException) -> bool:
    """Return whether another connection holds the lock that an operation needs."""
    return "locked" in str(error) or "busy" in str(error)


def is_read_only_error(error: BaseException) -> bool:
    """Return whether a file or its folder could not be opened or written."""
    return isinstance(error, OSError) or "readonly" in str(error) or "unable to open" in str(error)


def _make_store_error(error: sqlite3.Error, path: Path | None) -> StoreError:
    reason = str(error)
    if "malformed" in reason or "not a database" in reason:
        return _make_damaged_error(path, reason)
    if is_locked_error(error):
        return StoreError(
            f"Another program has been writing to {path} for over {BUSY_TIMEOUT_S:g} s. Close it, and try again."
        )
    if "full" in reason:
        return StoreError(f"The disk that contains {path} is full. Free some space, and try again.")
    if is_read_only_error(error):
        return StoreError(f"Cannot write to {path}: {reason}.")
    return StoreError(f"Cannot read or write conversations in {path}: {reason}.")


def _make_damaged_error(path: Path | None, reason: str) -> DamagedDatabaseError:
    return DamagedDatabaseError(
        f"{path} is damaged ({reason}). Run `edgechat history recover` to recover its readable messages."
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
