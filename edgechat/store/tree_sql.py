"""SQL statements for message trees: keys, parents, active paths and heads. The caller opens the transaction."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.errors import NotFoundError, StoreError
from edgechat.store import row_mapping
from edgechat.store.row_repair import repair_value

_KEY_BITS: Final = 20
_MESSAGE_SQL: Final = (
    "SELECT key, id, conversation_key, parent_key, active_child_key FROM messages WHERE id = ? AND hidden_by IS NULL"
)
_SUBTREE_SQL: Final = (
    "WITH RECURSIVE subtree (key) AS (VALUES (?) UNION "  # UNION ends at a cycle of damaged parent keys
    "SELECT m.key FROM messages m JOIN subtree ON m.parent_key = subtree.key) SELECT key FROM subtree"
)


def load_message_row(db: sqlite3.Connection, message_id: str) -> sqlite3.Row:
    """Return the ID and the keys of a message. Raises NotFoundError if the message does not exist or is deleted."""
    row: sqlite3.Row | None = db.execute(_MESSAGE_SQL, (message_id,)).fetchone()
    if row is None:
        # The index does not find a damaged ID, and a reader of the row replaces an invalid ID by the key.
        statement = _MESSAGE_SQL.replace("WHERE id = ?", "NOT INDEXED WHERE (id = ? OR printf('%016x', key) = ?)")
        row = db.execute(statement, (message_id, message_id)).fetchone()
    if row is None:
        raise NotFoundError(f"Message {message_id} does not exist. Another edgechat process may have deleted it.")
    return row


def load_conversation_row(db: sqlite3.Connection, conversation_id: str) -> sqlite3.Row:
    """Return the row of a conversation. Raises NotFoundError if it does not exist."""
    row: sqlite3.Row | None = db.execute("SELECT * FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if row is None:  # the ID may be damaged, as in `load_message_row`
        rows = db.execute("SELECT * FROM conversations NOT INDEXED")
        row = next((r for r in rows if repair_value("conversations", "id", r["id"], r["key"]) == conversation_id), None)
    if row is None:
        raise NotFoundError(
            f"Conversation {conversation_id} does not exist. Another edgechat process may have deleted it."
        )
    return row


def load_conversation_ids(db: sqlite3.Connection) -> list[str]:
    """Return the IDs of all conversations, oldest first."""
    rows = db.execute("SELECT key, id FROM conversations NOT INDEXED ORDER BY key")
    return [repair_value("conversations", "id", row["id"], row["key"]) for row in rows]


def load_conversation(db: sqlite3.Connection, row: sqlite3.Row, on_damage: row_mapping.OnDamage) -> Conversation:
    """Convert a row of `conversations` to a `Conversation`; its head ID is None if the head was deleted.

    If the key of the head is damaged, the newest message becomes the head.
    """
    statement = "SELECT key, id, hidden_by FROM messages WHERE conversation_key = ? "
    head = db.execute(statement + "AND key = ?", (row["key"], row["head_key"])).fetchone()
    if head is None and row["head_key"] is not None:
        on_damage()
        head = db.execute(statement + "ORDER BY key DESC", (row["key"],)).fetchone()
    has_head = head is not None and head["hidden_by"] is None
    head_id = repair_value("messages", "id", head["id"], head["key"]) if has_head else None
    return row_mapping.to_conversation(row, head_id, on_damage)


def missing_ids(db: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Return the message IDs in `ids` that are not in the database, neither as visible nor as hidden messages."""
    return {i for i in ids if db.execute("SELECT 1 FROM messages WHERE id = ?", (i,)).fetchone() is None}


def update_row(
    db: sqlite3.Connection, table: str, columns: Mapping[str, Any], where: str, *values: object
) -> int:  # fmt: skip
    """Set `columns` in the rows that match the SQL condition `where`; return the number of changed rows.

    `values` are the parameters of the condition.
    """
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return db.execute(f"UPDATE {table} SET {assignments} WHERE {where}", (*columns.values(), *values)).rowcount


# Insertion


