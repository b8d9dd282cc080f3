"""SQLite storage of conversations: implements `edgechat.chat.store.Store`. Only this package imports sqlite3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgechat import paths
from edgechat.errors import DamagedDatabaseError
from edgechat.store.damaged_copies import find_unrecovered_copies
from edgechat.store.database import Database
from edgechat.store.sqlite import OnDeleted, SqliteStore


def open_store(path: Path | None = None, *, on_deleted: Sequence[OnDeleted] = ()) -> SqliteStore:
    """Open the database at `path` (default: the user's history); create the file if it does not exist.

    A damaged database is moved aside, and its readable rows are copied into a new database; the store's `notices`
    describe the recovery. The store's `read_only_reason` is not empty if the store is read-only. Each callback in
    `on_deleted` receives the ID of a conversation after the conversation or some of its messages were deleted from the
    database.

    Raises StoreError if the file belongs to another program or cannot be opened.
    """
    path = path or paths.history_file()
    try:
        store = SqliteStore(Database(path), on_deleted)
    except DamagedDatabaseError:
        from edgechat.store import recovery  # slow to import

        return recovery.recover(path, on_deleted)
    if not store.read_only_reason and find_unrecovered_copies(path):
        from edgechat.store import recovery

        recovery.recover_copies(store)
    return store


def open_ephemeral_store() -> SqliteStore:
    """Open an empty store in memory that writes no files."""
    return SqliteStore(Database(None))
