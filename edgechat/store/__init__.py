"""Conversations in SQLite, behind `edgechat.chat.store.Store`. The only importer of sqlite3."""

from __future__ import annotations

from pathlib import Path

from edgechat import paths
from edgechat.errors import DamagedDatabaseError
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore


def open_store(path: Path | None = None) -> SqliteStore:
    """The conversations of this user, made if there are none; a damaged database is kept aside and recovered.

    Look at `problem` and `notes` of what comes back. Raises StoreError if it is another program's database, or
    cannot be opened at all.
    """
    from edgechat.store import recovery

    path = path or paths.history_file()
    try:
        store = SqliteStore(Database(path))
    except DamagedDatabaseError:
        store = recovery.recover(path)
    recovery.recover_copies(store)
    return store


def ephemeral_store() -> SqliteStore:
    """A store that is in memory alone: nothing of it is ever on a disk."""
    return SqliteStore(Database(None))
