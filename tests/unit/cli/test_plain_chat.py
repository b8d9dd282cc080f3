"""Line-by-line chat with a second model: its reply follows the first, and both are printed below headings."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.events import SessionEvent
from edgechat.cli.interruption import Interruption
from edgechat.cli.plain_chat import PlainChat
from edgechat.cli.progress import StderrStatus
from edgechat.config import Settings
from edgechat.store import open_ephemeral_store

SECOND = "Another answer,\nin two lines."


@pytest.fixture
def session() -> Iterator[ScriptedSession]:
    session = ScriptedSession(open_ephemeral_store(), Settings(titles=False), Script(["The first.", "The next."]))
    session.second_script = Script([SECOND])
    session.open()
    yield session
    session.close()


@pytest.fixture
def chat(session: ScriptedSession) -> PlainChat:
    return PlainChat(session, StderrStatus(), Interruption(session))


def test_second_reply_is_printed_and_compared(
    chat: PlainChat, session: ScriptedSession, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.handle("Hi")
    chat.handle("/also starter")
    printed = capsys.readouterr()
    assert printed.out == f"The first.\n{SECOND}\n"
    assert "Reply 2 of 2, by SmolLM2" in printed.err
    chat.handle("/compare")
    name = session.tree[session.tree.alternatives(session.tree.path[1].id)[1]].model.removesuffix(".gguf")
    assert capsys.readouterr().out == (
        f"--- Reply 1 of 2, scripted ---\nThe first.\n--- Reply 2 of 2, {name} ---\n{SECOND}\n"
    )
    chat.handle("/switch 2")
    chat.handle("More")
    assert [m.text for m in session.tree.path] == ["Hi", SECOND, "More", "The next."]
    chat.handle("/compare 1 5")
    assert "No reply has the number or model '5'" in capsys.readouterr().err
    chat.handle("/also")
    assert "starter" in capsys.readouterr().out


def test_notice_of_a_second_reply_is_a_line_of_its_own(
    chat: PlainChat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    chat.handle("Hi")
    chat.handle("/also starter")
    assert f"{SECOND}\nedgechat: Reply 2 of 2" in capsys.readouterr().out


def test_interrupted_second_reply_is_kept_as_an_alternative(
    chat: PlainChat, session: ScriptedSession, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.handle("Hi")
    answer = session.second.answer

    def stop_after_the_first_word(*arguments: object) -> Iterator[SessionEvent]:
        for event in answer(*arguments):  # type: ignore[arg-type]
            yield event
            if session.second.growing_reply is not None and session.second.growing_reply.text:
                session.stop()

    monkeypatch.setattr(session.second, "answer", stop_after_the_first_word)
    chat.handle("/also starter")
    printed = capsys.readouterr()
    assert "is stopped. /switch 2 continues with it" in printed.err
    assert "/continue" not in printed.out, "/continue would continue the first reply"
    assert [m.text for m in session.tree.path] == ["Hi", "The first."]
    chat.handle("/switch 2")
    chat.handle("More")
    assert [m.text for m in session.tree.path][1:] == [SECOND[:4], "More", "The next."]
