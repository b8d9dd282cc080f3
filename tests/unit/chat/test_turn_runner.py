"""Turns of a conversation, with scripted replies instead of a model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgechat.bench import scripted_session
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.events import TurnFinished
from edgechat.config import Settings
from edgechat.errors import ContextOverflowError
from edgechat.store import open_ephemeral_store


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedSession]:
    """Yield a session with a context of 64 tokens whose replies have 125 tokens."""
    monkeypatch.setattr(scripted_session, "N_CTX", 64)
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script(["word " * 100]))
    session.open()
    yield session
    session.close()


def test_continuing_a_reply_that_no_longer_fits_leaves_it_unchanged(session: ScriptedSession) -> None:
    *_, finished = session.send("Hi")
    assert isinstance(finished, TurnFinished)
    with pytest.raises(ContextOverflowError):
        list(session.continue_reply())
    [_, saved] = session.store.messages(session.conversation.id)
    assert saved == session.tree.path[1] == finished.reply
    assert saved.finish_reason == "stop"


def test_message_that_does_not_fit_is_removed_again(session: ScriptedSession) -> None:
    with pytest.raises(ContextOverflowError):
        list(session.send("word " * 100))
    assert session.tree.path == []
    assert session.store.list_conversations() == []
