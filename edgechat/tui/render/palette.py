"""The colours and signs that rows are drawn with, from the theme."""

from __future__ import annotations

import io
from typing import Final, NamedTuple

from rich.console import Console
from rich.style import Style
from rich.theme import Theme as RichTheme
from textual.color import Color

_ANSI: Final = "ansi_"


class Glyphs(NamedTuple):
    """What is drawn beside letters."""

    bar: str
    cursor: str
    folded: str
    unfolded: str
    bullet: str
    left: str
    right: str
    rule: str
    full: str
    empty: str


UNICODE_GLYPHS: Final = Glyphs("▌", "▌", "▸", "▾", "•", "‹", "›", "─", "█", "░")  # noqa: RUF001
ASCII_GLYPHS: Final = Glyphs("|", ">", "+", "-", "*", "<", ">", "-", "#", ".")


class Palette:
    """Styles by what they mean. Two themes are two palettes."""

    def __init__(self, variables: dict[str, str], *, dark: bool, ansi: bool, ascii_only: bool = False) -> None:
        """`variables` are those of a Textual theme."""

        def style(name: str, *, bold: bool | None = None) -> Style:
            return Style(color=_colour(variables.get(name, ""), background), bold=bold)

        background = variables.get("background", "")
        background = background if background.startswith("#") else "#000000"

        self.glyphs = ASCII_GLYPHS if ascii_only else UNICODE_GLYPHS
        self.user = style("primary")
        self.answer = style("panel") if not ansi else Style(dim=True)
        self.muted = Style(dim=True) if ansi else style("foreground-muted")
        self.error = style("error") if ansi else style("text-error")
        self.warning = style("warning") if ansi else style("text-warning")
        self.cursor = style("accent", bold=True)
        self.code_theme = ("ansi_dark" if dark else "ansi_light") if ansi else ("monokai" if dark else "default")
        surface = None if ansi else _colour(variables.get("surface", ""))
        self.code = Style(bgcolor=surface)
        self.console = Console(
            file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False, _environ={},
            theme=RichTheme({
                "markdown.code": style("text-accent") if not ansi else Style(color="cyan"),
                "markdown.h1": style("primary", bold=True), "markdown.h2": style("primary", bold=True),
                "markdown.h3": Style(bold=True), "markdown.h4": Style(bold=True), "markdown.h5": Style(bold=True),
                "markdown.h6": Style(bold=True), "markdown.hr": self.muted, "markdown.link": Style(underline=True),
                "markdown.link_url": self.muted, "markdown.block_quote": self.muted,
                "markdown.item.bullet": style("primary"), "markdown.item.number": style("primary"),
                "markdown.list": Style(), "markdown.table.border": self.muted, "markdown.table.header": Style(bold=True),
            }),
        )  # fmt: skip


def _colour(value: str, background: str = "#000000") -> str | None:
    """A colour as Rich knows it, on a background if it is half of one; None if it is the terminal's own."""
    value = value.split(maxsplit=1)[0] if value else ""
    if value.startswith(_ANSI):
        name = value.removeprefix(_ANSI)
        return None if name == "default" else name
    if not value.startswith("#"):
        return None
    return Color.parse(background).blend(Color.parse(value[:7]), Color.parse(value).a).hex[:7]
