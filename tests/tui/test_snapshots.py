"""Screenshots of every screen, compared with SVG files. `UPDATE_SNAPSHOTS=1` rewrites the files: review them.

A screenshot must match exactly if Textual, Rich and Pygments have the versions that made the file; with other
versions only its text is compared.
"""

from __future__ import annotations

import asyncio
import html
import importlib.metadata
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from edgechat import paths
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.hardware import cpu
from edgechat.models import resources, selection
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.machine import Machine
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.throughput import DeviceRates
from edgechat.store import open_ephemeral_store, open_store
from edgechat.tui import palette_sources, search_rows
from edgechat.tui.app import ChatApp
from edgechat.tui.render import entries
from edgechat.tui.screens import chat as chat_module
from edgechat.tui.widgets import sidebar
from tests.tui.app_driver import (
    ask,
    make_scripted_app,
    save_conversation,
    screen_text,
    session,
    wait_for_completions,
    wait_for_jobs,
    wait_until_ready,
)
from tests.tui.drawing import until_async, wait_until_drawn

pytestmark = pytest.mark.usefixtures("independent_of_load")
SNAPSHOTS = Path(__file__).parent / "snapshots"
SETTLE_S = 20.0
VERSIONS = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("textual", "rich", "pygments"))
SECOND_REPLY = """Use `sum`, or count with **`Counter`**:

1. `sum(numbers)` adds numbers of any kind, and starts at 0.
2. `math.fsum(numbers)` loses no precision.

> The first is enough for whole numbers.
"""
REPLY = """Here is a function:

```python
def add(a: int, b: int) -> int:
    return a + b  # the sum
```

| a | b | sum |
|---|---|-----|
| 1 | 2 | 3   |

1. *Short*, and **to the point**
2. `inline`
   - nested

> quoted
"""
OpenScreen = Callable[[ChatApp, Pilot[int]], Awaitable[None]]


@pytest.fixture(autouse=True)
def truecolor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw as a terminal with all colours does, whatever terminal runs the tests."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


async def compare(app: ChatApp, name: str) -> None:
    """Wait until the screen equals a snapshot file; fail if it does not within `SETTLE_S`. Or write the file.

    Threads and timers can change the screen after all events are handled.
    """
    file = SNAPSHOTS / f"{name}.svg"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        await asyncio.sleep(1)
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{draw(app)}\n<!-- {VERSIONS} -->\n", encoding="utf-8")
    expected, _, versions = file.read_text(encoding="utf-8").partition("\n<!-- ")
    read: Callable[[str], object] = str if versions == f"{VERSIONS} -->\n" else svg_texts
    deadline = time.monotonic() + SETTLE_S
    while read(draw(app)) != read(expected) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        await wait_until_drawn()
    svg = draw(app)
    assert svg_texts(svg) == svg_texts(expected)
    assert read(svg) == read(expected)


def draw(app: ChatApp) -> str:
    """Return a screenshot that is the same for the same screen."""
    return re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="edgechat"))


