"""What every screen shows. `UPDATE_SNAPSHOTS=1` writes the files anew: look at them before you commit.

Colours and places count to the letter with the Textual they were made with; with another one, the letters alone.
"""

from __future__ import annotations

import html
import importlib.metadata
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.hardware import cpu
from edgechat.models import resources, selection
from edgechat.planner.load_plan import manual_plan
from edgechat.planner.machine import Machine
from edgechat.planner.memory import MemoryEstimate
from edgechat.store import ephemeral_store
from edgechat.tui.app import ChatApp
from edgechat.tui.render import entries
from edgechat.tui.screens import chat as chat_module
from edgechat.tui.widgets import sidebar
from tests.tui.app_driver import ask, make_scripted_app, save_conversation, session, wait_until_ready
from tests.waiting import until_async

SNAPSHOTS = Path(__file__).parent / "snapshots"
MADE_WITH = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("textual", "rich", "pygments"))
ANSWER = """Here is a function:

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
Go = Callable[[ChatApp, Pilot[int]], Awaitable[None]]


def compare(app: ChatApp, name: str) -> None:
    """The screen is what the file has."""
    svg = re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="edgechat"))
    file = SNAPSHOTS / f"{name}.svg"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{svg}\n<!-- {MADE_WITH} -->\n", encoding="utf-8")
    kept = file.read_text(encoding="utf-8")
    if MADE_WITH in kept:
        assert f"{svg}\n<!-- {MADE_WITH} -->\n" == kept
    else:
        assert letters(svg) == letters(kept)


def letters(svg: str) -> list[str]:
    """What a person reads in it."""
    return [html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


async def chat(app: ChatApp, pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    await ask(app, "Write a function that adds.\nKeep it short.")
    app.pane.prompt.cursor_blink = False
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (40, 20)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark"])
async def test_the_chat(size: tuple[int, int], theme: str) -> None:
    app = make_scripted_app(ANSWER, theme=theme, problems=["config.toml: top_k: Expected `int`"])
    async with app.run_test(size=size) as pilot:
        await chat(app, pilot)
        compare(app, f"chat-{theme}-{size[0]}x{size[1]}")


async def test_the_chat_in_ascii() -> None:
    app = make_scripted_app(ANSWER, ascii=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await chat(app, pilot)
        await pilot.press("escape")
        text = "".join(letters(app.export_screenshot()))
        assert text.replace("\xa0", " ").isascii()
        compare(app, "chat-ascii")


async def figures(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+t", "escape")
    await until_async(lambda: app.pane.shows_figures)


async def alternatives(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    app.actions.run("retry", "")
    await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 3)
    await pilot.press("escape")


async def dies(app: ChatApp, pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    app.pane.prompt.load("Write a function that adds.")
    await pilot.press("enter")
    await until_async(lambda: not app.pane.is_busy)
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
    await until_async(lambda: app.chat.query_one("#conversations").option_count > 3)  # type: ignore[attr-defined]
    await pilot.press("down")


async def search(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+f", *"boats")
    await until_async(lambda: app.screen.query("OptionList").first().option_count)  # type: ignore[attr-defined]
    await pilot.press("down")


async def commands(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("/", "r", "e")
    await until_async(lambda: app.chat.query("CompletionPopup") and app.chat.query_one("CompletionPopup").display)


async def said_before(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+r")
    await until_async(lambda: app.screen.query("PickerScreen OptionList"))
    await pilot.press("down")


async def palette(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    await pilot.press("ctrl+p", *"expo")
    await until_async(lambda: app.screen.query("CommandList") and app.screen.query_one("CommandList").option_count == 1)  # type: ignore[attr-defined]
    await pilot.pause()


async def plan(app: ChatApp, pilot: Pilot[int]) -> None:
    await chat(app, pilot)
    estimate = MemoryEstimate(weights=97_000_000, repacked=0, kv_cache=48_000_000, compute=23_000_000)
    session(app).model.plan = manual_plan(
        "scripted.gguf", n_threads=2, n_ctx=2048, estimate=estimate, trades=("2048 tokens of context instead of 8192",),
        reasons={"n_ctx": "as much as fits", "n_threads": "as set"},
    )  # fmt: skip
    await pilot.press("f3")


async def personas(app: ChatApp, pilot: Pilot[int]) -> None:
    paths.personas_dir().mkdir(parents=True)
    for name in ("cook", "pirate"):
        (paths.personas_dir() / f"{name}.toml").write_text('system_prompt = "Be."\n')
    await chat(app, pilot)
    await pilot.press("f4")


SCREENS: dict[str, Go] = {
    "figures": figures, "alternatives": alternatives, "dies": dies, "help": help_, "settings": settings,
    "conversations": conversations, "search": search, "commands": commands, "said-before": said_before, "palette": palette,
    "plan": plan, "personas": personas,
}  # fmt: skip


async def test_the_list_of_conversations_takes_all_of_a_narrow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidebar, "day_heading", lambda at_ms, today: "today")
    store = ephemeral_store()
    for number in range(3):
        save_conversation(store, [("What of boats?", "They float.")], f"Boats {number}", number)
    app = make_scripted_app(ANSWER, store=store)
    async with app.run_test(size=(40, 20)) as pilot:
        await conversations(app, pilot)
        await pilot.pause()
        compare(app, "conversations-40x20")


@pytest.mark.parametrize("name", SCREENS)
async def test_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidebar, "day_heading", lambda at_ms, today: "today")
    monkeypatch.setattr(
        entries, "performance_summary", lambda message: "57 tokens, 42 tokens/s, first after 0.08 s, 7 of 14 cached"
    )
    monkeypatch.setenv("TZ", "UTC")
    # What is typed is counted once it pauses: on a busy machine that would be before the picture is taken.
    monkeypatch.setattr(chat_module, "TYPING_PAUSE_S", 1000.0)
    store = ephemeral_store()
    for number in range(3):
        save_conversation(store, [("What of boats?", f"Boats float, number {number}.")], f"Boats {number}", number)
    app = make_scripted_app(store=store, script=Script([ANSWER], dies_after=12 if name == "dies" else None))
    async with app.run_test(size=(80, 24)) as pilot:
        await SCREENS[name](app, pilot)
        for field in app.screen.query("Input"):
            field.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()
        compare(app, name)


HERE = Machine(available_bytes=8_000_000_000, n_threads=4, read_bps=10e9)


@pytest.mark.parametrize("name", ["models", "first"])
async def test_a_screen_about_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of this machine nothing is to be seen.
    for module in (resources, selection):
        monkeypatch.setattr(module, "current_machine", lambda *args: HERE)
    monkeypatch.setattr(selection, "measured_speeds", lambda: None)
    monkeypatch.setattr(selection, "measure_speeds", lambda: None)
    monkeypatch.setattr(cpu, "read_cpu", lambda: cpu.Cpu(model="Some CPU", flags="", microcode=""))
    app = make_scripted_app(ANSWER)
    app.is_first_run = name == "first"
    async with app.run_test(size=(80, 24)) as pilot:
        if name == "models":
            await wait_until_ready(app)
            await pilot.press("ctrl+o")
        n_options = 20 if name == "models" else 1  # the catalogue follows the installed models
        await until_async(lambda: any(options.option_count > n_options for options in app.screen.query(OptionList)))
        for field in app.screen.query("Input"):
            field.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()
        compare(app, name)
