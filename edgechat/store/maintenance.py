"""Maintenance of the database at start: marks interrupted replies, and purges messages deleted more than a day ago."""

from __future__ import annotations

from typing import Final

from edgechat.chat.messages import now_ms
from edgechat.errors import StoreError
from edgechat.store.database import Database

UNDO_MS: Final = 24 * 3600 * 1000
"""Time in which a deleted message can be restored; later, the next start of edgechat removes the message."""

_PURGED_CONVERSATIONS_SQL: Final = """
    SELECT id FROM conversations WHERE key IN
        (SELECT conversation_key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?)
"""
# Purges all descendants: if the clock was set back, a descendant can have a later time than its deleted ancestor.
_PURGE_SQL: Final = """
    WITH RECURSIVE purged (key) AS (
        SELECT key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?
        UNION SELECT m.key FROM messages m JOIN purged ON m.parent_key = purged.key
    ) DELETE FROM messages WHERE key IN (SELECT key FROM purged)
"""


def tidy(database: Database) -> list[str]:
    """Mark unfinished replies as interrupted and purge deleted messages; return the IDs of purged conversations.

    Ignores StoreError, so that conversations can still be read from a full or busy disk.
    """
    try:
        _interrupt_unfinished(database)
        return _purge_deleted(database)
    except StoreError:
        return []


def _interrupt_unfinished(database: Database) -> None:
    # If another process is still generating a reply, its next checkpoint restores the reason "streaming".
    with database.reading() as db:
        has_unfinished = db.execute("SELECT 1 FROM messages WHERE finish_reason = 'streaming' LIMIT 1").fetchone()
    if has_unfinished:
        with database.writing() as db:
            db.execute("UPDATE messages SET finish_reason = 'interrupted' WHERE finish_reason = 'streaming'")


def _purge_deleted(database: Database) -> list[str]:
    deadline_ms = now_ms() - UNDO_MS
    with database.reading() as db:
        has_expired = db.execute(
            "SELECT 1 FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ? LIMIT 1", (deadline_ms,)
        ).fetchone()
    if not has_expired:
        return []
    with database.writing() as db:
        conversation_ids = [row["id"] for row in db.execute(_PURGED_CONVERSATIONS_SQL, (deadline_ms,))]
        db.execute(_PURGE_SQL, (deadline_ms,))
    return conversation_ids
