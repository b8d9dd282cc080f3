"""Database maintenance at start: marks interrupted replies, and purges messages that were deleted over a day ago."""

from __future__ import annotations

from typing import Final

from edgechat.chat.messages import now_ms
from edgechat.errors import StoreError
from edgechat.store.database import Database

UNDO_PERIOD_MS: Final = 24 * 3600 * 1000
"""Time during which a deleted message can be restored. The first start of edgechat after this time purges it."""

_PURGED_CONVERSATIONS_SQL: Final = """
    SELECT id FROM conversations WHERE key IN
        (SELECT conversation_key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?)
"""
# Also purges the descendants of expired messages, because they may have later times if the clock was set back.
_PURGE_SQL: Final = """
    WITH RECURSIVE purged (key) AS (
        SELECT key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?
        UNION SELECT m.key FROM messages m JOIN purged ON m.parent_key = purged.key
    ) DELETE FROM messages WHERE key IN (SELECT key FROM purged)
"""


def run(database: Database) -> list[str]:
    """Mark unfinished replies as interrupted, and purge messages that were deleted over a day ago.

    Returns the IDs of the conversations with purged messages. Ignores StoreError, so that conversations can be read
    even if the disk is full or another process is writing.
    """
    try:
        _mark_unfinished_as_interrupted(database)
        return _purge_deleted_conversations(database)
    except StoreError:
        return []


def _mark_unfinished_as_interrupted(database: Database) -> None:
    # If another process is still generating a reply, its next checkpoint sets the finish reason to "streaming" again.
    with database.read_connection() as db:
        has_unfinished = db.execute("SELECT 1 FROM messages WHERE finish_reason = 'streaming' LIMIT 1").fetchone()
    if has_unfinished:
        with database.write_transaction() as db:
            db.execute("UPDATE messages SET finish_reason = 'interrupted' WHERE finish_reason = 'streaming'")


def _purge_deleted_conversations(database: Database) -> list[str]:
    cutoff_ms = now_ms() - UNDO_PERIOD_MS
    with database.read_connection() as db:
        has_expired = db.execute(
            "SELECT 1 FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ? LIMIT 1", (cutoff_ms,)
        ).fetchone()
    if not has_expired:
        return []
    with database.write_transaction() as db:
        conversation_ids = [row["id"] for row in db.execute(_PURGED_CONVERSATIONS_SQL, (cutoff_ms,))]
        db.execute(_PURGE_SQL, (cutoff_ms,))
    database.shrink()
    return conversation_ids
