"""Turns of a conversation, with scripted replies instead of a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgechat.bench import scripted_session
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.events import ReplySaveFailed, TurnFinished, TurnInterrupted, TurnStarted, format_notice
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.generation import DrafterState
from edgechat.errors import ContextOverflowError, EngineDiedError, NotFoundError
from edgechat.store import open_ephemeral_store, open_store


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


def test_prompt_is_built_again_if_the_context_cannot_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted_session, "N_CTX", 2048)
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script(["word " * 100]))
    session.open()
    for _ in range(4):
        list(session.send("Hi"))
    generate = session._scripted_engine.generate
    prompts: list[int] = []

    def refuse_long_prompts(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        prompts.append(len(request.tokens or ()))
        if prompts[-1] >= 512:
            yield protocol.ContextGrowthRefused(
                id=request.id, n_ctx=512, refused_n_ctx=1024, needed_bytes=3 << 30, available_bytes=1 << 30
            )
            raise ContextOverflowError("The prompt has more tokens")
        yield protocol.ContextGrowthRefused(
            id=request.id, n_ctx=512, refused_n_ctx=768, needed_bytes=3 << 30, available_bytes=1 << 30
        )
        yield from generate(request)

    monkeypatch.setattr(session._scripted_engine, "generate", refuse_long_prompts)
    seen = list(session.send("More"))
    assert prompts[0] >= 512 > prompts[1]
    notices = [format_notice(event) for event in seen if format_notice(event)]
    assert notices[0].startswith("The context stays at 512 tokens. Growing it to 1,024 tokens needs 3.22 GB")
    assert len(notices) == 2, "a notice is shown twice"
    assert notices[1].startswith("The context is full: the model no longer sees the first")
    finished = seen[-1]
    assert isinstance(finished, TurnFinished)
    path = session.tree.path
    assert finished.reply.context_start_id in {m.id for m in path[1:]}
    assert path[-1].context_start_id == finished.reply.context_start_id
    session.close()


def test_prompt_is_built_again_after_the_engine_died_with_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script(["word"]))
    session.open()
    build, failures = session._turn_runner._build_prompt, [EngineDiedError("The engine died.")]

    def die_once(*args: object) -> object:
        if failures:
            raise failures.pop()
        return build(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(session._turn_runner, "_build_prompt", die_once)
    *_, finished = session.send("Hi")
    assert isinstance(finished, TurnFinished)
    assert finished.reply.text == "word"
    session.close()


def test_failed_drafter_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine reports the state of the drafter after each reply; a restarted engine may have a new failure."""
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script(["word"]))
    session.open()
    generate = session._scripted_engine.generate
    states = [
        DrafterState(is_open=is_open, error="" if is_open else "Memory ran out.")
        for is_open in (True, False, False, True, False)
    ]

    def add_state(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        for event in generate(request):
            is_last = isinstance(event, protocol.RequestFinished)
            yield msgspec.structs.replace(event, drafter=states.pop(0)) if is_last else event

    monkeypatch.setattr(session._scripted_engine, "generate", add_state)
    notices = [[n for n in map(format_notice, session.send("Hi")) if n] for _ in range(5)]
    failure = ["Decoding without the drafter: Memory ran out."]
    assert notices == [[], failure, [], [], failure]
    session.close()


def test_end_tag_alone_separates_reasoning_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted_session, "_TEMPLATE", "{# <think> #}" + scripted_session._TEMPLATE)
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script(["Secret</think>Answer"]))
    session.open()
    *_, finished = session.send("Hi")
    assert isinstance(finished, TurnFinished)
    assert (finished.reply.reasoning, finished.reply.text) == ("Secret", "Answer")
    *_, finished = session.continue_reply()
    assert isinstance(finished, TurnFinished)
    assert finished.reply.text.startswith("Answer")  # the text before a continuation stays
    session.close()


def test_conversation_that_is_deleted_during_a_reply_is_reported_and_can_be_left(home: Path) -> None:
    session = ScriptedSession(open_store(), Settings(), Script(["word " * 40]))
    session.open()
    other = open_store()
    notices = []
    for event in session.send("Hi"):
        if isinstance(event, TurnStarted):
            other.delete_conversation(session.conversation.id)
        if isinstance(event, ReplySaveFailed):
            notices.append(event.reason)
        if isinstance(event, TurnFinished):
            break  # as the front ends do
    assert "Another edgechat process has deleted this conversation" in notices[-1]
    assert "deleted" in session.save_error
    with pytest.raises(NotFoundError):
        list(session.send("Still there?"))
    session.switch_conversation()
    *_, finished = session.send("New")
    assert isinstance(finished, TurnFinished)
    assert session.save_error == ""
    session.close()
    assert len(other.list_conversations()) == 1
    other.close()


def test_reply_that_cannot_be_saved_at_the_end_is_an_error(home: Path) -> None:
    store = open_store()
    session = ScriptedSession(store, Settings(), Script(["word " * 40]))
    session.open()
    for event in session.send("Hi"):
        if isinstance(event, TurnStarted):
            store.database.connection.execute("PRAGMA query_only = ON")
    assert session.save_error
    store.database.connection.execute("PRAGMA query_only = OFF")
    session.close()
    assert session.save_error == ""  # the last attempt succeeded
    store = open_store()
    assert len(store.messages(session.conversation.id)[1].text) == 200
    store.close()


def test_message_that_does_not_fit_is_removed_again(session: ScriptedSession) -> None:
    with pytest.raises(ContextOverflowError):
        list(session.send("word " * 100))
    assert session.tree.path == []
    assert session.store.list_conversations() == []


def test_stop_while_the_prompt_is_built_leaves_an_empty_reply(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(_text: str, _guard: str, *, cancellation: Cancellation, **_options: object) -> list[int]:
        session.stop()
        cancellation.check()
        raise AssertionError("the stop did not reach the tokenisation")

    with monkeypatch.context() as patch:
        patch.setattr(session.model.engine, "tokenize", tokenize)
        *_, last = session.send("Hi")
    assert isinstance(last, TurnInterrupted)
    assert [m.text for m in session.tree.path] == ["Hi", ""]
    assert last.reply.finish_reason == session.store.messages(session.conversation.id)[1].finish_reason == "cancelled"
    *_, last = session.send("Hi")
    assert isinstance(last, TurnFinished)
