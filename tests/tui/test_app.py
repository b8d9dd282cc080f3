"""The chat screen, driven like a person would, on the real starter model."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from textual.events import Key
from textual.widgets import Markdown, Static

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.store import ephemeral_store
from edgechat.tui import events
from edgechat.tui.app import SHOWN_MESSAGES, ChatApp
from edgechat.tui.prompt import Prompt
from tests.models import write_parrot

LONG = "Tell me a very long story about the sea."


def an_app(model: Path, problems: list[str] | None = None, **options: object) -> ChatApp:
    given = {"temperature": 0.0, "n_ctx": 2048, "titles": False} | options
    return ChatApp(lambda: Session(ephemeral_store(), Settings(**given), model), problems or [])  # type: ignore[arg-type]


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it never happened")


def session(app: ChatApp) -> Session:
    assert app.session is not None
    return app.session


def live(app: ChatApp) -> str:
    return str(app.query_one("#live", Static).content)


def answers(app: ChatApp) -> list[str]:
    return [m.source for m in app.query(Markdown)]


def words(app: ChatApp, kind: str) -> list[str]:
    return [str(s.content) for s in app.query(f".{kind}").results(Static)]


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (40, 12)])
async def test_a_question_is_answered(starter: Path, size: tuple[int, int]) -> None:
    app = an_app(starter, max_tokens=20)
    async with app.run_test(size=size) as pilot:
        await pilot.press(*"Hi", "ctrl+j", *"there", "enter")
        assert app.query_one(Prompt).text == ""
        await until(lambda: live(app).startswith("ready") and answers(app))
        assert words(app, "user") == ["Hi\nthere"]
        assert answers(app) == [m.text for m in session(app).tree.path if m.role == "assistant"]
        assert "/2048" in live(app)
        await pilot.press(*"More", "enter")
        await until(lambda: len(answers(app)) == 2 and live(app).startswith("ready"))
    session(app).close()


async def test_a_message_before_the_model_is_ready_is_answered_when_it_is(starter: Path) -> None:
    app = an_app(starter, max_tokens=5)
    async with app.run_test() as pilot:
        app.query_one(Prompt).text = "Early"
        await pilot.press("enter")
        await until(lambda: answers(app) and live(app).startswith("ready"))
        assert words(app, "user") == ["Early"]
    session(app).close()


async def test_escape_stops_and_keeps_the_text(starter: Path) -> None:
    app = an_app(starter)
    async with app.run_test() as pilot:
        app.query_one(Prompt).text = LONG
        await pilot.press("enter")
        await until(lambda: answers(app) and len(answers(app)[0]) > 20)
        await pilot.press("escape")
        await until(lambda: live(app).startswith("ready"))
        said = session(app).tree.path[-1]
        assert said.interrupted
        assert answers(app) == [said.text]
        assert "stopped" in words(app, "note")
    session(app).close()


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
async def test_a_killed_engine_is_shown_its_answer_kept_and_the_next_message_answered(starter: Path) -> None:
    app = an_app(starter)
    async with app.run_test() as pilot:
        app.query_one(Prompt).text = LONG
        await pilot.press("enter")
        await until(lambda: answers(app) and len(answers(app)[0]) > 20)
        first = session(app).engine.pid
        assert first is not None
        os.kill(first, 9)
        await until(lambda: words(app, "error"))
        assert "SIGKILL" in words(app, "error")[0]
        partial = session(app).tree.path[-1]
        assert partial.role == "assistant"
        assert partial.interrupted
        assert answers(app) == [partial.text]
        app.query_one(Prompt).text = "Say one word."
        await pilot.press("enter")
        await until(lambda: len(answers(app)) == 2)
        await pilot.press("escape")
        assert session(app).engine.pid != first
    session(app).close()


async def test_a_model_that_cannot_be_loaded_is_an_error_on_the_screen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("not a model")
    app = an_app(broken, ["EDGECHAT_TOP_K: Expected `int`"])
    async with app.run_test():
        await until(lambda: words(app, "error"))
        assert "not a GGUF file" in words(app, "error")[0]
        assert "EDGECHAT_TOP_K" in words(app, "note")[0]
    session(app).close()


async def test_a_burst_of_keys_is_one_message(starter: Path) -> None:
    app = an_app(starter, max_tokens=3)
    async with app.run_test():
        await until(lambda: live(app).startswith("ready"))
        # As over a slow line: everything in one packet, before the input has handled any of it.
        for key in ["a", "b", "enter"]:
            app.post_message(Key(key, key if len(key) == 1 else "\r"))
        await until(lambda: answers(app))
        assert words(app, "user") == ["ab"]
    session(app).close()


async def test_escape_sequences_of_a_model_are_visible_not_active(starter: Path) -> None:
    app = an_app(starter, max_tokens=3)
    async with app.run_test():
        app.post_message(events.TextArrived("a\x1b[2Jb", 1))
        await until(lambda: answers(app))
        assert answers(app) == ["a␛[2Jb"]
        await until(lambda: app.session is not None)
    session(app).close()


async def test_an_idle_screen_does_nothing(starter: Path) -> None:
    app = an_app(starter, max_tokens=3)
    async with app.run_test() as pilot:
        await until(lambda: live(app).startswith("ready"))
        await pilot.pause(0.2)
        before = sum(os.times()[:2])
        await asyncio.sleep(2.0)
        assert sum(os.times()[:2]) - before < 0.1  # CPU time, which another load does not change
    session(app).close()


async def test_leaving_in_mid_answer_is_quiet(starter: Path) -> None:
    app = an_app(starter)
    async with app.run_test() as pilot:
        app.query_one(Prompt).text = LONG
        await pilot.press("enter")
        await until(lambda: answers(app))
        await pilot.press("ctrl+q")
        app.post_message(events.TextArrived("more", 1))
        app.post_message(events.Failed("too late"))
        await until(lambda: app.return_code == 0, seconds=5)  # the answer would take much longer
        assert session(app).engine.pid is None


async def test_a_message_that_does_not_fit_goes_back_to_the_input(starter: Path) -> None:
    app = an_app(starter, n_ctx=256, max_tokens=3)
    async with app.run_test() as pilot:
        app.query_one(Prompt).text = "word " * 300
        await pilot.press("enter")
        await until(lambda: words(app, "error"))
        assert "the context holds 256" in words(app, "error")[0]
        assert app.query_one(Prompt).text.startswith("word word")
        assert session(app).tree.path == []
        app.query_one(Prompt).text = "Hi"
        await pilot.press("enter")
        await until(lambda: answers(app))
    session(app).close()


async def test_stopping_before_the_first_word_keeps_turns_alternating(starter: Path) -> None:
    app = an_app(starter, n_ctx=8192)
    async with app.run_test() as pilot:
        await until(lambda: live(app).startswith("ready"))
        app.query_one(Prompt).text = "word " * 6000
        await pilot.press("enter", "escape")
        await until(lambda: live(app).startswith("ready"))
        assert [m.role for m in session(app).tree.path] == ["user", "assistant"]
        assert session(app).tree.path[1].interrupted
    session(app).close()


async def test_messages_that_wait_go_back_to_the_input_on_escape(starter: Path) -> None:
    app = an_app(starter)
    async with app.run_test() as pilot:
        for text in (LONG, "next", "and then"):
            app.query_one(Prompt).text = text
            await pilot.press("enter")
        await until(lambda: answers(app))
        await pilot.press("escape")
        assert app.query_one(Prompt).text == "next\n\nand then"
    session(app).close()


async def test_the_context_is_counted_before_a_message_is_sent(starter: Path) -> None:
    app = an_app(starter, max_tokens=5)
    async with app.run_test() as pilot:
        await until(lambda: live(app).startswith("ready"))
        await pilot.press(*"Hi")
        await until(lambda: f"context {session(app).context_use('Hi')[0]}/2048" in live(app))
        app.query_one(Prompt).text = "word " * 3000
        await until(lambda: "too long for the context" in live(app))
    session(app).close()


async def test_a_conversation_goes_on_where_it_was_left(starter: Path) -> None:
    store = ephemeral_store()
    about = Conversation(id=new_id(), title="Old", model="starter", created_at_ms=1)
    said: list[Message] = []
    for i in range(SHOWN_MESSAGES // 2 + 1):
        parent_id = said[-1].id if said else None
        said.append(Message(id=new_id(), parent_id=parent_id, role="user", text=f"question {i}", created_at_ms=i))
        said.append(
            Message(
                id=new_id(), parent_id=said[-1].id, role="assistant", text=f"answer \x1b[31m{i}", created_at_ms=i,
                finish_reason="stop",
            )
        )  # fmt: skip
    said[-1] = msgspec.structs.replace(said[-1], finish_reason="interrupted")
    store.append(about, said)
    settings = Settings(temperature=0.0, n_ctx=2048, max_tokens=5, titles=False)
    app = ChatApp(lambda: Session(store, settings, starter, store.conversation(about.id)), [])
    async with app.run_test() as pilot:
        await until(lambda: live(app).startswith("ready"))
        assert words(app, "user") == [f"question {i}" for i in range(1, SHOWN_MESSAGES // 2 + 1)]
        assert answers(app)[0] == "answer ␛[31m1"
        assert words(app, "note") == ["2 earlier messages are not shown", "interrupted"]
        await until(lambda: "context 0/" not in live(app))
        await pilot.press(*"More", "enter")
        await until(lambda: len(answers(app)) == SHOWN_MESSAGES // 2 + 1 and live(app).startswith("ready"))
        assert session(app).tree.path[-3].id == said[-1].id
    session(app).close()


async def test_the_model_names_the_conversation_in_idle_time(tmp_path: Path) -> None:
    app = an_app(write_parrot(tmp_path / "parrot.gguf", "Paris"), titles=True)
    async with app.run_test() as pilot:
        await pilot.press(*"Where is it?", "enter")
        await until(lambda: answers(app) == ["Paris"])
        await until(lambda: session(app).conversation.title == "Paris")
    session(app).close()
