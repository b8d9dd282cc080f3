"""Selected text is readable in every theme and in terminals with few colours."""

from __future__ import annotations

import pytest
from rich.color import ColorSystem
from textual.theme import BUILTIN_THEMES

from edgechat.tui.render.contrast import COLOUR_SYSTEMS, choose_selection_colours, compute_contrast

THEMES = {name: theme for name, theme in BUILTIN_THEMES.items() if not theme.ansi}


def test_contrast_has_the_values_of_the_guidelines() -> None:
    assert compute_contrast("#000000", "#ffffff", ColorSystem.TRUECOLOR) == pytest.approx(21)
    assert compute_contrast("#777777", "#ffffff", ColorSystem.TRUECOLOR) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("system", COLOUR_SYSTEMS.values(), ids=COLOUR_SYSTEMS)
@pytest.mark.parametrize("name", THEMES)
def test_selected_text_is_readable(name: str, system: ColorSystem) -> None:
    variables = THEMES[name].to_color_system().generate()
    text, background = choose_selection_colours(variables, system)
    assert compute_contrast(text, background, system) >= 4.5
    assert compute_contrast(background, variables["background"], system) >= 1.4
