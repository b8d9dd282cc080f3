"""Example conversations, stores and exports for the tests of this folder."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from edgechat.chat.messages import Attachment, Conversation, Message, new_id
from edgechat.engine.generation import GenerationStats
from edgechat.store import open_ephemeral_store
from edgechat.store.formats import edgechat_json
from edgechat.store.sqlite import SqliteStore

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
STATS = GenerationStats(prompt_tokens=3, cached_tokens=1, completion_tokens=2, ttft_s=0.5, prefill_tps=9, decode_tps=8)


def fill(store: SqliteStore, n: int, size: int = 10) -> Conversation:
    """Save a conversation of `n` messages in one line, each with a text of about `size` characters."""
    conversation = Conversation(id=new_id(), title="A talk", created_at_ms=1)
    parent_id = None
    for number in range(n):
        message = Message(id=new_id(), parent_id=parent_id, role="user", text=f"message {number} " + "x" * size)
        store.append(conversation, [message])
        parent_id = message.id
    return conversation


def texts(store: SqliteStore, conversation: Conversation) -> list[str]:
    """Return the texts of a conversation that `fill` saved, without their padding."""
    return [m.text.split(" x")[0] for m in store.messages(conversation.id)]


@st.composite
def stores(draw: st.DrawFn) -> SqliteStore:
    """Draw a store in memory with a few conversations, branches and attachments."""
    store = open_ephemeral_store()
    for number in range(draw(st.integers(1, 3))):
        conversation = Conversation(
            id=new_id(), title=draw(TEXTS), model=draw(TEXTS), settings={"temperature": 0.5},
            pinned=draw(st.booleans()), tags=tuple(draw(st.lists(TEXTS, max_size=2))), folder=draw(TEXTS),
            created_at_ms=1000 + number,
        )  # fmt: skip
        ids: list[str | None] = [None]
        for _ in range(draw(st.integers(1, 6))):
            data = draw(st.binary(max_size=20))
            sha256 = hashlib.sha256(data).hexdigest()
            files = (Attachment(sha256=sha256, name=draw(TEXTS), media_type="text/plain", size_bytes=len(data)),)
            message = Message(
                id=new_id(), parent_id=draw(st.sampled_from(ids)), role=draw(st.sampled_from(["user", "assistant"])),
                text=draw(TEXTS), reasoning=draw(TEXTS), attachments=files if draw(st.booleans()) else (),
                created_at_ms=draw(st.integers(0, 5000)),
                finish_reason=draw(st.sampled_from(["", "stop", "cancelled"])),
                n_tokens=draw(st.none() | st.integers(0, 9)), stats=draw(st.sampled_from([None, STATS])),
            )  # fmt: skip
            store.append(conversation, [message], {sha256: data} if message.attachments else {})
            ids.append(message.id)
    return store


def export_all(store: SqliteStore) -> bytes:
    return msgspec.json.encode(edgechat_json.export(store, store.conversation_ids()))


def archive_json(*messages: dict[str, Any], **conversation: Any) -> bytes:
    """Encode an export of one conversation from JSON fields, which may be inconsistent."""
    record = {"conversation": {"id": "c"} | conversation, "messages": [{"role": "user"} | m for m in messages]}
    return json.dumps({"format": "edgechat", "version": 1, "conversations": [record]}).encode()


def import_new(data: bytes) -> tuple[SqliteStore, edgechat_json.ImportResult]:
    """Import an export into a new store."""
    store = open_ephemeral_store()
    return store, edgechat_json.merge(store, edgechat_json.decode(data), dry_run=False)


def conversation_json(*messages: Message, conversation_id: str = "c", head_id: str | None = None) -> bytes:
    """Encode an export of one conversation."""
    about = Conversation(id=conversation_id, title="T", created_at_ms=1, head_id=head_id)
    return msgspec.json.encode(
        edgechat_json.ExportArchive(
            conversations=[edgechat_json.ConversationRecord(conversation=about, messages=list(messages))]
        )
    )


def import_json(store: SqliteStore, data: bytes) -> edgechat_json.ImportResult:
    return edgechat_json.merge(store, edgechat_json.decode(data), dry_run=False)
