"""Render the Markdown of chat messages to rows with Rich, adapted to the Markdown that models write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

from rich.markdown import Heading, ListItem, Markdown, MarkdownElement, TextElement
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgechat.markdown import parse
from edgechat.tui.render.citation_marks import CitationMarks, use_styles
from edgechat.tui.render.markdown_tables import ChatTable
from edgechat.tui.render.markdown_tokens import MUTED_TAG, TokenAdapter
from edgechat.tui.render.palette import ASCII_GLYPHS

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.containers import Renderables
    from rich.markdown import MarkdownContext

    from edgechat.tui.render.palette import Palette

# Rich's drawing characters and their replacements in ASCII mode.
_TO_ASCII: Final = str.maketrans("•▌─│━┃…", "*|-|-|.")
_NO_LETTERS: Final = re.compile(r"[\W\d_]+")


class _LeftAlignedHeading(Heading):
    """Left-aligned heading. Rich centres headings."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _ChatListItem(ListItem):
    """List item with a dot after its number, which Rich omits, and with a box as the bullet of a task."""

    def __init__(self, bullet: str) -> None:
        super().__init__()
        self.bullet = bullet

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _ChatListItem:  # noqa: ARG003
        return cls(str(token.meta.get("bullet", "\u2022")))

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        style = console.get_style("markdown.item.bullet", default="none")
        return _render_indented(self.elements, f" {self.bullet} ", style, console, options)

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        style = console.get_style("markdown.item.number", default="none")
        return _render_indented(self.elements, f"{number}. ".rjust(len(str(last_number)) + 2), style, console, options)


class _DefinitionList(MarkdownElement):
    """List of terms and their definitions."""

    def __init__(self) -> None:
        self._elements: list[MarkdownElement] = []

    def on_child_close(self, context: MarkdownContext, child: MarkdownElement) -> bool:  # noqa: ARG002
        self._elements.append(child)
        return False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._elements


class _Term(TextElement):
    """Term of a definition list."""

    style_name = "markdown.strong"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Definition(ListItem):
    """Indented definition of a term."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return _render_indented(self.elements, "    ", Style.null(), console, options)


def _render_indented(
    elements: Renderables, prefix: str, style: Style, console: Console, options: ConsoleOptions
) -> RenderResult:
    """Yield the elements with `prefix` at the start of the first row and spaces at the start of the other rows."""
    width = max(1, options.max_width - len(prefix))
    for number, line in enumerate(console.render_lines(elements, options.update(width=width))):
        yield Segment(" " * len(prefix) if number else prefix, style)
        yield from line
        yield Segment.line()


class ChatMarkdown(Markdown):
    """Markdown document that keeps single line breaks, and shows HTML and images as text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftAlignedHeading,
        "list_item_open": _ChatListItem,
        "dl_open": _DefinitionList,
        "dt_open": _Term,
        "dd_open": _Definition,
        "table_open": ChatTable,
    }

    def __init__(self, source: str, tokens: list[Token], code_theme: str, extra_inlines: Collection[str] = ()) -> None:
        # Do not call super().__init__(): it builds a parser for every document and enables HTML.
        # Checked against Rich 15.0.0; a test compares the attributes with those of rich.markdown.Markdown.
        self.markup = source
        self.parsed = tokens
        self.code_theme = self.inline_code_theme = code_theme
        self.justify, self.style, self.inline_code_lexer = None, "none", None
        self.hyperlinks = False
        self.inlines = {*Markdown.inlines, MUTED_TAG, *extra_inlines}


def render_markdown(
    source: str, width: int, palette: Palette, citations: CitationMarks = MappingProxyType({})
) -> list[Strip] | None:
    """Render Markdown to rows of at most `width` cells, without empty rows at the start and the end.

    `citations` are the citations by their placeholders in `source`.
    Return None if the text cannot be parsed in bounded time, or if a letter of it would be missing on the screen:
    letters are lost if quotes and lists are nested so deeply that no columns remain for their text.
    """
    document = parse(source)
    if document is None:
        return None
    is_ascii = palette.glyphs is ASCII_GLYPHS
    adapter = TokenAdapter(document, is_ascii=is_ascii, citations=citations, doubt_glyph=palette.glyphs.doubt)
    options = palette.console.options.update(width=max(1, width), height=None)
    tags = [mark.tag for mark in citations.values()]
    markdown = ChatMarkdown(source, adapter.adapt(), palette.code_theme, tags)
    with use_styles(citations, palette) if citations else nullcontext():
        lines = palette.console.render_lines(markdown, options, pad=False)
    if is_ascii:
        lines = [[Segment(s.text.translate(_TO_ASCII), s.style) for s in line] for line in lines]
    rows = [Strip(line) for line in lines]
    while rows and not rows[-1].text.strip():
        rows.pop()
    while rows and not rows[0].text.strip():
        del rows[0]
    if _count_letters(adapter.shown_text) - _count_letters("".join(row.text for row in rows)):
        return None
    return rows


def _count_letters(text: str) -> Counter[str]:
    return Counter(_NO_LETTERS.sub("", text))
