"""Conversion between database rows and the structs of `chat.messages`. Damaged values are replaced."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from edgechat.chat.messages import Attachment, Conversation, Message
from edgechat.engine.generation import GenerationStats
from edgechat.store.row_repair import ID_PATTERN, MAX_TIMESTAMP_MS, repair_row

_stats_decoder = msgspec.json.Decoder(GenerationStats)
OnDamage = Callable[[], None]
"""Callback for a row with damaged values."""


def encode_json(value: object) -> str:
    """Encode a value as JSON text for a database column."""
    return msgspec.json.encode(value).decode()


def to_conversation(row: sqlite3.Row, head_id: str | None, on_damage: OnDamage) -> Conversation:
    """Convert a row of the table `conversations` to a conversation with the head `head_id`."""
    values = _repair("conversations", row, on_damage)
    return Conversation(
        id=values["id"], title=values["title"], model=values["model"],
        settings=msgspec.json.decode(values["settings"]), pinned=bool(values["pinned"]),
        archived=bool(values["archived"]), tags=tuple(msgspec.json.decode(values["tags"])), folder=values["folder"],
        created_at_ms=values["created_at_ms"], updated_at_ms=values["updated_at_ms"], head_id=head_id,
    )  # fmt: skip


def _repair(table: str, row: sqlite3.Row, on_damage: OnDamage) -> dict[str, Any]:
    values, is_changed = repair_row(table, row)
    if is_changed:
        on_damage()
    return values


class _Node(NamedTuple):
    """Position of a message in the tree of its conversation."""

    id: str
    parent_key: int | None


def to_messages(
    rows: Sequence[sqlite3.Row], attachment_rows: Iterable[sqlite3.Row], on_damage: OnDamage
) -> list[Message]:  # fmt: skip
    """Convert all message rows of one conversation, and the rows of their attachments, to messages.

    `rows` are in the order of their keys. Each `parent_id` and `active_child_id` of the messages is valid.
    """
    nodes: dict[int | None, _Node] = {}
    ids: set[str] = set()
    for row in rows:
        message_id = row["id"]
        if not isinstance(message_id, str) or message_id in ids or not ID_PATTERN.fullmatch(message_id):
            message_id = f"{row['key']:016x}"
            on_damage()
        ids.add(message_id)
        # A parent has a smaller key than its children, so a parent that is not in `nodes` yet is damage.
        nodes[row["key"]] = _Node(message_id, row["parent_key"] if row["parent_key"] in nodes else None)
    attachments: dict[int, list[Attachment]] = {}
    for row in attachment_rows:
        values, size_bytes = _repair("message_attachments", row, on_damage), row["size_bytes"]
        attachments.setdefault(values["message_key"], []).append(Attachment(
            sha256=values["sha256"], name=values["name"], media_type=values["media_type"], size_bytes=size_bytes or 0
        ))  # fmt: skip
    return [_to_message(row, nodes, tuple(attachments.get(row["key"], ())), on_damage) for row in rows]


def _to_message(
    row: sqlite3.Row, nodes: Mapping[int | None, _Node], attachments: tuple[Attachment, ...], on_damage: OnDamage
) -> Message:  # fmt: skip
    try:
        return _build_message(row, nodes, attachments)
    except (msgspec.MsgspecError, TypeError):
        return _build_message(_repair("messages", row, on_damage), nodes, attachments)


def _build_message(
    values: sqlite3.Row | Mapping[str, Any], nodes: Mapping[int | None, _Node], attachments: tuple[Attachment, ...]
) -> Message:  # fmt: skip
    """Build a message from its row. Raises ValidationError and TypeError for values that a column cannot have."""
    message_id, parent_key = nodes[values["key"]]
    child = nodes.get(values["active_child_key"])
    fields = {
        "id": message_id, "parent_id": nodes[parent_key].id if parent_key is not None else None,
        "role": values["role"], "text": values["text"], "reasoning": values["reasoning"],
        "created_at_ms": values["created_at_ms"], "model": values["model"], "finish_reason": values["finish_reason"],
        "n_tokens": values["n_tokens"], "context_start_id": values["context_start_id"],
        "active_child_id": child.id if child is not None and child.parent_key == values["key"] else None,
        "attachments": attachments, "stats": _stats_decoder.decode(values["stats"]) if values["stats"] else None,
    }  # fmt: skip
    message = msgspec.convert(fields, Message)
    if not 0 <= message.created_at_ms <= MAX_TIMESTAMP_MS:
        raise msgspec.ValidationError("the time is out of range")
    return message


def mutable_columns(message: Message) -> dict[str, Any]:
    """Return the values of the columns of `messages` that change while a reply is being generated, by column name."""
    return {
        "text": message.text,
        "reasoning": message.reasoning,
        "finish_reason": message.finish_reason,
        "n_tokens": message.n_tokens,
        "stats": encode_json(message.stats) if message.stats is not None else None,
        "context_start_id": message.context_start_id,
    }
