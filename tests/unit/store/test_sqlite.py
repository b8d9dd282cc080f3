"""The store's own operations; `test_sqlite_stateful` covers their combinations."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.errors import NotFoundError
from edgechat.store import open_ephemeral_store, open_store
from tests.unit.store.examples import STATS, fill


def test_delete_notifies_every_listener_after_the_conversation_is_deleted(path: Path) -> None:
    calls: list[tuple[str, str]] = []
    store = open_store(path, on_deleted=[lambda i: calls.append(("a", i)), lambda i: calls.append(("b", i))])
    conversation = fill(store, 2)
    store.delete_conversation(conversation.id)
    assert calls == [("a", conversation.id), ("b", conversation.id)]
    with pytest.raises(NotFoundError):
        store.delete_conversation(conversation.id)
    assert len(calls) == 2
    store.close()


def test_speed_of_a_model_is_that_of_undisturbed_replies() -> None:
    store = open_ephemeral_store()
    conversation = Conversation(id=new_id(), title="A talk", created_at_ms=1)
    parent_id: str | None = None

    def add_reply(tps: float, *, is_disturbed: bool) -> None:
        nonlocal parent_id
        stats = msgspec.structs.replace(STATS, decode_tps=tps, is_disturbed=is_disturbed)
        message = Message(id=new_id(), parent_id=parent_id, role="assistant", model="m.gguf", stats=stats)
        store.append(conversation, [message])
        parent_id = message.id

    assert store.decode_tps("m.gguf") is None
    for tps in (1.0, 1.2, 1.1):
        add_reply(tps, is_disturbed=True)
    assert store.decode_tps("m.gguf") == pytest.approx(1.1)
    for tps in (8.0, 9.0, 10.0):
        add_reply(tps, is_disturbed=False)
        add_reply(1.0, is_disturbed=True)
    assert store.decode_tps("m.gguf") == pytest.approx(9.0)
    store.close()
