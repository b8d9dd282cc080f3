"""Themes: Textual's, the terminal's own colours, and a person's in TOML files."""

from __future__ import annotations

from typing import Any, Final

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from edgechat import paths
from edgechat.config import Problem, read_toml

DEFAULT_THEME: Final = "textual-dark"
_COLOURS: Final = (
    "primary", "secondary", "warning", "error", "success", "accent", "foreground", "background", "surface", "panel",
)  # fmt: skip


def theme_names() -> list[str]:
    """All there are, a person's own first."""
    own = sorted(p.stem for p in paths.themes_dir().glob("*.toml"))
    return [*own, *(name for name in BUILTIN_THEMES if name not in own)]


def find_theme(name: str) -> tuple[Theme, str]:
    """A theme, and what is wrong with it; then it is the default one."""
    file = paths.themes_dir() / f"{name}.toml"
    if name.isprintable() and not {"/", "\\"} & {*name} and file.is_file():
        theme, problem = _own(name)
        return (theme or BUILTIN_THEMES[DEFAULT_THEME]), problem
    if name in BUILTIN_THEMES:
        return BUILTIN_THEMES[name], ""
    return BUILTIN_THEMES[DEFAULT_THEME], f"theme: there is no {name!r}; there are {', '.join(theme_names())}"


def _own(name: str) -> tuple[Theme | None, str]:
    file = paths.themes_dir() / f"{name}.toml"
    problems: list[Problem] = []
    values = read_toml(file, problems)
    if problems:
        return None, str(problems[0])
    dark = values.pop("dark", True)
    if not isinstance(dark, bool):
        return None, f"{file}: dark is {dark!r}, not true or false"
    for key, value in values.items():
        if key not in _COLOURS:
            return None, f"{file}: there is no {key!r}; a theme has dark, {', '.join(_COLOURS)}"
        try:
            Color.parse(str(value))
        except ColorParseError:
            return None, f"{file}: {key} is {value!r}, which is no colour"
    if "primary" not in values:
        return None, f"{file}: a theme needs primary, such as primary = '#0178d4'"
    colours: dict[str, Any] = {key: str(value) for key, value in values.items()}
    return Theme(name=name, dark=dark, **colours), ""
