"""Conversion between database rows and the structs of `chat.messages`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgechat.chat.messages import Attachment, Conversation, Message
from edgechat.engine.protocol import GenerationStats

_stats_decoder = msgspec.json.Decoder(GenerationStats)


def encode_json(value: object) -> str:
    """Encode a value as JSON text for a database column."""
    return msgspec.json.encode(value).decode()


def to_conversation(row: sqlite3.Row, head_id: str | None) -> Conversation:
    """Convert a row of the table `conversations` to a conversation with the head `head_id`."""
    return Conversation(
        id=row["id"], title=row["title"], model=row["model"], settings=msgspec.json.decode(row["settings"]),
        pinned=bool(row["pinned"]), archived=bool(row["archived"]), tags=tuple(msgspec.json.decode(row["tags"])),
        folder=row["folder"], created_at_ms=row["created_at_ms"], updated_at_ms=row["updated_at_ms"],
        head_id=head_id,
    )  # fmt: skip


def to_messages(rows: Sequence[sqlite3.Row], attachment_rows: Iterable[sqlite3.Row]) -> list[Message]:
    """Convert all message rows of one conversation, and the rows of their attachments, to messages."""
    ids: dict[int | None, str] = {row["key"]: row["id"] for row in rows}
    attachments: dict[int, list[Attachment]] = {}
    for row in attachment_rows:
        attachments.setdefault(row["message_key"], []).append(Attachment(
            sha256=row["sha256"], name=row["name"], media_type=row["media_type"], size_bytes=row["size_bytes"]
        ))  # fmt: skip
    return [_to_message(row, ids, tuple(attachments.get(row["key"], ()))) for row in rows]


def _to_message(row: sqlite3.Row, ids: Mapping[int | None, str], attachments: tuple[Attachment, ...]) -> Message:
    return Message(
        id=row["id"], parent_id=ids.get(row["parent_key"]), role=row["role"], text=row["text"],
        reasoning=row["reasoning"], attachments=attachments, created_at_ms=row["created_at_ms"], model=row["model"],
        finish_reason=row["finish_reason"], n_tokens=row["n_tokens"],
        stats=_stats_decoder.decode(row["stats"]) if row["stats"] else None,
        context_start_id=row["context_start_id"], active_child_id=ids.get(row["active_child_key"]),
    )  # fmt: skip


def mutable_columns(message: Message) -> dict[str, Any]:
    """Return the values of the columns of `messages` that change while a reply is generated, by column name."""
    return {
        "text": message.text,
        "reasoning": message.reasoning,
        "finish_reason": message.finish_reason,
        "n_tokens": message.n_tokens,
        "stats": encode_json(message.stats) if message.stats is not None else None,
        "context_start_id": message.context_start_id,
    }
