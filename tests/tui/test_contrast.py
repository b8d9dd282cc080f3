"""Every text on the screen is readable in every theme, with 16.7 million, 256 and 16 colours; scrollbars are quiet.

`make test` checks the screens beside the chat in every fourth theme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest
from rich.color import Color, ColorSystem, ColorType
from textual.containers import ScrollableContainer
from textual.geometry import Offset
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.theme import BUILTIN_THEMES

from edgechat.models import selection
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.memory import MemoryEstimate
from edgechat.tui import themes
from edgechat.tui.app import ChatApp
from edgechat.tui.readable_text import ReadableText
from edgechat.tui.render.contrast import COLOUR_SYSTEMS, MIN_TEXT_CONTRAST, compute_rgb_contrast
from tests.fuzzing import shorten
from tests.tui.app_driver import (
    ask,
    is_open,
    make_scripted_app,
    screen_text,
    session,
    wait_for_completions,
    wait_until_ready,
)
from tests.tui.drawing import until_async
from tests.tui.model_lists import set_machine

if TYPE_CHECKING:
    from rich.style import Style
    from textual.pilot import Pilot

REPLY = (
    "# Heading one\n\n## Heading two\n\nText with *emphasis*, **weight**, `code`, ~~strike~~ and a [link](http://x/y).\n\n"
    "1. first\n2. second\n\n- item\n\n> a quote\n\n| Name | Size |\n|---|---|\n| one | 1 |\n\n"
    "```python\nimport os  # a comment\n\n\n@decorator\nclass Name(Base):\n"
    '    """Words."""\n\n    def method(self, x: int = 12) -> str:\n        return f"{x!r} text" + os.name\n```\n\n'
    "```diff\n- removed\n+ added\n```\n![picture](http://x/p.png)\n"
)
THEMES = [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi]


def drawn_styles(app: ChatApp) -> dict[Style, str]:
    """Return the styles in which letters and digits are drawn on the screen, each with one of its texts."""
    return {
        segment.style: segment.text
        for strip in app.screen._compositor.render_strips()
        for segment in strip
        if segment.style is not None and any(map(str.isalnum, segment.text))
    }


def unreadable_texts(app: ChatApp, system: ColorSystem) -> list[str]:
    problems = []
    for style, text in drawn_styles(app).items():
        colour, area = style.color, style.bgcolor
        if colour is None or area is None or colour.type != ColorType.TRUECOLOR or area.type != ColorType.TRUECOLOR:
            problems.append(f"{text!r} has no colours: {style}")
        elif style.dim:
            problems.append(f"{text!r} is dim: {style}")
        elif (contrast := compute_rgb_contrast(colour, area, system)) < MIN_TEXT_CONTRAST:
            problems.append(f"{text!r} has a contrast of {contrast:.2f}: {style}")
    return problems


async def check_themes(app: ChatApp, pilot: Pilot[int], checked_themes: Sequence[str] = THEMES) -> None:
    for theme in checked_themes:
        app.theme = theme
        await pilot.pause()
        for name, system in COLOUR_SYSTEMS.items():
            app._readable_text = ReadableText(lambda name=name: name)  # type: ignore[misc]
            assert not unreadable_texts(app, system), (theme, name)


async def test_chat_is_readable_in_every_theme() -> None:
    app = make_scripted_app(REPLY)
    async with app.run_test(size=(100, 70)) as pilot:
        await wait_until_ready(app)
        await ask(app, "A question")
        app.pane.add_error("An error")
        app.pane.add_note("A note")
        app.notify("A notice", severity="warning")
        app.actions.run("conversations")
        app.pane.prompt.load("unsent text")
        transcript = app.pane.transcript
        app.screen.selections = {transcript: Selection(Offset(2, 3), Offset(30, 12))}
        await check_themes(app, pilot)


def has_rows(screen: str, *texts: str) -> Callable[[ChatApp], bool]:
    """Return a condition: this screen is open, and shows all of the texts."""
    return lambda app: is_open(app, screen) and all(text in screen_text(app) for text in texts)


SCREENS: dict[str, tuple[Sequence[str], Callable[[ChatApp], bool]]] = {
    "settings": (["settings"], has_rows("SettingsScreen", "temperature")),
    "help": (["help"], has_rows("HelpScreen", "Ctrl+")),
    "models": (["models"], has_rows("ModelsScreen", "qwen3.5-4b", "tokens/s")),
    "search": (["search", "question"], has_rows("SearchScreen", "A question")),
    "palette": (["palette"], has_rows("CommandPaletteScreen", "conversation", "A question")),
    "picker": (["theme"], has_rows("PickerScreen", "gruvbox")),
    "plan": (["plan"], has_rows("PlanScreen", "Model: ", "Memory")),
}


@pytest.mark.parametrize("name", SCREENS)
async def test_screens_are_readable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    (command, *arguments), is_filled = SCREENS[name]
    app = make_scripted_app("An answer to the question")
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_until_ready(app)
        await ask(app, "A question")
        estimate = MemoryEstimate(weights=97_000_000, repacked_weights=0, kv_cache=48_000_000, compute=23_000_000)
        session(app).model.plan = make_manual_plan(
            "scripted.gguf", n_threads=2, n_ctx=2048, estimate=estimate, concessions=("2048 tokens",),
            reasons={"n_ctx": "as much as fits"},
        )  # fmt: skip
        if command == "palette":
            await pilot.press("ctrl+p")
        else:
            app.actions.run(command, *arguments)
        await until_async(lambda: is_filled(app), description=lambda: screen_text(app))
        await check_themes(app, pilot, THEMES[:: shorten(1, 4)])


async def test_first_run_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)
    app = make_scripted_app()
    app.is_first_run = True
    async with app.run_test(size=(100, 40)) as pilot:
        await until_async(lambda: has_rows("FirstRunScreen", "This machine", "Installed: starter")(app))
        await check_themes(app, pilot, THEMES[:: shorten(1, 4)])


@pytest.mark.parametrize("name", THEMES)
def test_scrollbars_are_grey_with_256_colours(name: str) -> None:
    theme = BUILTIN_THEMES[name]
    variables = themes.add_own_colours(theme.to_color_system().generate(), theme, "256")
    red, green, blue = Color.parse(variables["scrollbar"]).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()
    assert max(red, green, blue) - min(red, green, blue) <= 12
    assert variables["scrollbar"] != variables["background"]


def wide_scrollbars(app: ChatApp) -> list[str]:
    """Return all scrollable widgets of the screen whose vertical scrollbar is not one cell wide."""
    return [
        str(widget)
        for widget in app.screen.query("*")
        if isinstance(widget, (ScrollView, ScrollableContainer)) and widget.styles.scrollbar_size_vertical != 1
    ]


@pytest.mark.parametrize("theme", ["textual-dark", "ansi-dark"])
async def test_all_scrollbars_are_one_cell_wide(theme: str) -> None:
    app = make_scripted_app(theme=theme)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("/")
        await wait_for_completions(app)
        assert not wide_scrollbars(app)
        await pilot.press("escape", "ctrl+u", "ctrl+b")
        await until_async(lambda: app.chat.query("Sidebar OptionList"))
        assert not wide_scrollbars(app)
        for command, screen in (("plan", "PlanScreen"), ("help", "HelpScreen"), ("theme", "PickerScreen")):
            app.actions.run(command)
            await until_async(lambda: is_open(app, screen))  # noqa: B023
            assert app.screen.query("ScrollView, ScrollableContainer")
            assert not wide_scrollbars(app)
            app.pop_screen()
