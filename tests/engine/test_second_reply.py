"""Replies of a second local model beside a turn: two engine processes, their memory, and their ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from edgechat.chat import events
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.session import Session
from edgechat.engine.resident_files import list_records
from edgechat.errors import EngineDiedError, PlanError
from edgechat.store import open_store
from tests.engine.chats import SHORT_GREEDY, OpenChat
from tests.models import write_parrot
from tests.resident_engines import end_engines
from tests.waiting import until

PARROT = "Polychrme"
LONG = msgspec.structs.replace(SHORT_GREEDY, max_tokens=400, stop_repetition=False)


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    return write_parrot(tmp_path / "parrot.gguf", PARROT)


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    return write_parrot(tmp_path / "endless.gguf", PARROT, is_endless=True)


def next_text(turn: Iterator[events.SessionEvent]) -> str:
    return next(event.text for event in turn if isinstance(event, events.ReplyTextGenerated))


def second_pid(session: Session) -> int:
    source = session.second._source
    assert isinstance(source, EngineSource)
    assert source.model.engine.pid is not None
    return source.model.engine.pid


def replies(session: Session) -> dict[str, str]:
    return {m.model: m.text for m in session.tree._messages.values() if m.role == "assistant"}


def test_two_engines_reply_at_the_same_time(open_chat: Callable[..., OpenChat], parrot: Path, starter: Path) -> None:
    chat = open_chat()
    session = chat.session
    alone = chat.run(session.send("Hi")).text
    turn = session.regenerate()
    next_text(turn)
    second = session.second.answer("parrot", parrot)
    next_text(second)
    assert second_pid(session) != session.model.engine.pid
    process = psutil.Process(second_pid(session))
    next_text(turn)
    list(turn)
    *_, ended = second
    assert isinstance(ended, events.SecondReplyEnded)
    assert (ended.reply.text, ended.reply.finish_reason) == (PARROT, "stop")
    assert replies(session) == {starter.name: alone, "parrot.gguf": PARROT}
    until(lambda: not process.is_running(), description="the second engine ends with its reply")
    chat.check()
    session.select_alternative(ended.reply.id)
    chat.run(session.send("And now?"))


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("kills_second", [False, True])
def test_killed_engine_leaves_the_other_reply(
    open_chat: Callable[..., OpenChat], starter: Path, tmp_path: Path, *, kills_second: bool
) -> None:
    other = tmp_path / "other.gguf"
    other.symlink_to(starter)  # a tiny model would end its reply before it is killed
    chat = open_chat(LONG)
    session = chat.session
    turn = session.send("Tell me a very long story.")
    next_text(turn)
    second = session.second.answer("other", other)
    next_text(second)
    engine_pid = session.model.engine.pid
    assert engine_pid is not None
    psutil.Process(second_pid(session) if kills_second else engine_pid).kill()
    with pytest.raises(EngineDiedError, match=r"other: .*SIGKILL" if kills_second else "SIGKILL"):
        list(second if kills_second else turn)
    list(turn if kills_second else second)
    assert all(replies(session).values())
    complete = session.tree[session.tree.alternatives(session.tree.path[1].id)[0 if kills_second else 1]]
    assert complete.finish_reason in {"stop", "length"}
    chat.check()
    session.settings = SHORT_GREEDY
    chat.run(session.send("Go on"))  # restarts the engine of the chat


def test_model_without_room_beside_the_first_says_how_much_is_missing(
    open_chat: Callable[..., OpenChat], parrot: Path
) -> None:
    chat = open_chat()
    session = chat.session
    chat.run(session.send("Hi"))
    assert session.model.plan is not None
    for budget, problem in (
        (session.model.plan.estimate.engine - 1, r"parrot does not fit beside .* of the budget of .*/model parrot"),
        (
            session.model.plan.estimate.engine + 1000,
            r"parrot does not fit beside .*1 kB.*/model parrot and then /retry",
        ),
    ):
        session.settings = msgspec.structs.replace(SHORT_GREEDY, budget=str(budget))
        with pytest.raises(PlanError, match=problem):
            list(session.second.answer("parrot", parrot))
        assert len(session.tree) == 2
    session.settings = SHORT_GREEDY
    list(session.second.answer("parrot", parrot))
    chat.check()


def test_second_engine_stays_resident_for_the_next_reply(
    open_chat: Callable[..., OpenChat], parrot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECHAT_ENGINE")
    try:
        chat = open_chat()
        chat.run(chat.session.send("Hi"))
        pids = []
        for _ in range(2):
            second = chat.session.second.answer("parrot", parrot)
            assert next_text(second)
            pids.append(second_pid(chat.session))
            list(second)
        assert pids[0] == pids[1]
        assert len(list(list_records())) == 2
        chat.check()
    finally:
        end_engines()


_PROGRAM = """
import sys, threading
from pathlib import Path
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.store import open_store
settings = Settings(temperature=0.0, n_ctx=2048, max_tokens=1900, titles=False, stop_repetition=False)
session = Session(open_store(), settings, Path(sys.argv[1]))
session.open()
turn = session.send("Hi")
next(turn)
threading.Thread(target=lambda: list(session.second.answer("second", Path(sys.argv[2])))).start()
for event in turn:
    threading.Event().wait(0.01)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_program_keeps_both_texts(home: Path, endless: Path, tmp_path: Path) -> None:
    other = write_parrot(tmp_path / "other.gguf", "abcdefgh", is_endless=True)
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(endless), str(other)])
    store = open_store()

    def saved_texts() -> list[str]:
        return [
            m.text
            for summary in store.list_conversations()
            for m in store.messages(summary.conversation.id)
            if m.role == "assistant"
        ]

    until(lambda: len(saved_texts()) == 2 and all(saved_texts()), description="both replies are saved")
    program.kill()
    program.wait()
    seen = saved_texts()
    store.close()
    reopened = open_store()
    [summary] = reopened.list_conversations()
    message, first, second = reopened.messages(summary.conversation.id)
    assert [first.text, second.text] == seen
    assert (first.model, second.model) == ("endless.gguf", "other.gguf")
    assert first.text[:4] == PARROT[:4]
    assert second.text[:4] == "abcd"
    assert {first.parent_id, second.parent_id} == {message.id}
    assert reopened.conversation(summary.conversation.id).head_id == first.id
    reopened.close()