def ensure_conversation(db: sqlite3.Connection, conversation: Conversation) -> int:
    """Return the key of a conversation; insert the conversation if it is not in the database."""
    row = db.execute("SELECT key FROM conversations WHERE id = ?", (conversation.id,)).fetchone()
    if row is not None:
        return int(row["key"])
    key = find_free_key(db, "conversations", conversation.created_at_ms)
    db.execute(
        "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (key, conversation.id, conversation.title, conversation.model, row_mapping.encode_json(conversation.settings),
         conversation.pinned, conversation.archived, row_mapping.encode_json(conversation.tags), conversation.folder,
         conversation.created_at_ms, conversation.updated_at_ms or conversation.created_at_ms),
    )  # fmt: skip
    return key


def insert_message(db: sqlite3.Connection, conversation_key: int, message: Message, writer: str) -> int:
    """Insert a message as the newest and active child of its parent; return the key of the message.

    `writer` identifies the process that may update the message. Raises NotFoundError if the parent does not exist, and
    StoreError if the parent belongs to another conversation or if the message ID is already in the database.
    """
    parent_key: int | None = None
    if message.parent_id is not None:
        parent = load_message_row(db, message.parent_id)
        parent_key = parent["key"]
        if parent["conversation_key"] != conversation_key:
            raise StoreError(f"Message {message.parent_id} belongs to another conversation.")
    newest_sibling_key = _find_newest_child(db, conversation_key, parent_key)
    previous_key = max(parent_key or 0, newest_sibling_key or 0)
    key = find_free_key(db, "messages", message.created_at_ms, previous_key + 1)
    columns = {
        "key": key, "id": message.id, "conversation_key": conversation_key, "parent_key": parent_key,
        "role": message.role, "created_at_ms": message.created_at_ms, "model": message.model, "writer": writer,
    } | row_mapping.mutable_columns(message)  # fmt: skip
    try:
        db.execute(
            f"INSERT INTO messages ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            tuple(columns.values()),
        )
        _insert_attachments(db, key, message)
        db.execute("UPDATE messages SET active_child_key = ? WHERE key = ?", (key, parent_key))
    except sqlite3.IntegrityError as error:
        raise StoreError(f"Cannot save message {message.id}: {error}.") from error
    return key


def _find_newest_child(
    db: sqlite3.Connection, conversation_key: int, parent_key: int | None, condition: str = ""
) -> int | None:
    """Return the largest key of the children of a message, or of the roots of a conversation; None if there are none.

    `condition` is an additional SQL condition.
    """
    # Each statement reads an index from its end, so that n imported siblings or conversations take n steps, not n^2.
    index = "messages_of" if parent_key is None else "messages_below"
    row = db.execute(
        f"SELECT key FROM messages INDEXED BY {index} WHERE conversation_key = ? AND parent_key IS ? {condition} "
        "ORDER BY key DESC LIMIT 1",
        (conversation_key, parent_key),
    ).fetchone()
    return row["key"] if row is not None else None


def find_free_key(db: sqlite3.Connection, table: str, created_at_ms: int, min_key: int = 1) -> int:
    """Return an unused key of at least `min_key`, for the same millisecond if possible, otherwise for a later one."""
    key = max(created_at_ms << _KEY_BITS, min_key)
    while True:
        end_key = ((key >> _KEY_BITS) + 1) << _KEY_BITS
        last_key = db.execute(f"SELECT max(key) FROM {table} WHERE key >= ? AND key < ?", (key, end_key)).fetchone()[0]
        if last_key is None:
            return key
        if last_key + 1 < end_key:
            return int(last_key) + 1
        key = end_key


def add_files(db: sqlite3.Connection, files: Mapping[str, bytes]) -> None:
    """Insert attachment bytes, unless they are already in the database; `files` maps SHA-256 hashes to bytes."""
    for sha256, data in files.items():
        db.execute("INSERT OR IGNORE INTO attachments VALUES (?, ?)", (sha256, data))


def add_attachments(db: sqlite3.Connection, conversation_key: int, message: Message) -> None:
    """Add the attachments of `message` to the stored message with the same ID, unless that message has attachments."""
    row = db.execute(
        "SELECT key FROM messages WHERE id = ? AND conversation_key = ? AND NOT EXISTS "
        "(SELECT 1 FROM message_attachments WHERE message_key = messages.key)",
        (message.id, conversation_key),
    ).fetchone()
    if row is not None:
        _insert_attachments(db, row["key"], message)


def _insert_attachments(db: sqlite3.Connection, key: int, message: Message) -> None:
    for position, file in enumerate(message.attachments):
        db.execute(
            "INSERT INTO message_attachments VALUES (?, ?, ?, ?, ?)",
            (key, position, file.sha256, file.name, file.media_type),
        )


