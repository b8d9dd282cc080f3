"""Purging deleted messages when the store is opened."""

from __future__ import annotations

from pathlib import Path

import pytest  # noqa: TC002  (fixtures are annotated with it)

from edgechat.chat.messages import now_ms
from edgechat.store import maintenance, open_store, sqlite
from tests.unit.store.examples import fill


def test_purge_includes_descendants_that_a_wrong_clock_dates_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    ids = [m.id for m in store.messages(conversation.id)]
    day_ms = 24 * 3600 * 1000
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "now_ms", lambda: now_ms() + 2 * day_ms)
        store.delete_message(ids[2])
    store.delete_message(ids[1])
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "now_ms", lambda: now_ms() + day_ms + 1000)
        store = open_store(path)
    assert [m.id for m in store.messages(conversation.id)] == ids[:1]
    assert store.missing_ids(ids) == set(ids[1:])
    store.close()


def test_purge_notifies_listeners_of_the_conversation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    fill(store, 2)
    store.delete_message(store.messages(conversation.id)[1].id)
    store.close()
    deleted_ids: list[str] = []
    open_store(path, on_deleted=[deleted_ids.append]).close()
    assert deleted_ids == []
    monkeypatch.setattr(maintenance, "now_ms", lambda: now_ms() + maintenance.UNDO_PERIOD_MS + 1000)
    open_store(path, on_deleted=[deleted_ids.append]).close()
    assert deleted_ids == [conversation.id]
