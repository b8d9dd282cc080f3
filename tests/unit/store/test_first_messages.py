"""Search for first messages with all of several words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.store import FirstMessage
from edgechat.store import open_ephemeral_store
from edgechat.store.sqlite import SqliteStore


@pytest.fixture
def store() -> SqliteStore:
    return open_ephemeral_store()


def save(store: SqliteStore, *texts: str, role: str = "user") -> Conversation:
    """Save a conversation of messages below each other; the first one has `role`."""
    conversation = Conversation(id=new_id(), created_at_ms=1)
    parent_id = None
    for number, text in enumerate(texts):
        message = Message(
            id=new_id(), parent_id=parent_id, role="user" if number else role, text=text, created_at_ms=1  # type: ignore[arg-type]
        )  # fmt: skip
        store.append(conversation, [message])
        parent_id = message.id
    return conversation


def find(store: SqliteStore, *words: str, limit: int = 9, max_chars: int = 100) -> list[str]:
    return [first.text for first in store.find_first_messages(words, limit=limit, max_chars=max_chars)]


def test_only_first_messages_with_all_words_are_found_newest_first(store: SqliteStore) -> None:
    conversation = save(store, "red apples", "red apples below")
    save(store, "APPLES that are red")
    save(store, "red pears")
    save(store, "red apples of a model", role="assistant")
    assert find(store, "red", "apple") == ["APPLES that are red", "red apples"]
    assert find(store, "red", "apple", limit=1) == ["APPLES that are red"]
    [*_, first] = store.find_first_messages(["red", "apple"], limit=9, max_chars=100)
    message = store.messages(conversation.id)[0]
    assert first == FirstMessage(conversation_id=conversation.id, message_id=message.id, text="red apples")


def test_long_and_hidden_messages_are_left_out(store: SqliteStore) -> None:
    save(store, f"red apples {'x' * 90}")
    conversation = save(store, "red apples")
    assert find(store, "red", max_chars=50) == ["red apples"]
    store.delete_message(store.messages(conversation.id)[0].id)
    assert find(store, "red", max_chars=50) == []


@pytest.mark.parametrize("words", [(), ('a" OR "red',), ("NOT", "red"), ("red*",), ("a\0b",)])
def test_words_are_no_operators(store: SqliteStore, words: Sequence[str]) -> None:
    save(store, "red apples")
    assert find(store, *words) == []
