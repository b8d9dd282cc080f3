"""Colours, text styles and glyphs for rendered rows, derived from the Textual theme."""

from __future__ import annotations

import io
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.theme import Theme as RichTheme
from textual.color import Color

_ANSI_PREFIX: Final = "ansi_"
CONTINUES_LINE: Final = "continues_line"
"""Key in the metadata of a style, which marks a row that continues the line of code above it."""
CITATION: Final = "citation"
"""Key in the metadata of a style: index of the citation at these cells, or `ALL_PASSAGES`."""
ALL_PASSAGES: Final = -1
"""Value for the line that stands for all passages of a message."""


class Glyphs(NamedTuple):
    """Characters for bars, cursors and markers."""

    bar: str
    cursor: str
    collapsed: str
    expanded: str
    left: str
    right: str
    wrap: str
    """Mark at the start of a row that continues a line of code."""
    doubt: str
    """Mark after a citation that the user should check."""


UNICODE_GLYPHS: Final = Glyphs("▌", "▌", "▸", "▾", "‹", "›", "↪", "⚠")  # noqa: RUF001
ASCII_GLYPHS: Final = Glyphs("|", ">", "+", "-", "<", ">", "\\", "!")


class Palette:
    """Text styles and glyphs of one theme, and a Rich console that renders with these styles."""

    def __init__(self, variables: dict[str, str], *, dark: bool, ansi: bool, ascii_only: bool = False) -> None:
        """Derive styles from the CSS `variables` of a theme; with `ansi`, use the terminal's 16 colours.

        The variables `selection-text` and `selection-area`, if present, are the colours of selected text.
        """

        def make_style(name: str, *, bold: bool | None = None) -> Style:
            return Style(color=_to_rich_colour(variables.get(name, ""), background), bold=bold)

        background = variables.get("background", "")
        background = background if background.startswith("#") else "#000000"

        self.glyphs = ASCII_GLYPHS if ascii_only else UNICODE_GLYPHS
        self.user = make_style("primary")
        self.user_text = Style(bold=True) if ansi else make_style("text-primary", bold=True)
        self.list_mark = make_style("primary" if ansi else "text-primary")
        """Style of bullets, numbers and boxes in lists."""
        self.muted = Style(dim=True) if ansi else make_style("foreground-muted")
        self.error = make_style("error") if ansi else make_style("text-error")
        self.citation = self.list_mark + Style(underline=True)
        self.doubt = make_style("warning" if ansi else "text-warning") + Style(underline=True)
        """Style of a citation that the user should check."""
        self.cursor = make_style("accent" if ansi else "text-accent", bold=True)
        self.selection = Style(color="default", bgcolor="default", dim=False, reverse=True)
        """Style of selected text; replaces the text's own colours."""
        if not ansi and "selection-text" in variables:
            self.selection = Style(color=variables["selection-text"], bgcolor=variables["selection-area"], dim=False)
        self.code_theme = ("ansi_dark" if dark else "ansi_light") if ansi else ("monokai" if dark else "default")
        self.code = Style(bgcolor=None if ansi else _to_rich_colour(variables.get("surface", "")))
        self._code_styles: dict[Any, Style] = {}
        self.wrap_mark = Segment(self.glyphs.wrap, self.code + self.muted + Style(meta={CONTINUES_LINE: True}))
        """Margin of a row that continues a line of code."""
        self.cut_left, self.cut_right = (
            Segment(glyph, self.code + self.muted) for glyph in (self.glyphs.left, self.glyphs.right)
        )
        """Margins of a line of code of which the left or the right end is cut off."""
        # All settings are explicit, so that Rich does not read the environment or the size of the real terminal.
        self.console = Console(
            file=io.StringIO(), force_terminal=True, force_interactive=False, color_system="truecolor", no_color=False,
            legacy_windows=False, width=80, height=24,
            theme=RichTheme({
                "markdown.code": make_style("text-accent") if not ansi else Style(color="cyan"),
                "markdown.h1": make_style("primary", bold=True), "markdown.h2": make_style("primary", bold=True),
                "markdown.h3": Style(bold=True), "markdown.h4": Style(bold=True), "markdown.h5": Style(bold=True),
                "markdown.h6": Style(bold=True), "markdown.hr": self.muted, "markdown.link": Style(underline=True),
                "markdown.link_url": self.muted, "markdown.block_quote": self.muted,
                "markdown.item.bullet": self.list_mark, "markdown.item.number": self.list_mark,
                "markdown.list": Style(), "markdown.table.border": self.muted,
                "markdown.table.header": Style(bold=True), "markdown.muted": self.muted,
            }),
        )  # fmt: skip

    def code_style(self, token_type: Any) -> Style:
        """Return the style of a Pygments token type: the foreground of the code theme on the background of code."""
        style = self._code_styles.get(token_type)
        if style is None:
            from rich.syntax import Syntax

            token = Syntax.get_theme(self.code_theme).get_style_for_token(token_type)
            style = Style(color=token.color, bold=token.bold, italic=token.italic) + self.code
            self._code_styles[token_type] = style
        return style


def _to_rich_colour(value: str, background: str = "#000000") -> str | None:
    """Convert a theme colour to Rich's syntax; a translucent colour is blended with `background`.

    Returns None for the terminal's default colour and for an unknown syntax.
    """
    value = value.split(maxsplit=1)[0] if value else ""
    if value.startswith(_ANSI_PREFIX):
        name = value.removeprefix(_ANSI_PREFIX)
        return None if name == "default" else name
    if not value.startswith("#"):
        return None
    return Color.parse(background).blend(Color.parse(value[:7]), Color.parse(value).a).hex[:7]
