"""Render the Markdown of chat messages to rows with Rich, adapted to the Markdown that models write."""

from __future__ import annotations

import functools
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

# Rich's drawing characters and their replacements in ASCII mode.
_TO_ASCII: Final = str.maketrans("•▌─│━┃…", "*|-|-|.")


class _LeftAlignedHeading(Heading):
    """Left-aligned heading. Rich centres headings."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _NumberedListItem(ListItem):
    """List item with a dot after its number. Rich omits the dot."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        width = len(str(last_number)) + 2
        lines = console.render_lines(
            self.elements, options.update(width=max(1, options.max_width - width)), style=self.style
        )
        style = console.get_style("markdown.item.number", default="none")
        for i, line in enumerate(lines):
            yield Segment(f"{number}. ".rjust(width) if i == 0 else " " * width, style)
            yield from line
            yield Segment.line()


class ChatMarkdown(Markdown):
    """Markdown document that keeps single line breaks and shows HTML as text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftAlignedHeading,
        "list_item_open": _NumberedListItem,
    }

    def __init__(self, source: str, code_theme: str) -> None:
        # Do not call super().__init__(): it builds a parser for every document and enables HTML.
        # Checked against Rich 15.0.0; a test compares the attributes with those of rich.markdown.Markdown.
        self.markup = source
        self.parsed = _parse(source)
        self.code_theme = self.inline_code_theme = code_theme
        self.justify, self.style, self.inline_code_lexer = None, "none", None
        self.hyperlinks = False


@functools.cache
def _get_parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def _parse(source: str) -> list[Token]:
    tokens = _get_parser().parse(source)
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def render_markdown(source: str, width: int, palette: Palette) -> list[Strip]:
    """Render Markdown to rows of at most `width` cells, without empty rows at the start and the end."""
    options = palette.console.options.update(width=max(1, width), height=None)
    lines = palette.console.render_lines(ChatMarkdown(source, palette.code_theme), options, pad=False)
    if palette.glyphs is ASCII_GLYPHS:
        lines = [[Segment(s.text.translate(_TO_ASCII), s.style) for s in line] for line in lines]
    rows = [Strip(line) for line in lines]
    while rows and not rows[-1].text.strip():
        rows.pop()
    while rows and not rows[0].text.strip():
        del rows[0]
    return rows
