"""State machine test: random operations on the store match a `MessageTree` in memory, also after reopening."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.tree import MessageTree
from edgechat.errors import StoreError
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


class StoreMachine(RuleBasedStateMachine):
    """Runs the operations of a user in random order."""

    conversations: Bundle[str] = Bundle("conversations")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = SqliteStore(Database(self.directory / "history.db"))
        self.trees: dict[str, MessageTree] = {}
        self.conversations_by_id: dict[str, Conversation] = {}
        self.hidden: dict[str, tuple[str, list[Message], int, str | None, str | None]] = {}
        self.clock_ms = 1_700_000_000_000

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def a_message(self, conversation: str, draw: st.DataObject) -> str | None:
        messages = list(self.trees[conversation]._messages)
        return draw.draw(st.sampled_from(messages)) if messages else None

    @rule(target=conversations, title=TEXTS)
    def start(self, title: str) -> str:
        conversation = Conversation(id=new_id(), title=title, created_at_ms=self.clock_ms)
        self.conversations_by_id[conversation.id] = conversation
        self.trees[conversation.id] = MessageTree()
        return conversation.id

    @rule(conversation=conversations, texts=st.lists(TEXTS, min_size=1, max_size=3), draw=st.data())
    def append_messages(self, conversation: str, texts: list[str], draw: st.DataObject) -> None:
        if conversation not in self.conversations_by_id:
            return
        tree = self.trees[conversation]
        parent = draw.draw(st.sampled_from([None, tree.head_id, self.a_message(conversation, draw)]))
        messages = []
        for text in texts:
            message = Message(id=new_id(), parent_id=parent, role="user", text=text, created_at_ms=self.clock_ms)
            messages.append(message)
            parent = message.id
        self.store.append(self.conversations_by_id[conversation], messages)
        for message in messages:
            tree.add(message)

    @rule(delta_ms=st.integers(-100_000, 100_000))
    def change_clock(self, delta_ms: int) -> None:
        self.clock_ms += delta_ms

    @rule(conversation=conversations, draw=st.data(), end=st.booleans())
    def select_or_end_path(self, conversation: str, draw: st.DataObject, *, end: bool) -> None:
        message_id = self.a_message(conversation, draw) if conversation in self.conversations_by_id else None
        if message_id is None:
            return
        tree = self.trees[conversation]
        path = [m.id for m in tree.path_to(message_id)]
        (self.store.set_head if end else self.store.select_branch)(path)
        (tree.set_head if end else tree.select_branch)(message_id)

    @rule(conversation=conversations, draw=st.data(), text=TEXTS)
    def rewrite_message(self, conversation: str, draw: st.DataObject, text: str) -> None:
        message_id = self.a_message(conversation, draw) if conversation in self.conversations_by_id else None
        if message_id is None:
            return
        self.store.claim(message_id)
        reason = draw.draw(st.sampled_from(["stop", "cancelled", "length"]))
        message = msgspec.structs.replace(self.trees[conversation][message_id], text=text)
        assert self.store.checkpoint(msgspec.structs.replace(message, finish_reason="streaming"))
        message = msgspec.structs.replace(message, finish_reason=reason)
        assert self.store.checkpoint(message)
        self.trees[conversation].replace(message)

    @rule(conversation=conversations, draw=st.data())
    def delete_and_maybe_undo(self, conversation: str, draw: st.DataObject) -> None:
        message_id = self.a_message(conversation, draw) if conversation in self.conversations_by_id else None
        if message_id is None:
            return
        self.store.delete_message(message_id)
        tree = self.trees[conversation]
        ids = list(tree._messages)
        removed = tree.remove(message_id)
        if draw.draw(st.booleans()):
            self.store.restore_message(message_id)
            # The message is restored at its position, but the active path does not return to it.
            by_id = {m.id: m for m in [*tree._messages.values(), *removed]}
            self.trees[conversation] = MessageTree([by_id[i] for i in ids], tree.head_id)

    @rule(conversation=conversations, draw=st.data())
    def retract_last_message(self, conversation: str, draw: st.DataObject) -> None:
        tree = self.trees.get(conversation)
        if tree is None or tree.head_id is None or len(list(tree.subtree(tree.head_id))) > 1 or len(tree) == 1:
            return
        if self.has_hidden_messages(conversation):
            return
        self.store.discard_messages([tree.head_id])
        tree.remove(tree.head_id)

    def has_hidden_messages(self, conversation: str) -> bool:
        with self.store.database.read_connection() as db:
            count = db.execute(
                "SELECT count(*) FROM messages m JOIN conversations c ON c.key = m.conversation_key "
                "WHERE c.id = ? AND hidden_by IS NOT NULL",
                (conversation,),
            ).fetchone()[0]
        return bool(count)

    @rule(conversation=conversations, title=TEXTS, pinned=st.booleans(), tags=st.lists(TEXTS, max_size=2))
    def rename(self, conversation: str, title: str, tags: list[str], *, pinned: bool) -> None:
        if conversation not in self.conversations_by_id:
            return
        changed = msgspec.structs.replace(
            self.conversations_by_id[conversation], title=title, pinned=pinned, tags=tuple(tags)
        )
        if self.is_stored(conversation):
            self.store.update_conversation(conversation, title=title, pinned=pinned, tags=tuple(tags))
        else:
            with pytest.raises(StoreError):
                self.store.update_conversation(conversation, title=title, pinned=pinned, tags=tuple(tags))
        self.conversations_by_id[conversation] = changed

    @rule(conversation=conversations)
    def delete(self, conversation: str) -> None:
        if conversation not in self.conversations_by_id:
            return
        if self.is_stored(conversation):
            self.store.delete_conversation(conversation)
        del self.conversations_by_id[conversation], self.trees[conversation]

    def is_stored(self, conversation: str) -> bool:
        return conversation in self.store.conversation_ids()

    @precondition(lambda self: self.conversations_by_id)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = SqliteStore(Database(self.directory / "history.db"))

    @invariant()
    def store_matches_trees(self) -> None:
        stored_ids = set(self.store.conversation_ids())
        assert stored_ids <= set(self.conversations_by_id)
        for conversation, tree in self.trees.items():
            if conversation not in stored_ids:
                assert len(tree) == 0
                continue
            stored_conversation = self.store.conversation(conversation)
            expected = self.conversations_by_id[conversation]
            assert (stored_conversation.title, stored_conversation.pinned) == (expected.title, expected.pinned)
            assert stored_conversation.tags == expected.tags
            assert stored_conversation.head_id == tree.head_id
            messages = self.store.messages(conversation)
            assert {m.id: m for m in messages} == tree._messages
            seen_ids: set[str | None] = {None}
            for message in messages:
                assert message.parent_id in seen_ids  # parents first
                seen_ids.add(message.id)
            reloaded = MessageTree(messages, stored_conversation.head_id)
            assert reloaded._children == tree._children  # alternatives in their order of creation

    @invariant()
    def database_is_intact(self) -> None:
        with self.store.database.read_connection() as db:
            assert [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            for table in ("message_search", "title_search"):
                check_index(db, table)


def check_index(db: sqlite3.Connection, table: str) -> None:
    """Raise sqlite3.DatabaseError if a search index does not match its table."""
    db.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")


StoreMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStore = pytest.mark.slow(StoreMachine.TestCase)