def with_valid_parent(db: sqlite3.Connection, conversation_key: int, message: Message) -> Message:
    """Return the message; set its parent to None if the parent is deleted or belongs to another conversation."""
    parent = db.execute(_MESSAGE_SQL, (message.parent_id,)).fetchone()
    if parent is not None and parent["conversation_key"] == conversation_key:
        return message
    return msgspec.structs.replace(message, parent_id=None)


# Active path


def is_ancestor(db: sqlite3.Connection, ancestor_key: int | None, message_key: int) -> bool:
    """Return whether `ancestor_key` is the key of the message `message_key` or of an ancestor of this message."""
    key: int | None = message_key
    while key is not None and key != ancestor_key:
        row = db.execute("SELECT parent_key FROM messages WHERE key = ? AND parent_key < key", (key,)).fetchone()
        key = row["parent_key"] if row is not None else None
    return key is not None


def find_active_leaf(db: sqlite3.Connection, key: int) -> int:
    """Follow the active children of a message to a leaf, and return the key of the leaf."""
    while True:
        child = db.execute(
            "SELECT c.key FROM messages m JOIN messages c ON c.key = m.active_child_key "
            "WHERE m.key = ? AND c.parent_key = m.key AND c.key > m.key",
            (key,),
        ).fetchone()
        if child is None:
            return key
        key = child["key"]


def set_active_path(db: sqlite3.Connection, path: Sequence[str]) -> None:
    """Make each message of `path` (IDs, root first) the active child of its parent."""
    for parent_id, child_id in itertools.pairwise(path):
        child_key = load_message_row(db, child_id)["key"]
        db.execute("UPDATE messages SET active_child_key = ? WHERE id = ?", (child_key, parent_id))


def set_head(db: sqlite3.Connection, key: int) -> None:
    """Make a message the head of its conversation, that is, the last message of the active path."""
    db.execute(
        "UPDATE conversations SET head_key = ? WHERE key = (SELECT conversation_key FROM messages WHERE key = ?)",
        (key, key),
    )


def redirect_active_path(db: sqlite3.Connection, removed_row: sqlite3.Row) -> None:
    """Move the active path and the head from a removed message to its newest sibling.

    If the message has no sibling, the path ends at the parent.
    """
    parent_key, conversation_key = removed_row["parent_key"], removed_row["conversation_key"]
    newest_sibling_key = _find_newest_child(db, conversation_key, parent_key, "AND hidden_by IS NULL")
    db.execute(
        "UPDATE messages SET active_child_key = ? WHERE key = ? AND active_child_key = ?",
        (newest_sibling_key, parent_key, removed_row["key"]),
    )
    db.execute(
        "UPDATE conversations SET head_key = ? WHERE key = ? AND head_key NOT IN "
        "(SELECT key FROM messages WHERE conversation_key = ? AND hidden_by IS NULL)",
        (
            parent_key if newest_sibling_key is None else find_active_leaf(db, newest_sibling_key),
            conversation_key,
            conversation_key,
        ),
    )


# Deletion with undo


def hide_subtree(db: sqlite3.Connection, key: int, hidden_at_ms: int) -> None:
    """Hide a message and its descendants, so that `unhide_subtree` can restore them."""
    db.execute(
        f"UPDATE messages SET hidden_by = ?, hidden_at_ms = ? WHERE key IN ({_SUBTREE_SQL}) AND hidden_by IS NULL",
        (key, hidden_at_ms, key),
    )


def unhide_subtree(db: sqlite3.Connection, message_id: str) -> None:
    """Restore a message and the descendants that were hidden with it.

    Raises StoreError if the message or its parent no longer exists.
    """
    row = db.execute("SELECT key, parent_key FROM messages WHERE id = ?", (message_id,)).fetchone()
    is_restorable = row is not None and (
        row["parent_key"] is None
        or db.execute("SELECT 1 FROM messages WHERE key = ? AND hidden_by IS NULL", (row["parent_key"],)).fetchone()
    )
    if not is_restorable:
        raise StoreError(f"Cannot restore message {message_id}: the message or its parent no longer exists.")
    db.execute("UPDATE messages SET hidden_by = NULL, hidden_at_ms = NULL WHERE hidden_by = ?", (row["key"],))
