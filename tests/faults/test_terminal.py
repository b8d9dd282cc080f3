"""Faults in the chat: hostile replies, tiny screens, a locked store, a killed engine, and bugs."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.store import database, open_store
from edgechat.tui.app import ChatApp
from edgechat.tui.screens.chat import ChatScreen
from tests.hostile_texts import HOSTILE_TEXTS
from tests.tui.app_driver import (
    ask,
    make_app,
    make_scripted_app,
    save_conversation,
    saved_texts,
    session,
    shown_messages,
    shown_texts,
    status_text,
    wait_until_ready,
)  # fmt: skip
from tests.waiting import until_async

LONG = "Tell me a very long story about the sea."


@pytest.mark.parametrize(("size", "step"), [((80, 24), 1), ((10, 5), 3)])
async def test_hostile_replies_are_shown_and_saved(size: tuple[int, int], step: int) -> None:
    # Longer texts would fill the context.
    replies = [text for text in HOSTILE_TEXTS if text and len(text) < 100_000][::step]
    app = make_scripted_app(*replies)
    async with app.run_test(size=size) as pilot:
        await wait_until_ready(app)
        for number, reply in enumerate(replies):
            app.actions.run("new", "")
            await until_async(lambda: not shown_messages(app))
            await ask(app, f"Question {number}")
            await until_async(lambda: saved_texts(app)[-1:] == [reply])  # noqa: B023
            await until_async(lambda: shown_texts(app, "assistant") == [reply])  # noqa: B023
        await pilot.pause()


async def test_resizing_during_a_reply_loses_no_text() -> None:
    reply = "word " * 400 + "\n```py\n" + "x = 1\n" * 100 + "```\n\n- a\n" * 30
    app = make_scripted_app(script=Script([reply], token_interval_s=0.001))
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Go")
        await pilot.press("enter")
        size = 0
        while app.pane.is_busy or len(session(app).tree) < 2 or size < 12:
            size += 1
            await pilot.resize_terminal(5 + size * 37 % 120, 3 + size * 11 % 50)
        await until_async(lambda: saved_texts(app)[1:] == [reply])
        await until_async(lambda: shown_texts(app, "assistant") == [reply])


def has_replied(app: ChatApp) -> bool:
    return len(session(app).tree) == 2 and not app.pane.is_busy


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("moment", ["loading", "reading", "generating", "idle", "other model"])
async def test_engine_killed_at_any_moment_is_restarted(starter: Path, moment: str) -> None:
    app = make_app(starter, n_ctx=8192, max_tokens=200)
    async with app.run_test() as pilot:
        if moment == "loading":
            await until_async(lambda: app.worker.session is not None and session(app).model.engine.pid)
        else:
            await wait_until_ready(app)
        if moment in {"reading", "generating"}:
            app.pane.prompt.load("word " * 1200 if moment == "reading" else LONG)
            await pilot.press("enter")
            # A machine can be so fast, or so busy, that the end is noticed first.
            await until_async(lambda: status_text(app).lower().startswith(moment) or has_replied(app))
        elif moment == "other model":
            app.actions.run("model", str(starter))
        pid = session(app).model.engine.pid
        if pid is not None:
            os.kill(pid, 9)
        await until_async(lambda: not app.pane.is_busy)
        await ask(app, "Say one word.")
        await until_async(lambda: not app.pane.is_busy)
        if session(app).tree.path[-1].is_interrupted:  # the kill hit this reply
            await ask(app, "Say one word.")
        assert session(app).tree.path[-1].finish_reason in {"stop", "length"}


async def test_locked_store_loses_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.5)
    store = open_store()
    save_conversation(store, [("a", "b")])
    app = make_scripted_app(store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        other = sqlite3.connect(paths.history_file(), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        app.pane.prompt.load("Important text")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error"), timeout_s=60)
        assert app.pane.prompt.text == "Important text"
        other.execute("ROLLBACK")
        other.close()
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        assert saved_texts(app) == ["Important text", "An answer."]


def test_store_of_a_newer_version_is_read_and_the_chat_continues_in_memory(cli: object) -> None:
    from edgechat.cli.session_factory import prepare_session

    store = open_store()
    about = save_conversation(store, [("old words", "b")])
    store.close()
    with sqlite3.connect(paths.history_file()) as db:
        db.execute("PRAGMA user_version = 99")
    make, _ = prepare_session(model="starter", conversation_id=about.id)
    session_ = make()
    session_.load_messages()
    assert [m.text for m in session_.tree.path] == ["old words", "b"]
    assert any("not saved" in warning for warning in session_.warnings)
    session_.close()


async def test_bug_ends_the_chat_with_a_crash_report_and_instructions(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = make_scripted_app()

    def fail(self: ChatScreen, name: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ChatScreen, "action_command", fail)
    with pytest.raises(RuntimeError, match="a bug"):  # noqa: PT012
        async with app.run_test() as pilot:
            await wait_until_ready(app)
            await pilot.press("ctrl+f")
            await until_async(lambda: not app.is_running)
    output = " ".join(capfd.readouterr().err.split())
    assert "edgechat failed: RuntimeError: a bug" in output
    assert "`edgechat -c` continues it" in output
    assert "a bug" in (paths.cache_dir() / "crash.log").read_text()
