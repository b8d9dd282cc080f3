"""SQLite implementation of `edgechat.chat.store.Store`."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgechat.chat.messages import Conversation, Message, now_ms
from edgechat.chat.store import ConversationSummary, ConversationTitle, FirstMessage, SearchHit, SearchOrder
from edgechat.errors import NotFoundError, StoreError, UsageError
from edgechat.store import first_messages, maintenance, merging, row_mapping, search, tree_sql
from edgechat.store.database import Database
from edgechat.store.row_repair import repair_value

OnDeleted = Callable[[str], None]
"""Callback that receives the ID of a conversation after the conversation or some of its messages were deleted."""

# Number of recent replies from which `decode_tps` computes the median speed.
_N_TIMED_REPLIES: Final = 5
# Number of recent replies that `decode_tps` searches for replies that no other program slowed down.
_MAX_TIMED_REPLIES: Final = 50
_CONVERSATION_FIELDS: Final = frozenset(("title", "model", "settings", "pinned", "archived", "tags", "folder"))


class SqliteStore:
    """Conversations in a SQLite database. `edgechat.chat.store.Store` documents the methods."""

    def __init__(self, database: Database, on_deleted: Sequence[OnDeleted] = ()) -> None:
        """Mark unfinished replies as interrupted, and purge messages that were deleted over a day ago.

        The store owns `database` and closes it. Each callback in `on_deleted` is called after a deletion.
        """
        self.database = database
        self._on_deleted = tuple(on_deleted)
        self._writer = secrets.token_hex(8)
        if not self.read_only_reason:
            self._notify_deleted(maintenance.run(database))

    @property
    def path(self) -> Path | None:
        """Path of the database file; None for a database in memory."""
        return self.database.path

    @property
    def notices(self) -> list[str]:
        """Messages for the user about a recovery and about damaged values."""
        return self.database.notices

    def take_notices(self) -> list[str]:
        notices = self.notices[:]
        self.notices.clear()
        return notices

    @property
    def is_readable(self) -> bool:
        """False if a database exists, or may exist, but cannot be read; the store is then empty."""
        return self.database.is_readable

    @property
    def is_persistent(self) -> bool:
        """True if the database is a writable file."""
        return self.path is not None and not self.read_only_reason

    @property
    def read_only_reason(self) -> str:
        """The reason why the store is read-only; "" if it is writable."""
        return self.database.read_only_reason

    def _notify_deleted(self, conversation_ids: Sequence[str]) -> None:
        for conversation_id in conversation_ids:
            for on_deleted in self._on_deleted:
                on_deleted(conversation_id)

    def close(self) -> None:
        self.database.close()

    # Messages

    def append(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        with self.database.write_transaction(durable=True) as db:
            conversation_key = tree_sql.ensure_conversation(db, conversation)
            tree_sql.add_files(db, files)
            head = 0
            for message in messages:
                head = tree_sql.insert_message(db, conversation_key, message, self._writer)
            db.execute(
                "UPDATE conversations SET head_key = ?, updated_at_ms = ? WHERE key = ?",
                (head, now_ms(), conversation_key),
            )

    def merge(
        self, conversations: Iterable[tuple[Conversation, Sequence[Message]]],
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> int:  # fmt: skip
        """Add the messages of imported conversations that are not in the store; return the number of added messages.

        The text of stored messages does not change. Each conversation must have parents before children. The bytes of
        each attachment must be in `files` (which maps SHA-256 hashes to bytes) or in the store.
        """
        with self.database.write_transaction() as db:
            return sum(merging.merge(db, c, messages, files, self._writer) for c, messages in conversations)

    def missing_ids(self, ids: Sequence[str]) -> set[str]:
        """Return the message IDs in `ids` that are not in the database.

        Hidden messages, which are deleted but can be restored, are still in the database.
        """
        with self.database.read_connection() as db:
            return tree_sql.missing_ids(db, ids)

    def checkpoint(self, message: Message) -> bool:
        changes = row_mapping.mutable_columns(message)
        with self.database.write_transaction(durable=message.finish_reason != "streaming") as db:
            return tree_sql.update_row(db, "messages", changes, "id = ? AND writer = ? AND hidden_by IS NULL",
                                       message.id, self._writer) == 1  # fmt: skip

    def claim(self, message_id: str) -> None:
        with self.database.write_transaction(durable=True) as db:
            tree_sql.load_message_row(db, message_id)
            db.execute(
                "UPDATE messages SET writer = ?, finish_reason = 'streaming' WHERE id = ?", (self._writer, message_id)
            )

    def discard_messages(self, message_ids: Sequence[str]) -> None:
        with self.database.write_transaction(durable=True) as db:
            for message_id in message_ids:
                row = tree_sql.load_message_row(db, message_id)
                db.execute("DELETE FROM messages WHERE key = ?", (row["key"],))
                tree_sql.redirect_active_path(db, row)
                db.execute(
                    "DELETE FROM conversations WHERE key = ? AND NOT EXISTS "
                    "(SELECT 1 FROM messages WHERE conversation_key = conversations.key)",
                    (row["conversation_key"],),
                )
        self.database.shrink()

    def messages(self, conversation_id: str) -> list[Message]:
        with self.database.read_connection() as db:
            conversation_key = tree_sql.load_conversation_row(db, conversation_id)["key"]
            rows = db.execute(
                "SELECT * FROM messages WHERE conversation_key = ? AND hidden_by IS NULL ORDER BY key",
                (conversation_key,),
            ).fetchall()
            attachment_rows = db.execute(
                """
                SELECT a.*, length(b.data) AS size_bytes FROM messages m
                JOIN message_attachments a ON a.message_key = m.key LEFT JOIN attachments b USING (sha256)
                WHERE m.conversation_key = ? ORDER BY a.message_key, a.position
                """,
                (conversation_key,),
            ).fetchall()
            return row_mapping.to_messages(rows, attachment_rows, self.database.report_damaged_value)

    def read_attachment(self, sha256: str) -> bytes:
        with self.database.read_connection() as db:
            row = db.execute("SELECT data FROM attachments WHERE sha256 = ?", (sha256,)).fetchone()
        if row is None or hashlib.sha256(row["data"]).hexdigest() != sha256:
            self.database.report_damaged_value()
            raise StoreError(
                f"The attachment {sha256[:12]} in the database is {'missing' if row is None else 'damaged'}."
            )
        return bytes(row["data"])

    # Branches

    def select_branch(self, path: Sequence[str]) -> None:
        with self.database.write_transaction() as db:
            tree_sql.set_active_path(db, path)
            tree_sql.set_head(db, tree_sql.find_active_leaf(db, tree_sql.load_message_row(db, path[-1])["key"]))

    def set_head(self, path: Sequence[str]) -> None:
        with self.database.write_transaction() as db:
            tree_sql.set_active_path(db, path)
            tree_sql.set_head(db, tree_sql.load_message_row(db, path[-1])["key"])

    def delete_message(self, message_id: str) -> None:
        with self.database.write_transaction(durable=True) as db:
            row = tree_sql.load_message_row(db, message_id)
            tree_sql.hide_subtree(db, row["key"], now_ms())
            tree_sql.redirect_active_path(db, row)

    def restore_message(self, message_id: str) -> None:
        with self.database.write_transaction(durable=True) as db:
            tree_sql.unhide_subtree(db, message_id)

    # Conversations

    def update_conversation(self, conversation_id: str, **changes: object) -> None:
        if not changes.keys() <= _CONVERSATION_FIELDS:
            raise ValueError(f"fields that cannot be changed: {sorted(changes.keys() - _CONVERSATION_FIELDS)}")
        columns: dict[str, Any] = {
            name: row_mapping.encode_json(value) if name in ("settings", "tags") else value
            for name, value in changes.items()
        }
        with self.database.write_transaction(durable=True) as db:
            if columns and not tree_sql.update_row(db, "conversations", columns, "id = ?", conversation_id):
                raise NotFoundError(
                    f"Conversation {conversation_id} does not exist. Another edgechat process may have deleted it."
                )

    def delete_conversation(self, conversation_id: str) -> None:
        with self.database.write_transaction(durable=True) as db:
            row = tree_sql.load_conversation_row(db, conversation_id)
            db.execute("PRAGMA secure_delete = ON")  # makes SQLite overwrite deleted content with zeros
            db.execute("DELETE FROM messages WHERE conversation_key = ?", (row["key"],))
            db.execute("DELETE FROM conversations WHERE key = ?", (row["key"],))
            search.purge_index(db)
        self.database.truncate_wal()
        self._notify_deleted([conversation_id])

    def conversation(self, conversation_id: str) -> Conversation:
        with self.database.read_connection() as db:
            row = tree_sql.load_conversation_row(db, conversation_id)
            return tree_sql.load_conversation(db, row, self.database.report_damaged_value)

    def conversation_ids(self) -> Sequence[str]:
        """Return the IDs of all conversations, oldest first."""
        with self.database.read_connection() as db:
            return tree_sql.load_conversation_ids(db)

    def resolve_id(self, prefix: str) -> str:
        if not prefix:
            raise UsageError("The conversation ID is empty. Run `edgechat history list`.")
        with self.database.read_connection() as db:
            rows = db.execute(
                "SELECT id FROM conversations WHERE id >= ? AND id < ? ORDER BY id LIMIT 9",
                (prefix, prefix + "\U0010ffff"),
            ).fetchall()
            # The index does not find damaged IDs, so all IDs are compared if it finds nothing.
            ids = [row["id"] for row in rows] or [i for i in tree_sql.load_conversation_ids(db) if i.startswith(prefix)]
        if len(ids) == 1 or prefix in ids:
            return str(ids[0]) if len(ids) == 1 else prefix
        if not ids:
            raise NotFoundError(f"No conversation has the ID {prefix!r}. Run `edgechat history list`.")
        matches = ", ".join(ids[:8])
        raise UsageError(f"{prefix!r} matches several conversations ({matches}). Type more characters of the ID.")

    def latest_id(self) -> str | None:
        with self.database.read_connection() as db:
            row = db.execute(
                "SELECT key, id FROM conversations ORDER BY updated_at_ms DESC, key DESC LIMIT 1"
            ).fetchone()
        return repair_value("conversations", "id", row["id"], row["key"]) if row is not None else None

    def list_conversations(
        self, *, archived: bool | None = False, tag: str = "", folder: str = "", limit: int = 50, offset: int = 0
    ) -> Sequence[ConversationSummary]:
        where, values = _make_filter(archived=archived, tag=tag, folder=folder)
        with self.database.read_connection() as db:
            rows = db.execute(
                f"SELECT * FROM conversations {where} "
                "ORDER BY pinned DESC, updated_at_ms DESC, key DESC LIMIT ? OFFSET ?",
                (*values, limit, offset),
            ).fetchall()
            counts = [
                db.execute(
                    "SELECT count(*) FROM messages WHERE conversation_key = ? AND hidden_by IS NULL", (row["key"],)
                ).fetchone()[0]
                for row in rows
            ]
            return [
                ConversationSummary(
                    conversation=tree_sql.load_conversation(db, row, self.database.report_damaged_value), n_messages=n
                )
                for row, n in zip(rows, counts, strict=True)
            ]

    def list_titles(self, limit: int) -> Sequence[ConversationTitle]:
        with self.database.read_connection() as db:
            rows = db.execute(
                "SELECT key, id, title, updated_at_ms FROM conversations WHERE archived = 0 "
                "ORDER BY pinned DESC, updated_at_ms DESC, key DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            ConversationTitle(**{
                column: repair_value("conversations", column, row[column], row["key"])
                for column in ("id", "title", "updated_at_ms")
            })
            for row in rows
        ]  # fmt: skip

    def count_conversations(self, *, archived: bool | None = False, tag: str = "", folder: str = "") -> int:
        """Return the number of conversations that `list_conversations` returns without a limit."""
        where, values = _make_filter(archived=archived, tag=tag, folder=folder)
        with self.database.read_connection() as db:
            return int(db.execute(f"SELECT count(*) FROM conversations {where}", values).fetchone()[0])

    # Queries over all conversations

    def search(
        self, query: str, *, order: SearchOrder = "newest", limit: int = 20, offset: int = 0
    ) -> Sequence[SearchHit]:
        with self.database.read_connection() as db:
            return search.search(db, query, order=order, limit=limit, offset=offset)

    def find_first_messages(self, words: Sequence[str], *, limit: int, max_chars: int) -> Sequence[FirstMessage]:
        with self.database.read_connection() as db:
            return first_messages.find(db, words, limit=limit, max_chars=max_chars)

    def recent_inputs(self, limit: int) -> Sequence[str]:
        with self.database.read_connection() as db:
            rows = db.execute(
                "SELECT text FROM messages WHERE role = 'user' AND hidden_by IS NULL ORDER BY key DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [*dict.fromkeys(row["text"] for row in rows if isinstance(row["text"], str) and row["text"].strip())]

    def decode_tps(self, model: str) -> float | None:
        with self.database.read_connection() as db:
            rows = db.execute(
                "SELECT json_extract(iif(json_valid(stats), stats, '{}'), '$.decode_tps', '$.is_disturbed') AS speed "
                "FROM messages WHERE model = ? AND stats IS NOT NULL ORDER BY key DESC LIMIT ?",
                (model, _MAX_TIMED_REPLIES),
            ).fetchall()
        speeds: dict[bool, list[float]] = {False: [], True: []}
        for row in rows:
            tps, is_disturbed = json.loads(row["speed"])
            if isinstance(tps, (int, float)) and tps > 0:
                speeds[bool(is_disturbed)].append(tps)
        # The speed of a reply that was generated while other programs ran says little about the machine, so it counts
        # only if there are no other replies.
        timed_speeds = (speeds[False] or speeds[True])[:_N_TIMED_REPLIES]
        return statistics.median(timed_speeds) if timed_speeds else None


def _make_filter(*, archived: bool | None, tag: str, folder: str) -> tuple[str, list[Any]]:
    """Return the WHERE clause for conversations, and its values."""
    conditions: dict[str, Any] = {}
    if archived is not None:
        conditions["archived = ?"] = archived
    if tag:
        conditions["EXISTS (SELECT 1 FROM json_each(iif(json_valid(tags), tags, '[]')) WHERE value = ?)"] = tag
    if folder:
        conditions["folder = ?"] = folder
    return f"WHERE {' AND '.join(conditions)}" if conditions else "", [*conditions.values()]
