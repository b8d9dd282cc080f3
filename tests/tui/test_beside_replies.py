"""Actions that must not wait for a running reply: each ends while the model pauses in the middle of the reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from edgechat.bench.scripted_session import CHARS_PER_TOKEN, Script
from edgechat.models import selection
from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    ask,
    is_open,
    make_scripted_app,
    save_conversation,
    screen_text,
    session,
    shown_messages,
    shown_texts,
    wait_until_ready,
)
from tests.tui.drawing import until_async

pytestmark = pytest.mark.usefixtures("independent_of_load")
Condition = Callable[[], object]
Action = Callable[[ChatApp, Pilot[int]], Awaitable[Condition]]
"""Starts the action, and returns the condition that ends it."""


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)
    monkeypatch.chdir(tmp_path)


async def figures(app: ChatApp, _pilot: Pilot[int]) -> Condition:
    app.actions.run("figures")
    return lambda: "cached" in screen_text(app)


async def export(app: ChatApp, _pilot: Pilot[int]) -> Condition:
    app.actions.run("export", "out.md")
    return lambda: Path("out.md").exists() and len(shown_texts(app, "note")) == 1


async def highlight_another_conversation(app: ChatApp, pilot: Pilot[int]) -> None:
    await pilot.press("ctrl+b", "down")
    open_id = session(app).conversation.id

    def list_others() -> list[str]:
        lists = app.chat.query("#conversations").results(OptionList)
        return [o.id for conversations in lists for o in conversations.options if o.id is not None and o.id != open_id]

    await until_async(list_others)
    conversations = app.chat.query_one("#conversations", OptionList)
    conversations.highlighted = conversations.get_option_index(list_others()[-1])


async def pin(app: ChatApp, pilot: Pilot[int]) -> Condition:
    await highlight_another_conversation(app, pilot)
    await pilot.press("ctrl+s")
    return lambda: any(s.conversation.pinned for s in session(app).store.list_conversations())


async def delete(app: ChatApp, pilot: Pilot[int]) -> Condition:
    n_before = len(session(app).store.list_conversations())
    await highlight_another_conversation(app, pilot)
    await pilot.press("ctrl+x", "ctrl+x")
    return lambda: len(session(app).store.list_conversations()) == n_before - 1


async def search(app: ChatApp, _pilot: Pilot[int]) -> Condition:
    app.actions.run("search", "boats")
    return lambda: is_open(app, "SearchScreen") and lists_options(app)


def screen(command: str, name: str, ends: Callable[[ChatApp], object] = lambda app: True) -> Action:
    async def open_screen(app: ChatApp, _pilot: Pilot[int]) -> Condition:
        app.actions.run(command)
        return lambda: is_open(app, name) and ends(app)

    return open_screen


def lists_options(app: ChatApp) -> object:
    return app.screen.query_one(OptionList).option_count


ACTIONS: dict[str, Action] = {
    "figures": figures, "export": export, "pin": pin, "delete": delete, "search": search,
    "settings": screen("settings", "SettingsScreen", lists_options),
    "models": screen("model", "ModelsScreen", lists_options), "plan": screen("plan", "PlanScreen"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIONS)
async def test_action_ends_before_the_reply_that_was_running(name: str) -> None:
    store = open_ephemeral_store()
    for n in range(2):
        save_conversation(store, [("What about boats?", "They float.")], f"Boats {n}", n + 1)
    script = Script(["A short reply.", "word " * 40], pause_after_tokens=10)
    app = make_scripted_app(store=store, script=script)
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        script.may_continue.clear()
        app.pane.submit("Second")
        await until_async(lambda: len(shown_messages(app)) == 4 and len(shown_messages(app)[-1].text) > 20)
        await until_async(await ACTIONS[name](app, pilot))
        assert app.pane.is_generating
        assert not script.may_continue.is_set()
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert session(app).tree.path[-1].text == "word " * 40


async def test_text_before_a_pause_of_the_model_is_shown() -> None:
    reply = "word " * 40
    script = Script([reply], n_fast_tokens=30, pause_after_tokens=31)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("x", "enter")
        await until_async(lambda: shown_texts(app, "assistant") == [reply[: 31 * CHARS_PER_TOKEN]])
        await pilot.press("escape")
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
