"""Merge of an imported conversation into the stored conversation, within the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from edgechat.chat.messages import Conversation, Message
from edgechat.store import tree_sql


def merge(
    db: sqlite3.Connection, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes],
    writer: str,
) -> int:  # fmt: skip
    """Insert the messages of a conversation that are not in the database; return the number of inserted messages.

    Stored messages without attachments get the imported attachments. The head changes only if the conversation is new
    or if the imported head is a descendant of the stored head. `files` maps SHA-256 hashes to attachment bytes;
    `writer` identifies the process that may update the messages.
    """
    is_new = db.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation.id,)).fetchone() is None
    conversation_key = tree_sql.ensure_conversation(db, conversation)
    missing_ids = tree_sql.missing_ids(db, [message.id for message in messages])
    missing_messages = [message for message in messages if message.id in missing_ids]
    hashes = {a.sha256 for message in messages for a in message.attachments} & files.keys()
    tree_sql.add_files(db, {sha256: files[sha256] for sha256 in hashes})
    for message in messages:
        if message.id not in missing_ids:
            tree_sql.add_attachments(db, conversation_key, message)
    keys = {
        message.id: tree_sql.insert_message(
            db, conversation_key, tree_sql.with_valid_parent(db, conversation_key, message), writer
        )
        for message in missing_messages
    }
    for message in missing_messages:
        db.execute(
            "UPDATE messages SET active_child_key = ? WHERE key = ?",
            (keys.get(message.active_child_id or ""), keys[message.id]),
        )
    new_head = keys.get(conversation.head_id or "") or (max(keys.values()) if is_new and keys else None)
    head = db.execute("SELECT head_key FROM conversations WHERE key = ?", (conversation_key,)).fetchone()["head_key"]
    if new_head is not None and (head is None or tree_sql.is_ancestor(db, head, new_head)):
        db.execute(
            "UPDATE conversations SET head_key = ?, updated_at_ms = max(updated_at_ms, ?) WHERE key = ?",
            (new_head, conversation.updated_at_ms, conversation_key),
        )
    for sha256 in hashes:
        db.execute(
            "DELETE FROM attachments WHERE sha256 = ? AND NOT EXISTS "
            "(SELECT 1 FROM message_attachments a WHERE a.sha256 = attachments.sha256)",
            (sha256,),
        )
    return len(missing_messages)
