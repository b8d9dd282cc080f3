"""Colour themes: Textual's built-in themes, and themes that the user defines in TOML files."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from edgechat import paths
from edgechat.config import SettingsProblem, read_toml

AUTO: Final = "auto"
"""Theme name that selects the dark or the light theme below, depending on the background of the terminal."""
DEFAULT_THEME: Final = "textual-dark"
LIGHT_THEME: Final = "textual-light"
_SCROLLBAR_SHARE: Final = 0.2
"""Share of the foreground in the colour of a scrollbar; the rest is background."""
_COLOURS: Final = (
    "primary", "secondary", "warning", "error", "success", "accent", "foreground", "background", "surface", "panel",
)  # fmt: skip

AUTO_DESCRIPTION: Final = "light or dark like the terminal"


def theme_names() -> list[str]:
    """Return the names of all themes: `auto`, the user's themes, and Textual's built-in themes."""
    user_themes = sorted(
        p.stem for p in paths.themes_dir().glob("*.toml") if p.stem.isprintable() and p.stem != AUTO
    )  # fmt: skip
    return [AUTO, *user_themes, *(name for name in BUILTIN_THEMES if name not in user_themes)]


def list_theme_labels() -> list[tuple[str, str]]:
    """Return the name of each theme and its label in lists; the label of `auto` explains the name."""
    return [(name, f"{name}: {AUTO_DESCRIPTION}" if name == AUTO else name) for name in theme_names()]


def find_theme(name: str) -> tuple[Theme, str]:
    """Return the theme called `name` and ""; if it is unknown or invalid, the default theme and the problem."""
    if name == AUTO:
        own_file = paths.themes_dir() / f"{AUTO}.toml"
        problem = (
            f"{own_file}: this name is reserved for the setting `auto`; rename the file" if own_file.exists() else ""
        )
        return BUILTIN_THEMES[DEFAULT_THEME], problem
    file = paths.themes_dir() / f"{name}.toml"
    if name.isprintable() and not {"/", "\\"} & {*name} and file.is_file():
        theme, problem = _read_theme_file(file)
        return (theme or BUILTIN_THEMES[DEFAULT_THEME]), problem
    if name in BUILTIN_THEMES:
        return BUILTIN_THEMES[name], ""
    similar_names = difflib.get_close_matches(name, theme_names(), n=1)
    hint = f"did you mean {similar_names[0]}?" if similar_names else f"available: {', '.join(theme_names())}"
    return BUILTIN_THEMES[DEFAULT_THEME], f"theme: unknown theme {name!r}; {hint}"


def _read_theme_file(file: Path) -> tuple[Theme | None, str]:
    """Read and validate a theme file. Return the theme and "", or None and the problem."""
    problems: list[SettingsProblem] = []
    values = read_toml(file, problems)
    if problems:
        return None, str(problems[0])
    is_dark = values.pop("dark", True)
    if not isinstance(is_dark, bool):
        return None, f"{file}: dark must be true or false, not {is_dark!r}"
    for key, value in values.items():
        if key not in _COLOURS:
            return None, f"{file}: unknown key {key!r}; valid keys: dark, {', '.join(_COLOURS)}"
        try:
            Color.parse(str(value))
        except ColorParseError:
            return None, f"{file}: {key}: {value!r} is not a valid colour"
    if "primary" not in values:
        return None, f"{file}: primary is missing. Example: primary = '#0178d4'"
    colours: dict[str, Any] = {key: str(value) for key, value in values.items()}
    return Theme(name=file.stem, dark=is_dark, **colours), ""


def add_own_colours(variables: dict[str, str], theme: Theme, color_system: str | None) -> dict[str, str]:
    """Return the CSS variables of a theme with readable selected text and lists, and grey scrollbars.

    In ANSI themes, selected text is black on cyan. `color_system` is Rich's name of the terminal's colour system, or
    None if the terminal shows no colours.
    """
    names = {"selection-text": "ansi_black", "selection-area": "ansi_cyan"}
    if theme.ansi:
        names |= {"list-text": "ansi_default", "list-quiet": "ansi_default"}
        names |= {"scrollbar": "ansi_bright_black", "scrollbar-background": "ansi_default"}
    else:
        from edgechat.tui.render.contrast import COLOUR_SYSTEMS, choose_list_colours, choose_selection_colours

        system = COLOUR_SYSTEMS.get(color_system or "", COLOUR_SYSTEMS["256"])
        foreground, background, surface = (variables[name][:7] for name in ("foreground", "background", "surface"))
        text, area = choose_selection_colours(variables, system)
        list_text, quiet = choose_list_colours(foreground, background, surface, system)
        # A tinted grey would become a saturated colour in a terminal with 256 colours.
        bar = Color.parse(background).blend(Color.parse(foreground), _SCROLLBAR_SHARE).monochrome.hex
        names = {"selection-text": text, "selection-area": area, "list-text": list_text, "list-quiet": quiet}
        names |= {"scrollbar": bar, "scrollbar-background": background}
    for kind in ("screen", "input"):
        names |= {f"{kind}-selection-foreground": names["selection-text"]}
        names |= {f"{kind}-selection-background": names["selection-area"]}
    for state in ("hover", "active"):
        names |= {f"scrollbar-background-{state}": names["scrollbar-background"]}
    return {**variables, **names, "scrollbar-corner-color": names["scrollbar-background"]}
