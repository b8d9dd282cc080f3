"""Actions that must not wait for a running reply: each takes less than 0.3 s of CPU time while the reply continues."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
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
    make_scripted_app,
    save_conversation,
    screen_text,
    session,
    shown_messages,
    shown_texts,
    wait_until_ready,
)
from tests.waiting import until_async

MAX_S = 0.3
"""Maximum of the CPU time of all threads; other programs do not change it."""
MAX_WAIT_S = 3.0
"""Maximum of the time that passes. An action that waited for the reply would take minutes."""
ATTEMPTS = 3
"""A machine under load delays any action now and then; the fastest attempt counts."""

Attempt = Callable[[ChatApp, Pilot[int]], AsyncIterator[Callable[[], object]]]
"""Starts the action once per iteration, and yields the condition that ends it."""


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)
    monkeypatch.chdir(tmp_path)


async def is_shown(app: ChatApp, name: str) -> Callable[[], object]:
    return lambda: type(app.screen).__name__ == name and app.screen.is_mounted


async def figures(app: ChatApp, _pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
    for n in range(ATTEMPTS):
        app.actions.run("figures")
        yield lambda: ("cached" in screen_text(app)) == (n % 2 == 0)  # noqa: B023


async def export(app: ChatApp, _pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
    for n in range(ATTEMPTS):
        app.actions.run("export", f"out-{n}.md")
        yield lambda: Path(f"out-{n}.md").exists() and len(shown_texts(app, "note")) == n + 1  # noqa: B023


async def highlighted(app: ChatApp, pilot: Pilot[int], key: str) -> None:
    """Press a key on the second conversation of the list; the first is the open one."""
    if app.chat.sidebar is None:
        await pilot.press("ctrl+b", "down")
        await until_async(lambda: app.chat.query_one("#conversations", OptionList).option_count > ATTEMPTS + 1)
    conversations = app.chat.query_one("#conversations", OptionList)
    open_id = session(app).conversation.id
    ids = [o.id for o in conversations.options if o.id is not None and o.id != open_id]
    conversations.highlighted = conversations.get_option_index(ids[-1] or "")
    await pilot.press(key)


async def pin(app: ChatApp, pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
    store = session(app).store
    for n in range(ATTEMPTS):
        await highlighted(app, pilot, "ctrl+s")
        yield lambda: sum(s.conversation.pinned for s in store.list_conversations()) == n + 1  # noqa: B023


async def delete(app: ChatApp, pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
    store = session(app).store
    n_before = len(store.list_conversations())
    for n in range(ATTEMPTS):
        await highlighted(app, pilot, "ctrl+x")
        await pilot.press("ctrl+x")
        yield lambda: len(store.list_conversations()) == n_before - n - 1  # noqa: B023


async def search(app: ChatApp, _pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
    for _ in range(ATTEMPTS):
        app.actions.run("search", "boats")
        is_open = await is_shown(app, "SearchScreen")
        yield lambda: is_open() and app.screen.query_one(OptionList).option_count  # noqa: B023
        app.pop_screen()


def screen(command: str, name: str, ends: Callable[[ChatApp], object] = lambda app: True) -> Attempt:
    async def attempts(app: ChatApp, _pilot: Pilot[int]) -> AsyncIterator[Callable[[], object]]:
        for _ in range(ATTEMPTS):
            app.actions.run(command)
            is_open = await is_shown(app, name)
            yield lambda: is_open() and ends(app)  # noqa: B023
            app.pop_screen()

    return attempts


def lists_options(app: ChatApp) -> object:
    return app.screen.query_one(OptionList).option_count


ACTIONS: dict[str, Attempt] = {
    "figures": figures, "export": export, "pin": pin, "delete": delete, "search": search,
    "settings": screen("settings", "SettingsScreen", lists_options),
    "models": screen("model", "ModelsScreen", lists_options), "plan": screen("plan", "PlanScreen"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIONS)
async def test_an_action_beside_a_reply_takes_less_than_0_3_s(name: str) -> None:
    store = open_ephemeral_store()
    for n in range(2 * ATTEMPTS):
        save_conversation(store, [("What about boats?", "They float.")], f"Boats {n}", n + 1)
    script = Script(["A short reply.", "word " * 20_000], token_interval_s=0.02)
    app = make_scripted_app(store=store, script=script)
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        app.pane.submit("Second")
        await until_async(lambda: len(shown_messages(app)) == 4 and len(shown_messages(app)[-1].text) > 20)
        n_chars = len(shown_messages(app)[-1].text)
        cpu_s, wait_s = [], []
        cpu_started_at, started_at = time.process_time(), time.monotonic()
        async for is_done in ACTIONS[name](app, pilot):
            await until_async(is_done, interval_s=0.002)
            cpu_s.append(time.process_time() - cpu_started_at)
            wait_s.append(time.monotonic() - started_at)
            assert app.pane.is_generating
            await pilot.pause(0.1)
            cpu_started_at, started_at = time.process_time(), time.monotonic()
        assert min(cpu_s) < MAX_S, cpu_s
        assert min(wait_s) < MAX_WAIT_S, wait_s
        await until_async(lambda: len(shown_messages(app)[-1].text) > n_chars)
        assert app.pane.is_generating


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
