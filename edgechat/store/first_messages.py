"""Search for first messages of conversations, with the search index of all messages."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from edgechat.chat.store import FirstMessage
from edgechat.store.row_repair import repair_value
from edgechat.store.search import MAX_SCANNED_ROWS, MAX_WORDS, make_match_expression


def find(db: sqlite3.Connection, words: Sequence[str], *, limit: int, max_chars: int) -> list[FirstMessage]:
    """Return up to `limit` first messages of at most `max_chars` characters that contain all `words`, newest first.

    Reads the newest `MAX_SCANNED_ROWS` messages with these words. The rows of other messages are read only for their
    parents, because a first message has none.
    """
    if not words:
        return []
    # The inner query reads only the index. Values in damaged columns may have another type, so they are converted.
    rows = db.execute(
        "SELECT m.key, m.id, c.key AS conversation_key, c.id AS conversation_id, CAST(m.text AS TEXT) AS text "
        "FROM (SELECT rowid FROM message_search WHERE message_search MATCH ? ORDER BY rowid DESC LIMIT ?) s "
        "JOIN messages m ON m.key = s.rowid JOIN conversations c ON c.key = m.conversation_key "
        "WHERE m.parent_key IS NULL AND m.role = 'user' AND m.hidden_by IS NULL AND length(m.text) <= ? "
        "ORDER BY m.key DESC LIMIT ?",
        (make_match_expression(words[:MAX_WORDS]), MAX_SCANNED_ROWS, max_chars, limit),
    ).fetchall()
    return [
        FirstMessage(
            conversation_id=repair_value("conversations", "id", row["conversation_id"], row["conversation_key"]),
            message_id=repair_value("messages", "id", row["id"], row["key"]), text=row["text"] or "",
        )
        for row in rows
    ]  # fmt: skip
