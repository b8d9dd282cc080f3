"""The line of the line-by-line chat that offers an earlier reply."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.earlier_replies import EarlierReply
from edgechat.chat.events import ReplyTextGenerated, SessionEvent, TurnFinished, TurnStarted
from edgechat.chat.messages import Message
from edgechat.cli.earlier_offer import offer_earlier_reply
from edgechat.cli.progress import StderrStatus
from edgechat.config import Settings
from edgechat.engine.generation import ReplyOrigin
from edgechat.errors import StoreError
from edgechat.store import open_ephemeral_store

MESSAGE, REPLY = Message(id="m", role="user"), Message(id="r", role="assistant")
EARLIER = EarlierReply(question="", reply=REPLY, origin=ReplyOrigin(conversation_id="c", message_id="r"))
NOTE = "edgechat: Asked before: /earlier shows the earlier reply.\n"


@pytest.fixture
def session() -> Iterator[ScriptedSession]:
    session = ScriptedSession(open_ephemeral_store(), Settings(), Script([""]))
    yield session
    session.close()


def make_reply(*texts: str) -> Iterator[SessionEvent]:
    yield TurnStarted(message=MESSAGE, reply=REPLY)
    for text in texts:
        yield ReplyTextGenerated(text=text, reasoning="", n_tokens=1)
    yield TurnFinished(reply=REPLY, context_tokens=1)


def test_offer_is_printed_before_the_text_if_it_is_found_by_then(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    is_found = threading.Event()

    def find() -> EarlierReply:
        is_found.set()
        return EARLIER

    monkeypatch.setattr(session, "find_earlier_reply", find)
    notes: list[str] = []
    for event in offer_earlier_reply(session, make_reply(*"abc" * 1000), StderrStatus()):
        is_found.wait()
        if isinstance(event, ReplyTextGenerated):
            notes.append(capsys.readouterr().err)
    assert "".join(notes) + capsys.readouterr().err == NOTE


def test_slow_search_does_not_delay_the_text_and_its_offer_is_printed_below(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    may_find = threading.Event()
    monkeypatch.setattr(session, "find_earlier_reply", lambda: EARLIER if may_find.wait(60) else None)
    for event in offer_earlier_reply(session, make_reply("text"), StderrStatus()):
        if isinstance(event, TurnFinished):
            assert capsys.readouterr().err == ""
            may_find.set()
    assert capsys.readouterr().err == NOTE


def test_error_of_the_search_is_ignored(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise StoreError("The database is locked")

    monkeypatch.setattr(session, "find_earlier_reply", fail)
    events = list(offer_earlier_reply(session, make_reply("text"), StderrStatus()))
    assert isinstance(events[-1], TurnFinished)
    assert capsys.readouterr().err == ""


def test_no_search_for_a_later_message_or_by_setting(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "find_earlier_reply", lambda: EARLIER)
    session.set_base_settings(Settings(offer_earlier=False))
    list(offer_earlier_reply(session, make_reply("text"), StderrStatus()))
    session.set_base_settings(Settings())
    session.open()
    list(session.send("First"))
    list(offer_earlier_reply(session, make_reply("text"), StderrStatus()))
    assert capsys.readouterr().err == ""


def test_error_of_the_reply_is_raised(session: ScriptedSession) -> None:
    def fail() -> Iterator[SessionEvent]:
        yield TurnStarted(message=MESSAGE, reply=REPLY)
        raise StoreError("full")

    with pytest.raises(StoreError, match="full"):
        list(offer_earlier_reply(session, fail(), StderrStatus()))
