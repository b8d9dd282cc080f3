"""The chat when things go wrong: hostile answers, tiny screens, stores that cannot be written, engines that die."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.store import open_store
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


@pytest.mark.parametrize("size", [(80, 24), (10, 5)])
async def test_whatever_a_model_says_is_shown_and_kept(size: tuple[int, int]) -> None:
    answers = [text for text in HOSTILE_TEXTS if text and len(text) < 100_000]  # the others would fill the context
    app = make_scripted_app(*answers)
    async with app.run_test(size=size) as pilot:
        await wait_until_ready(app)
        for number, answer in enumerate(answers):
            app.actions.run("new", "")
            await until_async(lambda: not shown_messages(app))
            await ask(app, f"Question {number}")
            assert saved_texts(app)[-1] == answer
            assert shown_texts(app, "assistant") == [answer]
        await pilot.pause()


async def test_resized_at_any_moment_of_an_answer() -> None:
    app = make_scripted_app(
        script=Script(["word " * 400 + "\n```py\n" + "x = 1\n" * 100 + "```\n\n- a\n" * 30], token_s=0.001)
    )
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Go")
        await pilot.press("enter")
        size = 0
        while app.pane.is_busy or size < 12:
            size += 1
            await pilot.resize_terminal(5 + size * 37 % 120, 3 + size * 11 % 50)
        assert shown_texts(app, "assistant") == saved_texts(app)[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("moment", ["loading", "reading", "generating", "idle", "other model"])
async def test_an_engine_that_is_killed_at_any_moment_is_replaced(starter: Path, moment: str) -> None:
    app = make_app(starter, n_ctx=8192, max_tokens=200)
    async with app.run_test() as pilot:
        if moment == "loading":
            await until_async(lambda: app.worker.session is not None and session(app).model.engine.pid)
        else:
            await wait_until_ready(app)
        if moment in {"reading", "generating"}:
            app.pane.prompt.load("word " * 3000 if moment == "reading" else LONG)
            await pilot.press("enter")
            await until_async(lambda: status_text(app).startswith(moment))
        elif moment == "other model":
            app.actions.run("model", str(starter))
        pid = session(app).model.engine.pid
        if pid is not None:
            os.kill(pid, 9)
        await until_async(lambda: not app.pane.is_busy)
        await ask(app, "Say one word.")
        await until_async(lambda: not app.pane.is_busy)
        if session(app).tree.path[-1].is_interrupted:  # what was killed was this one's
            await ask(app, "Say one word.")
        assert session(app).tree.path[-1].finish_reason in {"stop", "length"}


async def test_a_store_that_is_locked_loses_nothing() -> None:
    store = open_store()
    save_conversation(store, [("a", "b")])
    app = make_scripted_app(store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        other = sqlite3.connect(paths.history_file(), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        app.pane.prompt.load("Precious words")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error"), timeout_s=60)
        assert app.pane.prompt.text == "Precious words"
        other.execute("ROLLBACK")
        other.close()
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        assert saved_texts(app) == ["Precious words", "An answer."]


def test_a_store_from_the_future_is_read_and_the_chat_goes_on_in_memory(cli: object) -> None:
    from edgechat.cli.session_factory import session_maker

    store = open_store()
    about = save_conversation(store, [("old words", "b")])
    store.close()
    with sqlite3.connect(paths.history_file()) as db:
        db.execute("PRAGMA user_version = 99")
    make, _ = session_maker(model="starter", conversation_id=about.id)
    made = make()
    made.load_messages()
    assert [m.text for m in made.tree.path] == ["old words", "b"]
    assert any("not kept" in warning for warning in made.warnings)
    made.close()


async def test_an_error_in_the_program_ends_with_one_screen_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = make_scripted_app()

    def fail(self: ChatScreen) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ChatScreen, "action_search", fail)
    with pytest.raises(RuntimeError, match="a bug"):  # noqa: PT012
        async with app.run_test() as pilot:
            await wait_until_ready(app)
            await pilot.press("ctrl+f")
            await until_async(lambda: not app.is_running)
    shown = " ".join(capfd.readouterr().err.split())
    assert "edgechat failed: RuntimeError: a bug" in shown
    assert "`edgechat -c` goes on with it" in shown
    assert "a bug" in (paths.cache_dir() / "crash.log").read_text()
