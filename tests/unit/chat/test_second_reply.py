"""Replies of a second model beside the turns of a session, with scripted replies instead of models."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import events
from edgechat.chat.commands import COMMANDS_BY_NAME
from edgechat.chat.compared_replies import choose_replies, read_reply
from edgechat.chat.reply_source import ReplySource
from edgechat.chat.second_reply import create_source
from edgechat.chat.tree import MessageTree
from edgechat.config import Settings
from edgechat.errors import EngineDiedError, ModelFileError, PlanError, RequestCancelledError, UsageError
from edgechat.models.events import ModelLoadProgressed
from edgechat.store import open_ephemeral_store, open_store
from edgechat.store.sqlite import SqliteStore
from tests.remote_server import Exchange, RemoteServer
from tests.waiting import until

OTHER = Path("other.gguf")
ANSWER, OTHER_ANSWER = "The first answer, in some words.", "Another answer, which is longer than the first one."


@pytest.fixture
def session() -> Iterator[ScriptedSession]:
    session = open_session(open_ephemeral_store())
    yield session
    session.close()


def open_session(store: SqliteStore) -> ScriptedSession:
    session = ScriptedSession(store, Settings(titles=False), Script([ANSWER]))
    session.second_script = Script([OTHER_ANSWER])
    session.open()
    return session


def check(session: ScriptedSession) -> None:
    """Assert that the store holds the messages of the session, and that the tree in memory is that of the store."""
    stored = session.store.messages(session.conversation.id)
    assert {m.id: m for m in stored} == session.tree._messages
    assert session.store.conversation(session.conversation.id).head_id == session.tree.head_id
    assert MessageTree(stored, session.tree.head_id)._children == session.tree._children


def answer(session: ScriptedSession) -> Iterator[events.SessionEvent]:
    return session.second.answer("other", OTHER)


def run_until_text(turn: Iterator[events.SessionEvent]) -> events.ReplyTextGenerated:
    return next(event for event in turn if isinstance(event, events.ReplyTextGenerated))


def texts_by_model(session: ScriptedSession) -> dict[str, str]:
    return {m.model: m.text for m in session.tree._messages.values() if m.role == "assistant"}


def test_second_reply_becomes_an_alternative_and_the_present_one_stays(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    head_id = session.tree.head_id
    *_, finished, ended = answer(session)
    assert isinstance(finished, events.TurnFinished)
    assert isinstance(ended, events.SecondReplyEnded)
    assert (ended.reply.text, ended.reply.model, ended.number, ended.n_alternatives) == (
        OTHER_ANSWER, "other.gguf", 2, 2,
    )  # fmt: skip
    assert "Reply 2 of 2, by other, is complete. /switch 2 continues with it" in events.format_notice(ended)
    assert session.tree.head_id == head_id
    check(session)
    session.select_alternative(ended.reply.id)
    list(session.send("More"))
    assert [m.text for m in session.tree.path] == ["Hi", OTHER_ANSWER, "More", ANSWER]
    check(session)


def test_second_reply_to_a_message_without_a_reply_becomes_the_head(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    session.delete(session.tree.path[1].id)
    list(answer(session))
    assert session.tree.path[-1].text == OTHER_ANSWER
    check(session)


def test_both_replies_grow_and_either_is_read_while_it_grows(session: ScriptedSession) -> None:
    turn = session.send("Hi")
    run_until_text(turn)
    second = answer(session)
    run_until_text(second)
    run_until_text(turn)
    first_reply, second_reply = session.second.growing_replies
    assert (first_reply.text, second_reply.text) == (ANSWER[:8], OTHER_ANSWER[:4])
    read = read_reply(session, second_reply.id)
    assert read is not None
    assert (read.is_growing, read.heading) == (True, "Reply 2 of 2, other (growing)")
    empty = read._replace(message=msgspec.structs.replace(read.message, text=""))
    assert empty.heading == "Reply 2 of 2, other (waiting)"
    assert session.tree[second_reply.id].text == OTHER_ANSWER[:4]
    list(turn)
    assert session.tree.head_id == first_reply.id
    list(second)
    assert texts_by_model(session) == {"scripted.gguf": ANSWER, "other.gguf": OTHER_ANSWER}
    assert not session.second.growing_replies
    check(session)


def test_stop_ends_both_and_keeps_their_texts(session: ScriptedSession) -> None:
    turn, second = session.send("Hi"), answer(session)
    run_until_text(turn)
    run_until_text(second)
    session.stop()
    list(turn), list(second)
    replies = [m for m in session.tree._messages.values() if m.role == "assistant"]
    assert [(m.text, m.finish_reason) for m in replies] == [
        (ANSWER[:4], "cancelled"), (OTHER_ANSWER[:4], "cancelled"),
    ]  # fmt: skip
    check(session)


@pytest.mark.parametrize("stops_second", [False, True])
def test_one_of_both_is_stopped(session: ScriptedSession, *, stops_second: bool) -> None:
    turn, second = session.send("Hi"), answer(session)
    run_until_text(turn)
    run_until_text(second)
    assert session.second.stop_reply(session.second.growing_replies[stops_second].id)
    list(turn), list(second)
    texts = [m.text for m in session.tree._messages.values() if m.role == "assistant"]
    assert texts == ([ANSWER, OTHER_ANSWER[:4]] if stops_second else [ANSWER[:4], OTHER_ANSWER])
    assert not session.second.stop_reply(session.tree.path[-1].id)
    check(session)


def test_stop_before_the_first_word_removes_the_reply(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    second = answer(session)
    next(e for e in second if isinstance(e, events.TurnStarted))
    assert len(session.tree) == 3
    session.stop()
    *_, ended = second
    assert events.format_notice(ended) == "other was stopped before its first word."
    assert len(session.tree) == 2
    check(session)


@pytest.mark.parametrize("crashes_second", [False, True])
def test_crash_of_one_engine_leaves_the_other_reply(session: ScriptedSession, *, crashes_second: bool) -> None:
    turn, second = session.send("Hi"), answer(session)
    run_until_text(turn)
    run_until_text(second)
    script = session.second_script if crashes_second else session._scripted_engine._script
    script.crash_after_tokens = 2
    with pytest.raises(EngineDiedError, match=r"other: the engine" if crashes_second else "the engine"):
        list(second if crashes_second else turn)
    list(turn if crashes_second else second)
    texts = texts_by_model(session)
    assert texts["scripted.gguf" if crashes_second else "other.gguf"] in {ANSWER, OTHER_ANSWER}
    assert texts["other.gguf" if crashes_second else "scripted.gguf"] in {ANSWER[:8], OTHER_ANSWER[:8]}
    check(session)


def test_growing_reply_is_neither_continued_nor_deleted_nor_answered(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    second = answer(session)
    run_until_text(second)
    reply = session.second.growing_reply
    assert reply is not None
    session.select_alternative(reply.id)
    for change in (
        lambda: list(session.continue_reply()),
        lambda: session.delete(session.tree.path[0].id),
        lambda: list(session.send("And then?")),
    ):
        with pytest.raises(UsageError, match="still being generated"):
            change()
    with pytest.raises(UsageError, match="replying already"):
        list(answer(session))
    list(second)
    assert session.tree.path[-1].text == OTHER_ANSWER
    list(session.send("And then?"))
    check(session)


def test_turn_that_is_undone_leaves_its_message_to_the_second_reply(session: ScriptedSession) -> None:
    turn = session.send("Hi")
    next(e for e in turn if isinstance(e, events.TurnStarted))
    second = answer(session)
    run_until_text(second)
    conversation = session._stored_conversation
    message, reply = session.tree.path
    conversation.discard([message, reply])
    list(second)
    assert [m.text for m in session.tree._messages.values()] == ["Hi", OTHER_ANSWER]
    session._stored_conversation.select_branch(message.id)
    check(session)


def test_other_conversation_ends_the_second_reply(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    conversation_id = session.conversation.id
    session.second_script.may_continue.clear()
    thread = threading.Thread(target=lambda: list(answer(session)), daemon=True)
    thread.start()
    until(lambda: session.second.growing_reply is not None and session.second.growing_reply.text)
    threading.Timer(0.05, session.second_script.may_continue.set).start()
    session.switch_conversation()
    thread.join()
    assert not session.second.is_running
    saved = session.store.messages(conversation_id)[-1]
    assert (saved.text, saved.finish_reason) == (OTHER_ANSWER[:4], "cancelled")


def test_closing_during_the_second_reply_saves_it(home: Path) -> None:
    session = open_session(open_store())
    list(session.send("Hi"))
    second = answer(session)
    run_until_text(second)

    def read_to_the_end() -> None:
        with contextlib.suppress(EngineDiedError):
            list(second)

    thread = threading.Thread(target=read_to_the_end, daemon=True)
    session.second_script.may_continue.clear()
    thread.start()
    session.close()
    thread.join()
    store = open_store()
    [_, _, saved] = store.messages(session.conversation.id)
    store.close()
    assert OTHER_ANSWER.startswith(saved.text)
    assert saved.text


def test_model_of_the_chat_is_refused_and_unknown_models_are_named(session: ScriptedSession) -> None:
    with pytest.raises(UsageError, match="no message"):
        list(answer(session))
    list(session.send("Hi"))
    with pytest.raises(UsageError, match=r"/retry"):
        list(session.second.answer("scripted", session.model_path))
    run = COMMANDS_BY_NAME["also"].run
    assert run is not None
    with pytest.raises(ModelFileError):
        run(session, "no-such-model")
    assert not session.second.is_running


def test_model_that_does_not_fit_says_what_to_do(session: ScriptedSession) -> None:
    create = session.second.create_source

    def create_too_large(*arguments: object) -> ReplySource:
        source = create(*arguments)  # type: ignore[arg-type]

        def refuse(*_arguments: object) -> None:
            raise PlanError("It needs 9 GB, but 1 GB are available.")

        source.open = refuse  # type: ignore[method-assign, assignment]
        return source

    session.second.create_source = create_too_large
    list(session.send("Hi"))
    with pytest.raises(PlanError, match=r"beside scripted.* needs 9 GB, but 1 GB .*/model other and then /retry"):
        list(answer(session))
    assert len(session.tree) == 2
    check(session)


def test_stop_during_the_load_ends_it(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    second = answer(session)
    assert isinstance(next(second), ModelLoadProgressed)
    session.stop()
    with pytest.raises(RequestCancelledError, match="other was stopped before it replied"):
        list(second)
    assert len(session.tree) == 2
    list(answer(session))
    assert len(session.tree) == 3


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(["first", "second", "also", "stop", "switch", "compare"]), max_size=30))
def test_any_order_of_events_keeps_the_tree_consistent(steps: list[str]) -> None:
    session = open_session(open_ephemeral_store())
    list(session.send("Hi"))
    turn: Iterator[events.SessionEvent] = session.regenerate()
    second: Iterator[events.SessionEvent] = answer(session)
    for step in steps:
        if step == "first":
            next(turn, None)
        elif step == "second":
            next(second, None)
        elif step == "also" and not session.second.is_running:
            second = answer(session)
        elif step == "stop":
            session.second.stop()
        elif step == "switch" and not session.second.growing_replies:
            session.select_alternative(session.tree.alternatives(session.tree.path[1].id)[0])
        elif step == "compare" and len(session.tree) > 2:
            assert all(read_reply(session, i) is not None for i in choose_replies(session.tree, ""))
    list(turn)
    with contextlib.suppress(RequestCancelledError):  # stopped before its engine was ready
        list(second)
    replies = [session.tree[i] for i in session.tree.alternatives(session.tree.path[1].id)]
    assert all(r.finish_reason in {"stop", "cancelled"} for r in replies)
    assert all((ANSWER if r.model == "scripted.gguf" else OTHER_ANSWER).startswith(r.text) for r in replies)
    check(session)
    session.close()


def test_remote_gets_only_the_conversation_that_the_user_sent_it(home: Path) -> None:
    server = RemoteServer()

    def respond(exchange: Exchange) -> None:
        exchange.chunk("From afar.", finish="stop")
        exchange.done()

    server.answers = [respond]
    session = ScriptedSession(
        open_ephemeral_store(), Settings(remotes={"box": server.settings}), Script([ANSWER, "A title"])
    )
    session.open()
    session.second.create_source = create_source
    run = COMMANDS_BY_NAME["also"].run
    assert run is not None
    list(session.send("A secret"))
    assert not server.exchanges
    outcome = run(session, "box/big")
    assert outcome.start_reply is not None
    *_, ended = outcome.start_reply()
    assert isinstance(ended, events.SecondReplyEnded)
    assert (ended.reply.text, ended.reply.model) == ("From afar.", "box/big")
    assert [c.body["messages"] for c in server.chats] == [[{"role": "user", "content": "A secret"}]]
    session.generate_title()
    list(session.send("Next secret"))
    assert len(server.exchanges) == 1, "a side job or a later message was sent to the remote"
    assert session.conversation.title == "A title"
    session.close()
    server.close()


def test_compare_chooses_by_number_and_model(session: ScriptedSession) -> None:
    list(session.send("Hi"))
    with pytest.raises(UsageError, match="No message on this branch has two replies"):
        choose_replies(session.tree, "")
    list(answer(session))
    list(session.regenerate())
    ids = session.tree.alternatives(session.tree.path[1].id)
    assert choose_replies(session.tree, "") == (ids[1], ids[2])
    assert choose_replies(session.tree, "1 2") == choose_replies(session.tree, "1 other") == (ids[0], ids[1])
    assert choose_replies(session.tree, "OTHER") == (ids[2], ids[1])
    for argument, problem in (("4", "No reply"), ("3", "one reply"), ("1 2 3", "Name two"), ("nothing", "No reply")):
        with pytest.raises(UsageError, match=problem):
            choose_replies(session.tree, argument)
    assert read_reply(session, "gone") is None
