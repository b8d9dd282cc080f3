"""Conversations with a remote model: the same turns, branches and documents as with a local one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import events
from edgechat.chat.commands import COMMANDS_BY_NAME, load_model
from edgechat.chat.messages import format_performance
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.errors import ContextOverflowError, RemoteError, UsageError
from edgechat.remote.target import RemoteModel
from edgechat.store import open_store
from tests.remote_server import KEY, Answer, Exchange, RemoteServer, reply
from tests.waiting import until

OpenSession = Callable[..., Session]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    server = RemoteServer()
    yield server
    server.close()


@pytest.fixture
def open_session(server: RemoteServer, home: Path) -> Iterator[OpenSession]:
    """Return a function that opens a session with the model `big` of the scripted server."""
    sessions: list[Session] = []

    def open_one(*answers: Answer, model: str = "big", **settings: Any) -> Session:
        server.answers = list(answers) or server.answers
        remotes = {"box": server.settings}
        target = RemoteModel(remote="box", model=model, settings=server.settings)
        sessions.append(Session(open_store(), Settings(remotes=remotes, **settings), target))
        sessions[-1].open()
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


def finish(turn: Iterator[events.SessionEvent]) -> events.TurnFinished:
    *_, last = turn
    assert isinstance(last, events.TurnFinished)
    return last


def test_turn_is_saved_with_text_reasoning_and_usage(open_session: OpenSession, server: RemoteServer) -> None:
    def think(exchange: Exchange) -> None:
        exchange.chunk(reasoning_content="Hm, ")
        exchange.chunk(reasoning="hm.\n")
        exchange.chunk("Four", role="assistant", tool_calls=None)
        exchange.chunk(".", finish="stop")
        exchange.usage(
            12, 9, prompt_tokens_details={"cached_tokens": 8}, completion_tokens_details={"reasoning_tokens": 5}
        )
        exchange.done()

    session = open_session(think, system_prompt="Be brief.", temperature=0.1, max_tokens=50, seed=7)
    assert not server.exchanges, "the server was asked before the first message"
    turn = finish(session.send("2 + 2?"))
    assert (turn.reply.text, turn.reply.reasoning, turn.reply.model) == ("Four.", "Hm, hm.", "box/big")
    assert turn.reply.stats is not None
    assert (turn.reply.n_tokens, turn.reply.stats.prompt_tokens, turn.reply.stats.cached_tokens) == (9, 12, 8)
    assert "8 of 12 prompt tokens cached, box/big" in format_performance(turn.reply)
    [saved_message, saved_reply] = session.store.messages(session.conversation.id)
    assert (saved_message.text, saved_reply) == ("2 + 2?", turn.reply)
    body = server.chats[0].body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stream"]) == (0.1, 50, 7, True)
    assert "top_k" not in body  # not set by the user


def test_branches_send_only_their_own_path(open_session: OpenSession, server: RemoteServer) -> None:
    session = open_session(reply("One."), reply("Two."), reply("Three."), reply("Four."))
    finish(session.send("First"))
    second = finish(session.send("Second"))
    finish(session.edit(second.reply.parent_id or "", "Other"))
    finish(session.regenerate())
    prompts = [[m["content"] for m in chat.body["messages"]] for chat in server.chats]
    assert prompts[1:] == [["First", "One.", "Second"], ["First", "One.", "Other"], ["First", "One.", "Other"]]
    assert len(session.tree.alternatives(session.tree.head_id or "")) == 2


def test_stop_closes_the_connection_and_keeps_the_text(open_session: OpenSession) -> None:
    is_closed = threading.Event()

    def endless(exchange: Exchange) -> None:
        try:
            while True:
                exchange.chunk("word ")
        except OSError:
            is_closed.set()

    session = open_session(endless, reply("and the end."))
    n_texts = 0
    for event in session.send("Go on"):
        if isinstance(event, events.ReplyTextGenerated):
            n_texts += 1
            if n_texts == 2:
                session.stop()
    assert isinstance(event, events.TurnInterrupted)
    assert event.reply.text.startswith("word word")
    assert event.reply.finish_reason == "cancelled"
    until(is_closed.is_set)
    turn = finish(session.continue_reply())
    assert turn.reply.text == event.reply.text + "and the end."


def test_parallel_replies_and_agreement(open_session: OpenSession, server: RemoteServer) -> None:
    session = open_session(reply("The answer is 4."))
    turn = finish(session.send("2 + 2?", n_replies=3))
    assert [r.text for r in (turn.reply, *turn.alternatives)] == ["The answer is 4."] * 3
    assert len(server.chats) == 3
    picked = finish(session.regenerate(n_replies=5, pick="agree"))
    assert picked.picked is not None
    assert picked.picked.pick.n_agreeing >= 3
    with pytest.raises(UsageError, match="only be picked by agreement"):
        list(session.regenerate(n_replies=3, pick="judge"))


def test_too_long_conversation_is_sent_without_its_oldest_turns(
    open_session: OpenSession, server: RemoteServer
) -> None:
    def refuse_long(exchange: Exchange) -> None:
        if len(exchange.body["messages"]) > 3:
            message = "This model's maximum context length is 10 tokens"
            exchange.send({"error": {"message": message, "code": "context_length_exceeded"}}, 400)
        else:
            reply("Fine.")(exchange)

    session = open_session(refuse_long)
    for number in range(2):
        finish(session.send(f"Message {number}"))
    seen = list(session.send("Message 2"))
    assert any(isinstance(event, events.TurnsDropped) for event in seen)
    assert session.tree.path[-1].context_start_id is not None
    n_chats = len(server.chats)
    finish(session.send("Message 3"))
    assert len(server.chats) - n_chats <= 2


def test_message_that_is_too_long_is_taken_back(open_session: OpenSession) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.send({"error": "the request exceeds the available context size"}, 400)

    session = open_session(refuse)
    with pytest.raises(ContextOverflowError, match=r"too long for box \(127.0.0.1:\d+\)"):
        list(session.send("Long"))
    assert len(session.tree) == 0


def test_side_jobs_send_nothing(open_session: OpenSession, server: RemoteServer) -> None:
    session = open_session()
    finish(session.send("Hello"))
    n_requests = len(server.exchanges)
    assert session.generate_title() is None
    session.warm_cache()
    with pytest.raises(UsageError, match="remote model"):
        session.context_usage()
    tokens = COMMANDS_BY_NAME["tokens"].run
    assert tokens is not None
    assert "The last prompt had 10 tokens" in tokens(session, "").text
    assert len(server.exchanges) == n_requests
    assert session.model_properties is None
    assert session.model.plan is None


def test_model_changes_between_local_and_remote(
    server: RemoteServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ScriptedSession(open_store(), Settings(remotes={"box": server.settings}), Script(["Local reply"]))
    session.open()
    finish(session.send("For the local model"))
    assert not server.exchanges
    note = load_model(session, "box/small", lambda event: None)
    assert note == f"Model for the next replies: box/small (remote, 127.0.0.1:{server.port})"
    assert session.conversation.model == "box/small"
    assert finish(session.send("For the remote")).reply.text == "Hello there."
    local_file = home / "other.gguf"
    local_file.write_text("")
    load_model(session, str(local_file), lambda event: None)
    assert not session.source.is_remote
    assert finish(session.send("Local again")).reply.text == "Local reply"
    assert [chat.prompt for chat in server.chats] == ["For the remote"]
    session.close()


def test_missing_key_keeps_the_previous_model(
    open_session: OpenSession, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session()
    import msgspec

    closed = msgspec.structs.replace(server.settings, api_key_env="NO_SUCH_KEY")
    with pytest.raises(RemoteError, match="not in NO_SUCH_KEY"):
        session.change_model("shop/x", RemoteModel(remote="shop", model="x", settings=closed))
    assert session.reply_model == "box/big"
    assert finish(session.send("Still there?")).reply.text == "Hello there."


def test_server_that_changes_its_models_and_its_key_keeps_the_message(
    open_session: OpenSession, server: RemoteServer
) -> None:
    session = open_session()
    finish(session.send("First"))
    models, server.models = server.models, [{"id": "other"}]
    with pytest.raises(RemoteError, match="The model big does not exist"):
        list(session.send("Second"))
    assert [m.text for m in session.tree.path] == ["First", "Hello there.", "Second", ""]
    server.models, server.required_key = models, KEY
    with pytest.raises(RemoteError, match="needs an API key"):
        list(session.regenerate())
    server.required_key = ""
    assert finish(session.regenerate()).reply.text == "Hello there."
    assert finish(session.send("Third")).reply.text == "Hello there."
    assert [m["content"] for m in server.chats[-1].body["messages"]] == [
        "First", "Hello there.", "Second", "Hello there.", "Third",
    ]  # fmt: skip


def test_reply_that_breaks_off_keeps_its_text_and_is_continued(open_session: OpenSession, server: RemoteServer) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.chunk("Half of")
        exchange.chunk(" the")

    session = open_session(cut, reply(" rest."))
    with pytest.raises(RemoteError, match="closed the connection before the end of the reply"):
        list(session.send("Hi"))
    broken = session.tree.path[-1]
    assert (broken.text, broken.finish_reason) == ("Half of the", "interrupted")
    assert "/continue" in broken.end_notice
    assert session.store.messages(session.conversation.id)[-1] == broken
    assert finish(session.continue_reply()).reply.text == "Half of the rest."
    bodies = [chat.body for chat in server.chats]
    assert ["continue_final_message" in body for body in bodies] == [False, True]
    assert bodies[1]["add_generation_prompt"] is False


def test_passages_of_documents_are_sent_with_their_message(
    open_session: OpenSession, server: RemoteServer, tmp_path: Path
) -> None:
    (tmp_path / "ships").mkdir()
    (tmp_path / "ships" / "vasa.txt").write_text("The Vasa sank in 1628.")
    session = open_session()
    finish(session.send("When did the Vasa sink?", [tmp_path / "ships"]))
    assert "The Vasa sank in 1628." in str(server.chats[0].body["messages"])
    notes = tmp_path / "notes.txt"
    notes.write_text("Remember the milk.")
    finish(session.send("And this?", [notes]))
    assert "Remember the milk." in server.chats[1].body["messages"][-1]["content"]


def test_retries_are_shown_and_a_stop_ends_them(open_session: OpenSession) -> None:
    session = open_session(lambda exchange: exchange.send("", 503))
    seen = []
    for event in session.send("Hi"):
        seen.append(event)
        if isinstance(event, events.RemoteRetryScheduled):
            assert "failed (HTTP 503)" in events.format_progress(event)
            session.stop()
    assert isinstance(seen[-1], events.TurnInterrupted)
    assert seen[-1].reply.finish_reason == "cancelled"
