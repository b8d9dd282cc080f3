"""Every text on the screen is readable in every theme, with 16.7 million, 256 and 16 colours; scrollbars are quiet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from rich.color import Color, ColorSystem, ColorType
from textual.geometry import Offset
from textual.selection import Selection
from textual.theme import BUILTIN_THEMES

from edgechat.tui import themes
from edgechat.tui.app import ChatApp
from edgechat.tui.readable_text import ReadableText
from edgechat.tui.render.contrast import COLOUR_SYSTEMS, MIN_TEXT_CONTRAST, compute_rgb_contrast
from tests.tui.app_driver import ask, is_open, make_scripted_app, wait_until_ready
from tests.waiting import until_async

if TYPE_CHECKING:
    from rich.style import Style
    from textual.pilot import Pilot
    from textual.widget import Widget

REPLY = (
    "# Heading one\n\n## Heading two\n\nText with *emphasis*, **weight**, `code`, ~~strike~~ and a [link](http://x/y).\n\n"
    "1. first\n2. second\n\n- item\n\n> a quote\n\n| Name | Size |\n|---|---|\n| one | 1 |\n\n"
    "```python\nimport os  # a comment\n\n\n@decorator\nclass Name(Base):\n"
    '    """Words."""\n\n    def method(self, x: int = 12) -> str:\n        return f"{x!r} text" + os.name\n```\n\n'
    "```diff\n- removed\n+ added\n```\n![picture](http://x/p.png)\n"
)
THEMES = [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi]


def drawn_styles(app: ChatApp) -> Iterator[tuple[str, Style]]:
    """Yield all texts on the screen that have letters or digits, with their styles as they are drawn."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            if segment.style is not None and any(map(str.isalnum, segment.text)):
                yield segment.text, segment.style


def unreadable_texts(app: ChatApp, system: ColorSystem) -> list[str]:
    problems = []
    for text, style in drawn_styles(app):
        colour, area = style.color, style.bgcolor
        if colour is None or area is None or colour.type != ColorType.TRUECOLOR or area.type != ColorType.TRUECOLOR:
            problems.append(f"{text!r} has no colours: {style}")
        elif style.dim:
            problems.append(f"{text!r} is dim: {style}")
        elif (contrast := compute_rgb_contrast(colour, area, system)) < MIN_TEXT_CONTRAST:
            problems.append(f"{text!r} has a contrast of {contrast:.2f}: {style}")
    return problems


async def check_all_themes(app: ChatApp, pilot: Pilot[int]) -> None:
    for theme in THEMES:
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
        await check_all_themes(app, pilot)


@pytest.mark.parametrize(
    ("command", "screen"),
    [("settings", "SettingsScreen"), ("help", "HelpScreen"), ("models", "ModelsScreen"), ("search", "SearchScreen")],
)
async def test_screens_are_readable_in_every_theme(command: str, screen: str) -> None:
    app = make_scripted_app("An answer to the question")
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_until_ready(app)
        await ask(app, "A question")
        app.actions.run(command)
        await until_async(lambda: is_open(app, screen))
        await check_all_themes(app, pilot)


@pytest.mark.parametrize("name", THEMES)
def test_scrollbars_are_grey_with_256_colours(name: str) -> None:
    theme = BUILTIN_THEMES[name]
    variables = themes.add_own_colours(theme.to_color_system().generate(), theme, "256")
    red, green, blue = Color.parse(variables["scrollbar"]).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()
    assert max(red, green, blue) - min(red, green, blue) <= 12
    assert variables["scrollbar"] != variables["background"]


@pytest.mark.parametrize("theme", ["textual-dark", "ansi-dark"])
async def test_all_scrollbars_are_one_cell_wide(theme: str) -> None:
    app = make_scripted_app(theme=theme)
    async with app.run_test():
        await wait_until_ready(app)
        widgets: list[Widget] = [app.pane.prompt, app.pane.transcript]
        assert {widget.styles.scrollbar_size_vertical for widget in widgets} == {1}
