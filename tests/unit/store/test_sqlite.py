"""The store's own operations; `test_sqlite_stateful` covers their combinations."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import NotFoundError
from edgechat.store import open_store
from tests.unit.store.examples import fill


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
