"""Lists: the highlighted row stays visible, and the text is readable in every theme."""

from __future__ import annotations

import pytest
from rich.color import ColorSystem
from textual.app import App, ComposeResult
from textual.theme import BUILTIN_THEMES
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from edgechat.tui import themes
from edgechat.tui.render.contrast import choose_list_colours, compute_contrast
from edgechat.tui.widgets.entry_list import EntryList
from tests.waiting import until_async

THEMES = {name: theme for name, theme in BUILTIN_THEMES.items() if not theme.ansi}


class ListApp(App[None]):
    """A list above a description whose height depends on the highlighted row."""

    CSS = "EntryList { height: 1fr; } Static { height: auto; }"

    def get_css_variables(self) -> dict[str, str]:
        return themes.add_own_colours(super().get_css_variables(), self.current_theme, "truecolor")

    def compose(self) -> ComposeResult:
        yield EntryList(*(Option(f"row {n}") for n in range(100)))
        yield Static("short")

    def on_option_list_option_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        self.query_one(Static).update("\n".join("description" for _ in range(message.option_index % 7)))


@pytest.mark.parametrize("keys", [["end"], ["pagedown"] * 3, ["end", "home"], ["end", "pageup"], ["up"]])
async def test_highlighted_row_is_visible_after_every_key(keys: list[str]) -> None:
    app = ListApp()
    async with app.run_test(size=(40, 20)) as pilot:
        options = app.query_one(EntryList)
        await pilot.press(*keys)
        await pilot.pause()

        def is_visible() -> bool:
            first = round(options.scroll_y)
            end = first + options.scrollable_content_region.height
            return options.highlighted is not None and first <= options.highlighted < end

        await until_async(is_visible)


@pytest.mark.parametrize("system", [ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT], ids=["truecolor", "256"])
@pytest.mark.parametrize("name", THEMES)
def test_text_of_lists_is_readable(name: str, system: ColorSystem) -> None:
    variables = THEMES[name].to_color_system().generate()
    areas = [variables["background"][:7], variables["surface"][:7]]
    for colour in choose_list_colours(variables["foreground"][:7], *areas, system):
        assert min(compute_contrast(colour, area, system) for area in areas) >= 4.5
