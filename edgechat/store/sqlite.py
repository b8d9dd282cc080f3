"""`chat.store.Store` on SQLite."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import sqlite3
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgechat.chat import unsent_messages
from edgechat.chat.messages import Conversation, Message, now_ms
from edgechat.chat.store import ConversationSummary, Order, SearchHit
from edgechat.errors import NotFoundError, StoreError
from edgechat.paths import prefix_dir
from edgechat.prefix.disk_tier import delete_conversation
from edgechat.store import row_mapping, search, tree_sql
from edgechat.store.database import Database

# With what is below: a clock that went back can have made that younger.
_PURGED = """
    SELECT id FROM conversations WHERE key IN
        (SELECT conversation_key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?)
"""
_PURGE = """
    WITH RECURSIVE gone (key) AS (
        SELECT key FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ?
        UNION SELECT m.key FROM messages m JOIN gone ON m.parent_key = gone.key
    ) DELETE FROM messages WHERE key IN (SELECT key FROM gone)
"""
# What was deleted can be brought back for a day; then it goes for good, when edgechat starts next.
UNDO_MS: Final = 24 * 3600 * 1000
_TIMED_ANSWERS: Final = 5
_CHANGEABLE: Final = frozenset(("title", "model", "settings", "pinned", "archived", "tags", "folder"))

_BELOW = (
    "WITH RECURSIVE below (key) AS (VALUES (?) UNION ALL "
    "SELECT m.key FROM messages m JOIN below ON m.parent_key = below.key) SELECT key FROM below"
)


class SqliteStore:
    """Conversations in a database. See `edgechat.chat.store.Store` for what each method promises."""

    def __init__(self, database: Database, notices: Sequence[str] = ()) -> None:
        """Takes over `database`, and tidies it: answers that died with their process, deletions past undoing."""
        self.database = database
        self.notices = list(notices)
        self._writer = secrets.token_hex(8)
        if not self.read_only_reason:
            self._tidy()

    @property
    def path(self) -> Path | None:
        """The database's file; None in memory."""
        return self.database.path

    @property
    def is_persistent(self) -> bool:
        """True if there is a file that can be written to."""
        return self.path is not None and not self.read_only_reason

    @property
    def read_only_reason(self) -> str:
        """Why nothing can be written; "" if it can."""
        return self.database.problem

    def _tidy(self) -> None:
        with contextlib.suppress(StoreError):  # a full or busy disk must not keep anybody from reading
            self._finish_stale()
            self._purge()

    def _finish_stale(self) -> None:
        # An answer of another process that still lives becomes its own again with its next checkpoint.
        stale = "FROM messages WHERE finish_reason = 'streaming'"
        with self.database.reading() as db:
            unfinished = db.execute(f"SELECT 1 {stale} LIMIT 1").fetchone()
        if unfinished:
            with self.database.writing() as db:
                db.execute("UPDATE messages SET finish_reason = 'interrupted' WHERE finish_reason = 'streaming'")

    def _purge(self) -> None:
        past = now_ms() - UNDO_MS
        with self.database.reading() as db:
            hidden = db.execute(
                "SELECT 1 FROM messages WHERE hidden_by IS NOT NULL AND hidden_at_ms < ? LIMIT 1", (past,)
            ).fetchone()
        if hidden:
            with self.database.writing() as db:
                gone = [row["id"] for row in db.execute(_PURGED, (past,))]
                db.execute(_PURGE, (past,))
            self._forget_beside(gone)

    def _forget_beside(self, conversation_ids: Sequence[str]) -> None:
        """What models computed of a conversation, and a draft, are as private as itself, and go with it or a part of it."""
        if self.is_persistent:
            for conversation_id in conversation_ids:
                delete_conversation(prefix_dir(), conversation_id)
                unsent_messages.save(conversation_id, "")

    # What a turn writes

    def append(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Add messages below their parents and make them the active path."""
        with self.database.writing(durable=True) as db:
            owner = tree_sql.ensure_conversation(db, conversation)
            for sha256, data in files.items():
                db.execute("INSERT OR IGNORE INTO attachments VALUES (?, ?)", (sha256, data))
            head = 0
            for message in messages:
                head = tree_sql.insert_message(db, owner, message, self._writer)
            db.execute(
                "UPDATE conversations SET head_key = ?, updated_at_ms = ? WHERE key = ?", (head, now_ms(), owner)
            )

    def merge(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> int:
        """Add what is not here yet of a conversation from elsewhere; returns how many messages that were.

        What is here stays as it is. `messages` come parents first; their attachments must be in `files` or here.
        """
        with self.database.writing() as db:
            is_new = db.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation.id,)).fetchone() is None
            owner = tree_sql.ensure_conversation(db, conversation)
            unknown = tree_sql.missing_ids(db, [m.id for m in messages])
            missing = [m for m in messages if m.id in unknown]
            for sha256, data in files.items():
                db.execute("INSERT OR IGNORE INTO attachments VALUES (?, ?)", (sha256, data))
            for message in messages:
                if message.id not in unknown:
                    tree_sql.add_attachments(db, owner, message)
            keys = {
                m.id: tree_sql.insert_message(db, owner, tree_sql.reparented(db, owner, m), self._writer)
                for m in missing
            }
            for message in missing:
                db.execute(
                    "UPDATE messages SET active_child_key = ? WHERE key = ?",
                    (keys.get(message.active_child_id or ""), keys[message.id]),
                )
            head = keys.get(conversation.head_id or "") or (max(keys.values()) if is_new and keys else None)
            here = db.execute("SELECT head_key FROM conversations WHERE key = ?", (owner,)).fetchone()["head_key"]
            if head is not None and (here is None or tree_sql.is_ancestor(db, here, head)):  # it went on elsewhere
                db.execute(
                    "UPDATE conversations SET head_key = ?, updated_at_ms = max(updated_at_ms, ?) WHERE key = ?",
                    (head, conversation.updated_at_ms, owner),
                )
            db.execute(
                "DELETE FROM attachments WHERE NOT EXISTS (SELECT 1 FROM message_attachments a WHERE a.sha256 = "
                "attachments.sha256)"
            )
        return len(missing)

    def missing_ids(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that no message here has, deleted ones included."""
        with self.database.reading() as db:
            return tree_sql.missing_ids(db, ids)

    def conversation_ids(self) -> Sequence[str]:
        """All of them, the oldest first."""
        with self.database.reading() as db:
            return [row["id"] for row in db.execute("SELECT id FROM conversations ORDER BY key")]

    def checkpoint(self, message: Message) -> bool:
        """Write what an answer of ours has become."""
        changes = row_mapping.mutable_columns(message)
        with self.database.writing(durable=message.finish_reason != "streaming") as db:
            return _update(db, "messages", changes, "id = ? AND writer = ? AND hidden_by IS NULL",
                           message.id, self._writer) == 1  # fmt: skip

    def claim(self, message_id: str) -> None:
        """Make an answer ours."""
        with self.database.writing(durable=True) as db:
            tree_sql.message_row(db, message_id)
            db.execute(
                "UPDATE messages SET writer = ?, finish_reason = 'streaming' WHERE id = ?", (self._writer, message_id)
            )

    def discard_messages(self, message_ids: Sequence[str]) -> None:
        """Take messages back for good, children first."""
        with self.database.writing(durable=True) as db:
            for message_id in message_ids:
                row = tree_sql.message_row(db, message_id)
                db.execute("DELETE FROM messages WHERE key = ?", (row["key"],))
                tree_sql.redirect_active_path(db, row)
                db.execute(
                    "DELETE FROM conversations WHERE key = ? AND NOT EXISTS "
                    "(SELECT 1 FROM messages WHERE conversation_key = conversations.key)",
                    (row["conversation_key"],),
                )

    # The shape of the tree

    def select_branch(self, path: Sequence[str]) -> None:
        """Go on from the alternative `path[-1]`."""
        with self.database.writing() as db:
            self._select(db, path)
            tree_sql.set_head(db, tree_sql.active_leaf(db, tree_sql.message_row(db, path[-1])["key"]))

    def set_head(self, path: Sequence[str]) -> None:
        """Make `path[-1]` the head."""
        with self.database.writing() as db:
            self._select(db, path)
            tree_sql.set_head(db, tree_sql.message_row(db, path[-1])["key"])

    def _select(self, db: sqlite3.Connection, path: Sequence[str]) -> None:
        for parent_id, child_id in itertools.pairwise(path):
            child = tree_sql.message_row(db, child_id)["key"]
            db.execute("UPDATE messages SET active_child_key = ? WHERE id = ?", (child, parent_id))

    def delete_message(self, message_id: str) -> None:
        """Delete a message and all below it, for now."""
        with self.database.writing(durable=True) as db:
            row = tree_sql.message_row(db, message_id)
            db.execute(
                f"UPDATE messages SET hidden_by = ?, hidden_at_ms = ? WHERE key IN ({_BELOW}) AND hidden_by IS NULL",
                (row["key"], now_ms(), row["key"]),
            )
            tree_sql.redirect_active_path(db, row)

    def restore_message(self, message_id: str) -> None:
        """Bring back what `hide` of the same message took away."""
        with self.database.writing(durable=True) as db:
            row = db.execute("SELECT key, parent_key FROM messages WHERE id = ?", (message_id,)).fetchone()
            parent = (
                row
                and db.execute(
                    "SELECT 1 FROM messages WHERE key = ? AND hidden_by IS NULL", (row["parent_key"],)
                ).fetchone()
            )
            if row is None or (row["parent_key"] is not None and parent is None):
                raise StoreError(f"message {message_id} cannot be brought back: it, or what it answers, is gone")
            db.execute("UPDATE messages SET hidden_by = NULL, hidden_at_ms = NULL WHERE hidden_by = ?", (row["key"],))

    # Conversations

    def update_conversation(self, conversation_id: str, **changes: object) -> None:
        """Write some of title, model, settings, pinned, archived, tags and folder."""
        if not changes.keys() <= _CHANGEABLE:
            raise ValueError(f"{sorted(changes.keys() - _CHANGEABLE)} cannot be changed")
        columns = {k: row_mapping.encode_json(v) if k in ("settings", "tags") else v for k, v in changes.items()}
        with self.database.writing(durable=True) as db:
            if columns and not _update(db, "conversations", columns, "id = ?", conversation_id):
                raise NotFoundError(f"conversation {conversation_id} is gone: another edgechat deleted it")

    def delete_conversation(self, conversation_id: str) -> None:
        """Remove a conversation for good."""
        with self.database.writing(durable=True) as db:
            row = tree_sql.conversation_row(db, conversation_id)
            db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only unlinked
            db.execute("DELETE FROM messages WHERE conversation_key = ?", (row["key"],))
            db.execute("DELETE FROM conversations WHERE key = ?", (row["key"],))
            search.purge_index(db)
        self.database.truncate_wal()
        self._forget_beside([conversation_id])

    def conversation(self, conversation_id: str) -> Conversation:
        """One conversation."""
        with self.database.reading() as db:
            return self._conversation(db, tree_sql.conversation_row(db, conversation_id))

    def _conversation(self, db: sqlite3.Connection, row: sqlite3.Row) -> Conversation:
        head = db.execute("SELECT id FROM messages WHERE key = ? AND hidden_by IS NULL", (row["head_key"],)).fetchone()
        return row_mapping.conversation(row, head["id"] if head is not None else None)

    def resolve_id(self, prefix: str) -> str:
        """The only conversation whose id starts with `prefix`."""
        with self.database.reading() as db:
            found = db.execute(
                "SELECT id FROM conversations WHERE id >= ? AND id < ? ORDER BY id LIMIT 9",
                (prefix, prefix + "\U0010ffff"),
            ).fetchall()
        if len(found) == 1 or (found and found[0]["id"] == prefix):
            return str(found[0]["id"])
        if not found:
            raise NotFoundError(f"there is no conversation {prefix!r}: `edgechat history list` shows what there is")
        raise StoreError(f"{prefix!r} could be {', '.join(r['id'] for r in found[:8])}: give more of it")

    def latest_id(self) -> str | None:
        """Id of the conversation that was changed last."""
        with self.database.reading() as db:
            row = db.execute("SELECT id FROM conversations ORDER BY updated_at_ms DESC, key DESC LIMIT 1").fetchone()
        return row["id"] if row is not None else None

    def messages(self, conversation_id: str) -> list[Message]:
        """All messages, parents before children."""
        with self.database.reading() as db:
            owner = tree_sql.conversation_row(db, conversation_id)["key"]
            found = db.execute(
                "SELECT * FROM messages WHERE conversation_key = ? AND hidden_by IS NULL ORDER BY key", (owner,)
            ).fetchall()
            attached = db.execute(
                """
                SELECT a.*, length(b.data) AS size_bytes FROM messages m
                JOIN message_attachments a ON a.message_key = m.key JOIN attachments b USING (sha256)
                WHERE m.conversation_key = ? ORDER BY a.message_key, a.position
                """,
                (owner,),
            ).fetchall()
            return row_mapping.messages(found, attached)

    def list_conversations(
        self, *, archived: bool | None = False, tag: str = "", folder: str = "", limit: int = 50, offset: int = 0
    ) -> Sequence[ConversationSummary]:
        """Conversations: pinned first, then the last changed."""
        conditions: dict[str, Any] = {}
        if archived is not None:
            conditions["archived = ?"] = archived
        if tag:
            conditions["EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)"] = tag
        if folder:
            conditions["folder = ?"] = folder
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self.database.reading() as db:
            found = db.execute(
                f"SELECT * FROM conversations {where} ORDER BY pinned DESC, updated_at_ms DESC, key DESC LIMIT ? OFFSET ?",
                (*conditions.values(), limit, offset),
            ).fetchall()
            counts = [
                db.execute(
                    "SELECT count(*) FROM messages WHERE conversation_key = ? AND hidden_by IS NULL", (row["key"],)
                ).fetchone()[0]
                for row in found
            ]
            return [
                ConversationSummary(conversation=self._conversation(db, row), n_messages=n)
                for row, n in zip(found, counts, strict=True)
            ]

    def search(self, query: str, *, order: Order = "newest", limit: int = 20, offset: int = 0) -> Sequence[SearchHit]:
        """Where all words of `query` are."""
        with self.database.reading() as db:
            return search.search(db, query, order=order, limit=limit, offset=offset)

    def recent_inputs(self, limit: int) -> Sequence[str]:
        """What people said last, the newest first, each text once."""
        with self.database.reading() as db:
            found = db.execute(
                "SELECT text FROM messages WHERE role = 'user' AND hidden_by IS NULL ORDER BY key DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [*dict.fromkeys(row["text"] for row in found if row["text"].strip())]

    def read_attachment(self, sha256: str) -> bytes:
        """Bytes by their hash."""
        with self.database.reading() as db:
            row = db.execute("SELECT data FROM attachments WHERE sha256 = ?", (sha256,)).fetchone()
        if row is None or hashlib.sha256(row["data"]).hexdigest() != sha256:
            raise StoreError(f"the attachment {sha256[:12]} is {'missing' if row is None else 'damaged'}")
        return bytes(row["data"])

    def decode_tps(self, model: str) -> float | None:
        """Tokens per second of this model's last answers."""
        with self.database.reading() as db:
            found = db.execute(
                "SELECT json_extract(stats, '$.decode_tps') AS tps FROM messages WHERE model = ? AND stats IS NOT NULL "
                "ORDER BY key DESC LIMIT ?",
                (model, _TIMED_ANSWERS),
            ).fetchall()
        speeds = [row["tps"] for row in found if row["tps"]]
        return statistics.median(speeds) if speeds else None

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def _update(db: sqlite3.Connection, table: str, changes: Mapping[str, Any], where: str, *values: object) -> int:
    columns = ", ".join(f"{name} = ?" for name in changes)
    return db.execute(f"UPDATE {table} SET {columns} WHERE {where}", (*changes.values(), *values)).rowcount