def svg_texts(svg: str) -> list[str]:
    """Return the visible texts of a screenshot."""
    return [html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def fix_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the dates of lists, which depend on the day of the test."""
    monkeypatch.setattr(sidebar, "format_day_heading", lambda at_ms, today: "Today")
    monkeypatch.setattr(sidebar, "format_short_date", lambda at_ms, today: "14:05")
    monkeypatch.setattr(palette_sources, "format_date_and_time", lambda at_ms, today: "Today 14:05")
    monkeypatch.setattr(search_rows, "format_date_and_time", lambda at_ms, today: "Today 14:05")


async def chat(app: ChatApp, _pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    await ask(app, "Write a function that adds.\nKeep it short.")
    app.pane.prompt.cursor_blink = False
    await wait_for_jobs(app)  # the context is measured after the reply


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (40, 20)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark"])
async def test_chat(size: tuple[int, int], theme: str) -> None:
    app = make_scripted_app(REPLY, theme=theme, problems=["config.toml: top_k: must be a whole number"])
    async with app.run_test(size=size) as pilot:
        await chat(app, pilot)
        await compare(app, f"chat-{theme}-{size[0]}x{size[1]}")


async def test_chat_in_ascii() -> None:
    app = make_scripted_app(REPLY, ascii=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await chat(app, pilot)
        await pilot.press("escape")
        text = "".join(svg_texts(app.export_screenshot()))
        assert text.replace("\xa0", " ").isascii()
        await compare(app, "chat-ascii")


async def test_earlier_reply(home: Path) -> None:
    store = open_store()
    november_3 = 1_762_171_200_000  # at noon, in 2025
    save_conversation(store, [("What is the capital of France?", "The capital is **Paris**.")], at_ms=november_3)
    app = make_scripted_app("It is Paris, on the Seine.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Can you tell me what the capital of France is?")
        await until_async(lambda: app.pane.earlier_offer is not None)
        app.pane.prompt.cursor_blink = False
        await wait_for_jobs(app)
        await compare(app, "earlier-offer-80x24")
        await pilot.press("f6")
        await until_async(lambda: len(app.pane.messages) == 2 and app.pane.messages[1].alternative == (2, 2))
        app.pane.footer.show_notice("")
        await wait_for_jobs(app)
        await compare(app, "earlier-reply-80x24")


async def statistics(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+t", "escape")
    await until_async(lambda: app.pane.shows_figures)


async def alternatives(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    app.actions.run("retry", "")
    await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 3)
    await pilot.press("escape")


async def second_reply(app: ChatApp, pilot: Pilot[int]) -> None:
    session_ = await chat_with_second_reply(app, pilot)
    await until_async(lambda: not app.pane.is_replying and session_.second.growing_reply is None)


async def chat_with_second_reply(app: ChatApp, pilot: Pilot[int]) -> ScriptedSession:
    """Ask a question, and let a second model answer it, too."""
    await chat(app, pilot)
    session_ = session(app)
    assert isinstance(session_, ScriptedSession)
    session_.second_script = Script([SECOND_REPLY])
    app.actions.run("also", "starter")
    await until_async(lambda: len(session_.tree) == 3)
    return session_


async def engine_died(app: ChatApp, pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    app.pane.prompt.load("Write a function that adds.")
    await pilot.press("enter")
    await until_async(lambda: not app.pane.is_busy)
    # The context is measured once more after the reply, of which 12 tokens were counted.
    await until_async(lambda: app.pane.status_line.context_tokens > 12)
    app.pane.prompt.cursor_blink = False


async def help_(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("f1")


async def settings(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("f2")


async def conversations(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+b")
    await until_async(lambda: app.screen.query_one("#conversations").option_count > 3)  # type: ignore[attr-defined]
    await pilot.press("down")


async def search(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+f")
    app.screen.query_one(Input).insert_text_at_cursor("boats")  # at once, so that there is one search
    await until_async(lambda: app.screen.query("OptionList").first().option_count)  # type: ignore[attr-defined]
    await pilot.press("down")


async def completion(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("/", "r", "e")
    await wait_for_completions(app)


async def prompt_history(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+r")
    await until_async(lambda: app.screen.query("PickerScreen OptionList"))
    await pilot.press("down")


async def command_palette(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+p", *"export")
    await until_async(lambda: [options.option_count for options in app.screen.query(OptionList)] == [1])
    await pilot.pause()


async def plan(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    estimate = MemoryEstimate(weights=97_000_000, repacked_weights=0, kv_cache=48_000_000, compute=23_000_000)
    session(app).model.plan = make_manual_plan(
        "scripted.gguf", n_threads=2, n_ctx=2048, estimate=estimate,
        concessions=("2048 tokens of context instead of 8192",),
        reasons={"n_ctx": "as much as fits", "n_threads": "as set"},
    )  # fmt: skip
    await pilot.press("f3")
    await until_async(lambda: "is the only installed model" in screen_text(app))


async def personas(app: ChatApp, pilot: Pilot[int]) -> None:
    paths.personas_dir().mkdir(parents=True)
    for name in ("cook", "pirate"):
        (paths.personas_dir() / f"{name}.toml").write_text('system_prompt = "Be."\n')
    await chat(app, pilot)
    await pilot.press("f4")


SCREENS: dict[str, OpenScreen] = {
    "statistics": statistics, "alternatives": alternatives, "second-reply": second_reply,
    "engine-died": engine_died, "help": help_,
    "settings": settings, "conversations": conversations, "search": search, "completion": completion,
    "prompt-history": prompt_history, "command-palette": command_palette, "plan": plan, "personas": personas,
}  # fmt: skip


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 60)])
async def test_comparison_of_a_complete_and_a_growing_reply(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        entries, "format_performance", lambda message: "57 tokens, 42 tokens/s, first after 0.08 s, 7 of 14 cached"
    )
    app = make_scripted_app(REPLY)
    async with app.run_test(size=size) as pilot:
        await chat(app, pilot)
        session_ = session(app)
        assert isinstance(session_, ScriptedSession)
        session_.second_script = script = Script([SECOND_REPLY], pause_after_tokens=40)
        script.may_continue.clear()
        app.actions.run("also", "starter")
        await until_async(lambda: (reply := session_.second.growing_reply) and len(reply.text) == 160)
        await pilot.press("f9")
        await until_async(lambda: "(growing)" in screen_text(app) and "Counter" in screen_text(app))
        await compare(app, f"compare-{size[0]}x{size[1]}")
        script.may_continue.set()


async def test_sidebar_covers_a_narrow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_dates(monkeypatch)
    store = open_ephemeral_store()
    for number in range(3):
        save_conversation(store, [("What of boats?", "They float.")], f"Boats {number}", number)
    app = make_scripted_app(REPLY, store=store)
    async with app.run_test(size=(40, 20)) as pilot:
        await conversations(app, pilot)
        await pilot.pause()
        await compare(app, "conversations-40x20")


@pytest.mark.parametrize("name", SCREENS)
async def test_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fix_dates(monkeypatch)
    monkeypatch.setattr(
        entries, "format_performance", lambda message: "57 tokens, 42 tokens/s, first after 0.08 s, 7 of 14 cached"
    )
    monkeypatch.setenv("TZ", "UTC")
    # On a slow machine the context use would be updated before the screenshot is taken.
    monkeypatch.setattr(chat_module, "TYPING_PAUSE_S", 1000.0)
    store = open_ephemeral_store()
    for number in range(3):
        save_conversation(store, [("What of boats?", f"Boats float, number {number}.")], f"Boats {number}", number)
    script = Script([REPLY], crash_after_tokens=12 if name == "engine-died" else None)
    app = make_scripted_app(store=store, script=script)
    async with app.run_test(size=(80, 24)) as pilot:
        await SCREENS[name](app, pilot)
        for field in app.screen.query("Input"):
            field.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()
        await compare(app, name)


MACHINE = Machine(available_bytes=8_000_000_000, n_threads=4, rates=DeviceRates(read_bytes_per_s=10e9))


@pytest.mark.parametrize("name", ["models", "first-run"])
async def test_screen_with_facts_about_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The screenshot must not depend on the machine that runs the test.
    for module in (resources, selection):
        monkeypatch.setattr(module, "current_machine", lambda *args: MACHINE)
    monkeypatch.setattr(selection, "load_measured_speeds", lambda: None)
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)
    monkeypatch.setattr(cpu, "read_cpu", lambda: cpu.Cpu(model="Some CPU", flags="", microcode=""))
    app = make_scripted_app(REPLY)
    app.is_first_run = name == "first-run"
    async with app.run_test(size=(80, 24)) as pilot:
        if name == "models":
            await wait_until_ready(app)
            await pilot.press("ctrl+o")
        if name == "models":  # the list has all rows before the plans, which the details below it show
            await until_async(lambda: "of 8.00 GB" in screen_text(app))
        else:
            await until_async(lambda: any(options.option_count > 2 for options in app.screen.query(OptionList)))
        for field in app.screen.query("Input"):
            field.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()
        await compare(app, name)
