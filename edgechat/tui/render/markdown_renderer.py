"""Markdown as rows, the way chats write it: Rich's renderer with a few elements of our own."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Final

from markdown_it import MarkdownIt
from rich.markdown import Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from textual.strip import Strip

from edgechat.tui.render.palette import ASCII_GLYPHS

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult

    from edgechat.tui.render.palette import Palette

# What the renderer draws with.
_TO_ASCII: Final = str.maketrans("•▌─│━┃…", "*|-|-|.")


class _PlainHeading(Heading):
    """A heading on the left, where the eye is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its words in its style."""
        self.text.justify = "left"
        yield self.text


class _Item(ListItem):
    """An item of a list, numbered as it was written."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        """With a dot after the number."""
        width = len(str(last_number)) + 2
        lines = console.render_lines(
            self.elements, options.update(width=max(1, options.max_width - width)), style=self.style
        )
        style = console.get_style("markdown.item.number", default="none")
        for at, line in enumerate(lines):
            yield Segment(f"{number}. ".rjust(width) if at == 0 else " " * width, style)
            yield from line
            yield Segment.line()


class _Document(Markdown):
    """Markdown as chats write it: a new line is one, and HTML is text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "list_item_open": _Item,
    }

    def __init__(self, source: str, code_theme: str) -> None:
        # Not Rich's own: that makes a parser for each document, and asks it for HTML.
        self.markup = source
        self.parsed = _parser().parse(source)
        self.code_theme = self.inline_code_theme = code_theme
        self.justify, self.style, self.inline_code_lexer = None, "none", None
        self.hyperlinks = False

    def _flatten_tokens(self, tokens: Iterable[Token]) -> Iterable[Token]:
        for token in super()._flatten_tokens(tokens):
            if token.type == "softbreak":
                token.type = "hardbreak"
            yield token


@functools.cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def render_markdown(source: str, width: int, palette: Palette) -> list[Strip]:
    """Rows of Markdown."""
    options = palette.console.options.update(width=max(1, width), height=None)
    document = _Document(source, palette.code_theme)
    lines = palette.console.render_lines(document, options, pad=False)
    if palette.glyphs is ASCII_GLYPHS:
        lines = [[Segment(s.text.translate(_TO_ASCII), s.style) for s in line] for line in lines]
    rows = [Strip(line) for line in lines]
    while rows and not rows[-1].text.strip():
        rows.pop()
    while rows and not rows[0].text.strip():
        del rows[0]
    return rows
