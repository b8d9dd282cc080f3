"""Opening the database, writing to it as a whole or not at all, and saying in words what went wrong."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import DamagedDatabaseError, StoreError
from edgechat.store.schema import APPLICATION_ID, MIGRATIONS, Migration, apply_migration, schema_version

# How long to wait for another process that writes. Writes take milliseconds; a backup or an import may take seconds.
BUSY_S: Final = 5.0
# Pages in the log before it is moved into the database, which waits for the disk: 16 MB.
_AUTOCHECKPOINT_PAGES: Final = 4000
# The first with STRICT tables; Ubuntu 22.04 and JetPack 6 have 3.37.2.
OLDEST_SQLITE: Final = (3, 37, 0)


class Database:
    """One connection, shared by the threads of this process; a lock lets them in one at a time."""

    def __init__(self, path: Path | None, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Open or create the database at `path`; None keeps it in memory alone, never on a disk.

        `problem` says why it cannot be written, if so. Raises DamagedDatabaseError, and StoreError if it is none of ours
        or cannot even be read.
        """
        self.path = path
        self.problem = ""
        self._lock = threading.RLock()
        self._synchronous = ""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(f"this Python has SQLite {sqlite3.sqlite_version}; edgechat needs 3.37 or newer")
        with self.translate_errors():
            self.connection = self._open(migrations)
            self._file = _identity(path)

    def _open(self, migrations: Sequence[Migration]) -> sqlite3.Connection:
        if self.path is None:
            memory = _connect(":memory:")
            memory.execute("PRAGMA temp_store = MEMORY")
            self._prepare(memory, migrations)
            return memory
        connection: sqlite3.Connection | None = None
        try:
            _create_file(self.path)
            connection = _connect(_uri(self.path))
            self._check(connection, len(migrations))
            if not self.problem:
                _enable_wal(connection)
                # macOS otherwise leaves what was written in the disk's own cache.
                connection.execute("PRAGMA fullfsync = ON")
                connection.execute("PRAGMA checkpoint_fullfsync = ON")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
                self._prepare(connection, migrations)
                return connection
        except (sqlite3.OperationalError, OSError) as error:
            _close(connection)
            if not _is_read_only(error):
                raise
            self.problem = f"{self.path.parent} cannot be written to: {_reason(error)}"
        except BaseException:
            _close(connection)
            raise
        _close(connection)
        return self._open_read_only(self.path)

    def _prepare(self, connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        for number, migration in enumerate(migrations, start=1):
            before = schema_version(connection)
            if before >= number:
                continue
            if migration.rewrites and self.path is not None and before:
                _back_up(connection, self.path, before)
            apply_migration(connection, number, migration)

    def _check(self, connection: sqlite3.Connection, newest: int) -> None:
        connection.execute("BEGIN")  # another process may be making it
        tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
        found = schema_version(connection)
        connection.execute("COMMIT")
        if tables and owner != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program: move it away, it was not touched")
        if found > newest:
            self.problem = (
                f"{self.path} was written by a newer edgechat (version {found} of the database, this one knows "
                f"{newest}): it is only read; update edgechat to go on"
            )

    def _open_read_only(self, path: Path) -> sqlite3.Connection:
        if not path.exists():
            connection = _connect(":memory:")  # nothing was ever kept here
            self._prepare(connection, MIGRATIONS)
            return connection
        for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second where not even the log can be opened
            connection = _connect(_uri(path, mode))
            try:
                connection.execute("SELECT count(*) FROM conversations")
            except sqlite3.OperationalError:
                connection.close()
                continue
            return connection
        raise StoreError(self.problem)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turns errors of SQLite into StoreError, in words."""
        try:
            yield
        except sqlite3.Error as error:
            raise _store_error(error, self.path) from error
        except OverflowError as error:
            raise StoreError(f"this cannot be kept: a number in it is too large ({error})") from error
        except UnicodeEncodeError as error:
            raise StoreError(f"this cannot be kept: character {error.start} of it is no Unicode text") from error
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise _damaged(self.path, error) from error
        except OSError as error:
            raise StoreError(f"conversations cannot be kept in {self.path}: {_reason(error)}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that read."""
        with self._lock, self.translate_errors():
            yield self.connection

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction; with `durable` it is on the disk at the end, not only in the system's cache.

        Raises StoreError if nothing can be written, or another process writes for longer than `BUSY_S`.
        """
        if self.problem:
            raise StoreError(self.problem)
        if _identity(self.path) != self._file:
            raise StoreError(
                f"{self.path} was moved or replaced while it was open, perhaps by a recovery: start edgechat anew"
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
                with contextlib.suppress(sqlite3.Error):  # some errors end the transaction themselves
                    self.connection.execute("ROLLBACK")
                raise

    def truncate_wal(self) -> None:
        """Move the log into the database and empty it, so that what was deleted is in neither; best effort."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self.connection.close()


def _identity(path: Path | None) -> tuple[int, int]:
    """Which file this is; it stays the same while the file is written to."""
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
    """Let others read while one writes; where files cannot be shared, it stays as it was.

    SQLite does not wait by itself while another process does the same.
    """
    until_s = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203  (it waits)
            if "locked" not in str(error) or time.monotonic() > until_s:
                raise
            time.sleep(0.01)
        else:
            return


def _create_file(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives its log the same rights."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _back_up(connection: sqlite3.Connection, path: Path, number: int) -> None:
    """Copy the database as it was before a migration, if that is not done yet."""
    target = path.with_name(f"{path.name}.before-v{number + 1}")
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
    if isinstance(error, OSError):
        return True
    words = str(error)
    return "readonly" in words or "unable to open" in words


def _store_error(error: sqlite3.Error, path: Path | None) -> StoreError:
    words = str(error)
    if "malformed" in words or "not a database" in words:
        return _damaged(path, error)
    if "locked" in words or "busy" in words:
        return StoreError(f"another program has been writing to {path} for over {BUSY_S:g} s: close it, and try again")
    if "full" in words:
        return StoreError(f"the disk of {path} is full: free some space, and try again")
    if "readonly" in words or "unable to open" in words:
        return StoreError(f"{path} cannot be written to: {words}")
    return StoreError(f"conversations cannot be read or written in {path}: {words}")


def _damaged(path: Path | None, error: Exception) -> DamagedDatabaseError:
    return DamagedDatabaseError(
        f"{path} is damaged ({error}): `edgechat history recover` keeps it aside and gets out of it what can be read"
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()
