"""Colour themes: Textual's built-in themes and the user's own, which are TOML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from edgechat import paths
from edgechat.config import SettingsProblem, read_toml

DEFAULT_THEME: Final = "textual-dark"
_COLOURS: Final = (
    "primary", "secondary", "warning", "error", "success", "accent", "foreground", "background", "surface", "panel",
)  # fmt: skip


def theme_names() -> list[str]:
    """Return the names of all themes, the user's own first."""
    own = sorted(p.stem for p in paths.themes_dir().glob("*.toml"))
    return [*own, *(name for name in BUILTIN_THEMES if name not in own)]


def find_theme(name: str) -> tuple[Theme, str]:
    """Return a theme and an empty string, or the default theme and the problem with the requested one."""
    file = paths.themes_dir() / f"{name}.toml"
    if name.isprintable() and not {"/", "\\"} & {*name} and file.is_file():
        theme, problem = _read_theme_file(file)
        return (theme or BUILTIN_THEMES[DEFAULT_THEME]), problem
    if name in BUILTIN_THEMES:
        return BUILTIN_THEMES[name], ""
    return BUILTIN_THEMES[DEFAULT_THEME], f"theme: unknown theme {name!r}; available: {', '.join(theme_names())}"


def _read_theme_file(file: Path) -> tuple[Theme | None, str]:
    """Read and validate a theme; return the theme or None, and the problem or an empty string."""
    problems: list[SettingsProblem] = []
    values = read_toml(file, problems)
    if problems:
        return None, str(problems[0])
    dark = values.pop("dark", True)
    if not isinstance(dark, bool):
        return None, f"{file}: dark must be true or false, not {dark!r}"
    for key, value in values.items():
        if key not in _COLOURS:
            return None, f"{file}: unknown key {key!r}; a theme has dark, {', '.join(_COLOURS)}"
        try:
            Color.parse(str(value))
        except ColorParseError:
            return None, f"{file}: {key} is {value!r}, which is not a colour"
    if "primary" not in values:
        return None, f"{file}: primary is missing, for example: primary = '#0178d4'"
    colours: dict[str, Any] = {key: str(value) for key, value in values.items()}
    return Theme(name=file.stem, dark=dark, **colours), ""
