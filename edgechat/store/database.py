"""SQLite connection with durable transactions; translates errors of SQLite into StoreError."""

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
from edgechat.store.schema import APPLICATION_ID, MIGRATIONS, Migration, apply_migration, schema_version

# Maximum wait for another process that is writing. Writes take milliseconds; a backup or an import may take seconds.
BUSY_S: Final = 5.0
# Number of pages (16 MB) in the write-ahead log that start a checkpoint. A checkpoint waits for the disk.
_AUTOCHECKPOINT_PAGES: Final = 4000
# First SQLite version with STRICT tables; Ubuntu 22.04 and JetPack 6 have 3.37.2.
OLDEST_SQLITE: Final = (3, 37, 0)
FILE_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
"""Suffixes of the files of a database. Logs come first, so that a recovery moves them before the database itself and a
new database never reads the logs of an old one."""


class Database:
    """A connection to the database that all threads of this process share under a lock."""

    def __init__(self, path: Path | None, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Open or create the database at `path`; None opens one in memory that writes no file.

        `read_only_reason` is the reason why the database is read-only; "" if it is writable. Raises
        DamagedDatabaseError if the file is not a database, and StoreError if it belongs to another program or cannot
        be read.
        """
        self.path = path
        self.read_only_reason = ""
        self._lock = threading.RLock()
        self._synchronous = ""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(f"This Python has SQLite {sqlite3.sqlite_version}, but edgechat needs 3.37 or newer.")
        with self.translate_errors():
            self.connection = self._open(migrations)
            self._file = _identity(path)

    def _open(self, migrations: Sequence[Migration]) -> sqlite3.Connection:
        if self.path is None:
            memory = _connect(":memory:")
            memory.execute("PRAGMA temp_store = MEMORY")
            self._migrate(memory, migrations)
            return memory
        connection: sqlite3.Connection | None = None
        try:
            _check_regular(self.path)
            _create_file(self.path)
            connection = _connect(_uri(self.path))
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
            if not _is_read_only(error):
                raise
            folder = self.path.parent
            self.read_only_reason = (
                f"Cannot write to {folder}: it is not a folder. Move it elsewhere."
                if folder.exists() and not folder.is_dir()
                else f"Cannot write to {folder}: {_reason(error)}. Check the permissions of the folder."
            )
        except BaseException:
            _close(connection)
            raise
        _close(connection)
        return self._open_read_only(self.path)

    def _migrate(self, connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        for number, migration in enumerate(migrations, start=1):
            before = schema_version(connection)
            if before >= number:
                continue
            if migration.rewrites and self.path is not None and before:
                _back_up(connection, self.path, before)
            apply_migration(connection, number, migration)

    def _check_owner(self, connection: sqlite3.Connection, newest: int) -> None:
        """Raise StoreError for a database of another program; set `read_only_reason` for one of a newer edgechat."""
        connection.execute("BEGIN")  # another process may be creating the database
        n_tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = schema_version(connection)
        connection.execute("COMMIT")
        if n_tables and owner != APPLICATION_ID:
            raise StoreError(f"{self.path} is the database of another program and was not changed. Move it elsewhere.")
        if version > newest:
            self.read_only_reason = (
                f"{self.path} was written by a newer edgechat (schema version {version}, this edgechat supports "
                f"{newest}) and is read-only. Update edgechat."
            )

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        if not path.exists():
            connection = _connect(":memory:")  # an empty history, because no conversation was ever saved
            self._migrate(connection, MIGRATIONS)
            return connection
        # The second mode works where SQLite cannot open the write-ahead log.
        for mode in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.OperationalError), contextlib.ExitStack() as stack:
                connection = _connect(_uri(path, mode))
                stack.callback(connection.close)
                connection.execute("SELECT count(*) FROM conversations")
                stack.pop_all()
                return connection
        raise StoreError(self.read_only_reason)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Translate errors of SQLite, text encoding and the file system into StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            raise _store_error(error, self.path) from error
        except OverflowError as error:
            raise StoreError(f"Cannot save this: a number is too large ({error}).") from error
        except UnicodeEncodeError as error:
            raise StoreError(f"Cannot save this: character {error.start} is not Unicode text.") from error
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise _damaged_error(self.path, str(error)) from error
        except OSError as error:
            raise StoreError(f"Cannot save conversations in {self.path}: {_reason(error)}.") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lock the connection for SELECT statements; translates errors into StoreError."""
        with self._lock, self.translate_errors():
            yield self.connection

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Open a write transaction, which is committed at the end or rolled back on an exception.

        With `durable`, the commit waits until the data is on the disk; without it, until the operating system has the
        data. Raises StoreError if the database is read-only or was replaced, or if another process writes for longer
        than `BUSY_S`.
        """
        if self.read_only_reason:
            raise StoreError(self.read_only_reason)
        if _identity(self.path) != self._file:
            raise StoreError(
                f"{self.path} was moved or replaced while it was open, perhaps by a recovery. Restart edgechat."
            )
        with self._lock, self.translate_errors():
            level = "FULL" if durable else "NORMAL"
            if level != self._synchronous:
                self.connection.execute(f"PRAGMA synchronous = {level}")
                self._synchronous = level
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                    self.connection.execute("ROLLBACK")
                raise

    def truncate_wal(self) -> None:
        """Move the write-ahead log into the database and truncate it, which removes deleted data. Ignores errors."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        """Close the connection. Further calls have no effect."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _check_regular(path: Path) -> None:
    irregular = irregular_file(path)
    if irregular is not None:
        raise _damaged_error(path, f"{irregular.name} is {file_kind(irregular)}")


def irregular_file(path: Path) -> Path | None:
    """Return the first file of the database that is a directory, pipe or device; None if all files are regular."""
    files = (path.with_name(path.name + suffix) for suffix in reversed(FILE_SUFFIXES))
    return next((file for file in files if _is_irregular(file)), None)


def _is_irregular(file: Path) -> bool:
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def file_kind(path: Path) -> str:
    """Describe the kind of a path that is not a regular file, for error messages."""
    return "a directory" if path.is_dir() else "a pipe or a device, not a file"


def _identity(path: Path | None) -> tuple[int, int]:
    """Return device and inode of a file, which change only if the file is replaced; (0, 0) if it does not exist."""
    if path is None:
        return 0, 0
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _uri(path: Path, mode: str = "mode=rw") -> str:
    return f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"


def _connect(where: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        where, uri=where.startswith("file:"), timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, so that reads do not wait for a writer.

    On file systems without shared memory, SQLite keeps the previous journal mode. SQLite does not wait for another
    process that switches the mode at the same time, so this function retries for up to `BUSY_S`.
    """
    deadline = time.monotonic() + BUSY_S
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
    """Create an empty database file that only its owner can read; SQLite copies its permissions to the logs."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the database to `history.db.before-vN` before its migration to version N, unless the copy exists."""
    target = path.with_name(f"{path.name}.before-v{version + 1}")
    if target.exists():
        return
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
    partial.rename(target)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _is_read_only(error: BaseException) -> bool:
    return isinstance(error, OSError) or "readonly" in str(error) or "unable to open" in str(error)


def _store_error(error: sqlite3.Error, path: Path | None) -> StoreError:
    reason = str(error)
    if "malformed" in reason or "not a database" in reason:
        return _damaged_error(path, reason)
    if "locked" in reason or "busy" in reason:
        return StoreError(f"Another program has been writing to {path} for over {BUSY_S:g} s. Close it, and try again.")
    if "full" in reason:
        return StoreError(f"The disk of {path} is full. Free some space, and try again.")
    if "readonly" in reason or "unable to open" in reason:
        return StoreError(f"Cannot write to {path}: {reason}.")
    return StoreError(f"Cannot read or write conversations in {path}: {reason}.")


def _damaged_error(path: Path | None, reason: str) -> DamagedDatabaseError:
    return DamagedDatabaseError(
        f"{path} is damaged ({reason}). Run `edgechat history recover` to recover its readable messages."
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
