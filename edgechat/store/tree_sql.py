"""The tree as rows: keys, parents, active children. Functions work within a transaction of the caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.errors import NotFoundError, StoreError
from edgechat.store import row_mapping

_KEY_BITS: Final = 20
_MESSAGE = (
    "SELECT key, id, conversation_key, parent_key, active_child_key FROM messages WHERE id = ? AND hidden_by IS NULL"
)


def ensure_conversation(db: sqlite3.Connection, conversation: Conversation) -> int:
    """The key of a conversation, which is added if it is not here."""
    row = db.execute("SELECT key FROM conversations WHERE id = ?", (conversation.id,)).fetchone()
    if row is not None:
        return int(row["key"])
    c = conversation
    key = _free_key(db, "conversations", c.created_at_ms << _KEY_BITS)
    db.execute(
        "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (key, c.id, c.title, c.model, row_mapping.encode_json(c.settings), c.pinned, c.archived, row_mapping.encode_json(c.tags), c.folder,
         c.created_at_ms, c.updated_at_ms or c.created_at_ms),
    )  # fmt: skip
    return key


def insert_message(db: sqlite3.Connection, owner: int, message: Message, writer: str) -> int:
    """Add a message, after its parent and its siblings; returns its key."""
    parent_key: int | None = None
    if message.parent_id is not None:
        parent = message_row(db, message.parent_id)
        parent_key = parent["key"]
        if parent["conversation_key"] != owner:
            raise StoreError(f"message {message.parent_id} belongs to another conversation")
    newest = db.execute(
        "SELECT max(key) FROM messages WHERE conversation_key = ? AND parent_key IS ?", (owner, parent_key)
    ).fetchone()[0]
    after = max(parent_key or 0, newest or 0)
    key = _free_key(db, "messages", max(message.created_at_ms << _KEY_BITS, after + 1))
    columns = {
        "key": key, "id": message.id, "conversation_key": owner, "parent_key": parent_key, "role": message.role,
        "created_at_ms": message.created_at_ms, "model": message.model, "writer": writer,
    } | row_mapping.mutable_columns(message)  # fmt: skip
    try:
        db.execute(
            f"INSERT INTO messages ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            tuple(columns.values()),
        )
        _insert_attachments(db, key, message)
        db.execute("UPDATE messages SET active_child_key = ? WHERE key = ?", (key, parent_key))
    except sqlite3.IntegrityError as error:
        raise StoreError(f"message {message.id} cannot be kept: {error}") from error
    return key


def _free_key(db: sqlite3.Connection, table: str, wanted: int) -> int:
    """The first key from `wanted` on that nobody has, as long as the millisecond's keys last."""
    end = ((wanted >> _KEY_BITS) + 1) << _KEY_BITS
    taken = db.execute(f"SELECT max(key) FROM {table} WHERE key >= ? AND key < ?", (wanted, end)).fetchone()[0]
    if taken is None:
        return wanted
    return int(taken) + 1 if taken + 1 < end else _free_key(db, table, end)


def add_attachments(db: sqlite3.Connection, owner: int, message: Message) -> None:
    """Give a message that is here the attachments that it came without."""
    row = db.execute(
        "SELECT key FROM messages WHERE id = ? AND conversation_key = ? AND NOT EXISTS "
        "(SELECT 1 FROM message_attachments WHERE message_key = messages.key)",
        (message.id, owner),
    ).fetchone()
    if row is not None:
        _insert_attachments(db, row["key"], message)


def _insert_attachments(db: sqlite3.Connection, key: int, message: Message) -> None:
    for position, file in enumerate(message.attachments):
        db.execute(
            "INSERT INTO message_attachments VALUES (?, ?, ?, ?, ?)",
            (key, position, file.sha256, file.name, file.media_type),
        )


def is_ancestor(db: sqlite3.Connection, upper: int | None, lower: int) -> bool:
    """True if the message `upper` is on the path to `lower`, or is it."""
    at: int | None = lower
    while at is not None and at != upper:
        row = db.execute("SELECT parent_key FROM messages WHERE key = ?", (at,)).fetchone()
        at = row["parent_key"] if row is not None else None
    return at is not None


def active_leaf(db: sqlite3.Connection, key: int) -> int:
    """Where the conversation was last below a message."""
    while True:
        row = db.execute("SELECT active_child_key FROM messages WHERE key = ?", (key,)).fetchone()
        if row["active_child_key"] is None:
            return key
        key = row["active_child_key"]


def set_head(db: sqlite3.Connection, key: int) -> None:
    """Go on from this message in its conversation."""
    db.execute(
        "UPDATE conversations SET head_key = ? WHERE key = (SELECT conversation_key FROM messages WHERE key = ?)",
        (key, key),
    )


def redirect_active_path(db: sqlite3.Connection, gone: sqlite3.Row) -> None:
    """Lead what led to a message that is gone to its newest sibling, or to its parent."""
    parent, owner = gone["parent_key"], gone["conversation_key"]
    newest = db.execute(
        "SELECT max(key) FROM messages WHERE conversation_key = ? AND parent_key IS ? AND hidden_by IS NULL",
        (owner, parent),
    ).fetchone()[0]
    db.execute(
        "UPDATE messages SET active_child_key = ? WHERE key = ? AND active_child_key = ?", (newest, parent, gone["key"])
    )
    db.execute(
        "UPDATE conversations SET head_key = ? WHERE key = ? AND head_key NOT IN "
        "(SELECT key FROM messages WHERE conversation_key = ? AND hidden_by IS NULL)",
        (parent if newest is None else active_leaf(db, newest), owner, owner),
    )


def reparented(db: sqlite3.Connection, owner: int, message: Message) -> Message:
    """The message; without its parent, if that is deleted here or belongs to another conversation."""
    parent = db.execute(_MESSAGE, (message.parent_id,)).fetchone()
    if parent is not None and parent["conversation_key"] == owner:
        return message
    return msgspec.structs.replace(message, parent_id=None)


def missing_ids(db: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Those of the ids that no message has, deleted ones included."""
    return {i for i in ids if db.execute("SELECT 1 FROM messages WHERE id = ?", (i,)).fetchone() is None}


def message_row(db: sqlite3.Connection, message_id: str) -> sqlite3.Row:
    """A message's place in the tree. Raises StoreError if it is gone."""
    row: sqlite3.Row | None = db.execute(_MESSAGE, (message_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"message {message_id} is gone: another edgechat deleted it")
    return row


def conversation_row(db: sqlite3.Connection, conversation_id: str) -> sqlite3.Row:
    """Raises StoreError if there is none."""
    row: sqlite3.Row | None = db.execute("SELECT * FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"there is no conversation {conversation_id}: another edgechat may have deleted it")
    return row
