"""A chat session for tests; it compares the store with the session after each turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgechat.chat import events
from edgechat.chat.messages import Message
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.store.sqlite import SqliteStore

SHORT_GREEDY = Settings(temperature=0.0, max_tokens=12, n_ctx=2048)


class OpenChat:
    """An open session and the events of its last turn."""

    def __init__(
        self, model: Path, store: SqliteStore, settings: Settings = SHORT_GREEDY, conversation: str = ""
    ) -> None:
        stored = store.conversation(conversation) if conversation else None
        self.session = Session(store, settings, model, stored)
        self.session.open()
        self.events: list[events.SessionEvent] = []

    def run(self, turn: Iterator[events.SessionEvent]) -> Message:
        """Run a turn with one reply to its end, and return the reply."""
        self.events = list(turn)
        last = self.events[-1]
        assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
        text = "".join(e.text for e in self.events if isinstance(e, events.ReplyTextGenerated))
        assert last.reply.text.endswith(text)
        assert last.reply == msgspec.structs.replace(self.session.tree[last.reply.id], active_child_id=None)
        self.check()
        return last.reply

    def run_all(self, turn: Iterator[events.SessionEvent]) -> Message:
        """Run a turn with several replies to its end, and return the first reply."""
        self.events = list(turn)
        last = self.events[-1]
        assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
        for index, reply in enumerate((last.reply, *last.alternatives)):
            generated = [e for e in self.events if isinstance(e, events.ReplyTextGenerated)]
            assert reply.text == "".join(e.text for e in generated if e.reply_index == index)
        self.check()
        return last.reply

    def check(self) -> None:
        """Assert that the store holds the messages of the session."""
        session = self.session
        stored = session.store.messages(session.conversation.id)
        assert {m.id: m for m in stored} == session.tree._messages
        assert session.store.conversation(session.conversation.id).head_id == session.tree.head_id

    def texts(self) -> list[str]:
        return [m.text for m in self.session.tree.path]
