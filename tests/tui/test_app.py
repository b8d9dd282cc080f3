"""The chat screen with the real starter model."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key

from edgechat.tui import messages
from edgechat.tui.app import ChatApp
from edgechat.tui.screens import chat as chat_screen
from tests.models import write_parrot
from tests.tui.app_driver import make_app, screen_text, session, shown_texts, status_text
from tests.waiting import until_async

LONG = "Tell me a very long story about the sea."
# The reply to `LONG` must not end before the test has pressed a key, even if it repeats itself and is drafted.
ENDLESS: dict[str, Any] = {"stop_repetition": False, "speculation": False}


def answers(app: ChatApp) -> list[str]:
    return shown_texts(app, "assistant")


async def test_question_gets_a_reply(starter: Path) -> None:
    app = make_app(starter, max_tokens=20)
    async with app.run_test() as pilot:
        await pilot.press(*"Hi", "ctrl+j", *"there", "enter")
        assert app.pane.prompt.text == ""
        await until_async(lambda: status_text(app).startswith("Ready") and answers(app))
        assert shown_texts(app, "user") == ["Hi\nthere"]
        assert answers(app) == [m.text for m in session(app).tree.path if m.role == "assistant"]
        assert "/2048" in status_text(app)
        await pilot.press(*"More", "enter")
        await until_async(lambda: len(answers(app)) == 2 and status_text(app).startswith("Ready"))


async def test_message_sent_while_the_model_loads_gets_a_reply(starter: Path) -> None:
    app = make_app(starter, max_tokens=5)
    async with app.run_test() as pilot:
        app.pane.prompt.text = "Early"
        await pilot.press("enter")
        await until_async(lambda: answers(app) and status_text(app).startswith("Ready"))
        assert shown_texts(app, "user") == ["Early"]


async def test_escape_stops_the_reply_and_keeps_its_text(starter: Path) -> None:
    app = make_app(starter, **ENDLESS)
    async with app.run_test() as pilot:
        app.pane.prompt.text = LONG
        await pilot.press("enter")
        await until_async(lambda: answers(app) and len(answers(app)[0]) > 20)
        await pilot.press("escape")
        await until_async(lambda: not app.pane.is_busy)
        assert status_text(app).startswith("Ready")
        reply = session(app).tree.path[-1]
        assert reply.is_interrupted
        assert answers(app) == [reply.text]
        assert "(Stopped; /continue resumes the reply)" in screen_text(app)


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
async def test_killed_engine_is_reported_and_restarted_and_keeps_the_partial_reply(starter: Path) -> None:
    app = make_app(starter, **ENDLESS)
    async with app.run_test() as pilot:
        app.pane.prompt.text = LONG
        await pilot.press("enter")
        await until_async(lambda: answers(app) and len(answers(app)[0]) > 20)
        first = session(app).model.engine.pid
        assert first is not None
        os.kill(first, 9)
        await until_async(lambda: shown_texts(app, "error"))
        assert "SIGKILL" in shown_texts(app, "error")[0]
        partial = session(app).tree.path[-1]
        assert partial.role == "assistant"
        assert partial.is_interrupted
        assert answers(app) == [partial.text]
        app.pane.prompt.text = "Say one word."
        await pilot.press("enter")
        await until_async(lambda: len(answers(app)) == 2)
        await pilot.press("escape")
        assert session(app).model.engine.pid != first


async def test_invalid_model_file_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("not a model")
    app = make_app(broken, ["EDGECHAT_TOP_K: must be a whole number"])
    async with app.run_test():
        await until_async(lambda: shown_texts(app, "error"))
        assert "not a GGUF file" in shown_texts(app, "error")[0]
        assert "EDGECHAT_TOP_K" in " ".join(shown_texts(app, "note"))


async def test_keys_that_arrive_in_one_packet_stay_in_order(starter: Path) -> None:
    app = make_app(starter, max_tokens=3)
    async with app.run_test():
        await until_async(lambda: status_text(app).startswith("Ready"))
        # As over a slow connection: all keys arrive before the prompt has processed the first.
        for key in ["a", "b", "enter"]:
            app.pane.post_message(Key(key, key if len(key) == 1 else "\r"))
        await until_async(lambda: answers(app))
        assert shown_texts(app, "user") == ["ab"]


async def test_idle_screen_uses_no_cpu_time(starter: Path) -> None:
    app = make_app(starter, max_tokens=3)
    async with app.run_test() as pilot:
        await until_async(lambda: status_text(app).startswith("Ready"))
        await pilot.pause(0.2)
        cpu_s: list[float] = []
        while len(cpu_s) < 20 and min(cpu_s, default=1.0) >= 0.1:  # on a slow machine, work of the start can be left
            before = sum(os.times()[:2])
            await asyncio.sleep(1.0)
            cpu_s.append(sum(os.times()[:2]) - before)
        assert min(cpu_s) < 0.1, cpu_s


async def test_quit_during_a_reply_ends_at_once(starter: Path) -> None:
    app = make_app(starter, **ENDLESS)
    async with app.run_test() as pilot:
        app.pane.prompt.text = LONG
        await pilot.press("enter")
        await until_async(lambda: answers(app))
        await pilot.press("ctrl+q")
        app.pane.post_message(messages.TextArrived("more", "", 1))
        app.pane.post_message(messages.SessionFailed("too late", None))
        await until_async(lambda: app.return_code == 0)
        assert session(app).tree.path[-1].is_interrupted  # so the end did not wait for the end of the reply
        assert session(app).model.engine.pid is None


async def test_message_longer_than_the_context_returns_to_the_prompt(starter: Path) -> None:
    app = make_app(starter, n_ctx=256, max_tokens=3)
    async with app.run_test() as pilot:
        app.pane.prompt.text = "word " * 300
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error"))
        assert "the context holds 256" in shown_texts(app, "error")[0]
        assert app.pane.prompt.text.startswith("word word")
        assert session(app).tree.path == []
        app.pane.prompt.text = "Hi"
        await pilot.press("enter")
        await until_async(lambda: answers(app))


async def test_reply_stopped_before_its_first_token_is_saved_as_interrupted(starter: Path) -> None:
    app = make_app(starter, n_ctx=8192)
    async with app.run_test() as pilot:
        await until_async(lambda: status_text(app).startswith("Ready"))
        app.pane.prompt.text = "word " * 6000
        await pilot.press("enter", "escape")
        await until_async(lambda: status_text(app).startswith("Ready"))
        assert [m.role for m in session(app).tree.path] == ["user", "assistant"]
        assert session(app).tree.path[1].is_interrupted


async def test_escape_returns_queued_messages_to_the_prompt_one_by_one(
    starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_screen, "_DOUBLE_PRESS_S", 0.0)
    app = make_app(starter, **ENDLESS)
    async with app.run_test() as pilot:
        for text in (LONG, "next", "and then"):
            app.pane.prompt.text = text
            await pilot.press("enter")
        await until_async(lambda: answers(app))
        await pilot.press("escape")
        assert app.pane.prompt.text == "next"
        await until_async(lambda: not app.pane.is_busy)
        app.pane.prompt.load("")
        app.chat.action_stop()
        assert app.pane.prompt.text == "and then"


async def test_context_use_is_shown_before_a_message_is_sent(starter: Path) -> None:
    app = make_app(starter, max_tokens=5)
    async with app.run_test() as pilot:
        await until_async(lambda: status_text(app).startswith("Ready"))
        await pilot.press(*"Hi")
        await until_async(lambda: f" {session(app).context_usage('Hi')[0]}/2048" in status_text(app))
        app.pane.prompt.text = "word " * 3000
        await until_async(lambda: "too long for the context" in status_text(app))


async def test_model_generates_the_conversation_title_when_idle(tmp_path: Path) -> None:
    app = make_app(write_parrot(tmp_path / "parrot.gguf", "Paris"), titles=True)
    async with app.run_test() as pilot:
        await pilot.press(*"Where is it?", "enter")
        await until_async(lambda: answers(app) == ["Paris"])
        await until_async(lambda: session(app).conversation.title == "Paris")
