"""Render the Markdown of chat messages to rows with Rich, adapted to the Markdown that models write."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from markdown_it.token import Token
from rich.markdown import Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from textual.strip import Strip

from edgechat.markdown import Document, parse
from edgechat.terminal import escape_controls
from edgechat.tui.render.markdown_tables import ChatTable
from edgechat.tui.render.palette import ASCII_GLYPHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    """Markdown document that keeps single line breaks and formulas, and shows HTML and images as text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftAlignedHeading,
        "list_item_open": _NumberedListItem,
        "table_open": ChatTable,
    }

    def __init__(self, source: str, document: Document, code_theme: str) -> None:
        # Do not call super().__init__(): it builds a parser for every document and enables HTML.
        # Checked against Rich 15.0.0; a test compares the attributes with those of rich.markdown.Markdown.
        self.markup = source
        self.parsed = _adapt_tokens(document)
        self.code_theme = self.inline_code_theme = code_theme
        self.justify, self.style, self.inline_code_lexer = None, "none", None
        self.hyperlinks = False


def _adapt_tokens(document: Document) -> list[Token]:
    """Return tokens for Rich: with formulas in place of their placeholders, and without any word left out."""
    restore = document.formulas.restore
    for token in document.tokens:
        token.content = escape_controls(restore(token.content))
        token.children = list(_adapt_children(token.children, document)) if token.children else token.children
    return document.tokens


def _adapt_children(children: Iterable[Token], document: Document) -> Iterator[Token]:
    """Yield inline tokens: a line end breaks the line, an image is a link, and a link to itself is a text."""
    restore = document.formulas.restore
    for child in children:
        # Entities such as `&rlm;` stand for characters that are escaped elsewhere.
        child.content = escape_controls(restore(child.content))
        if child.type == "softbreak":
            child.type = "hardbreak"
        if child.type == "image":
            source = _format_target(child, "src", document)
            yield Token("text", "", 0, content="[image] ")
            yield Token("link_open", "a", 1, attrs={"href": source})
            yield from _adapt_children(child.children or (), document)
            yield Token("link_close", "a", -1)
        elif child.type == "link_open":
            if child.markup != "autolink":
                yield Token("link_open", "a", 1, attrs={"href": _format_target(child, "href", document)})
        elif child.type != "link_close" or child.markup != "autolink":
            yield child


def _format_target(token: Token, attribute: str, document: Document) -> str:
    """Return the URL of a link or image, with its title if it has one."""
    title = token.attrs.get("title")
    text = f'{token.attrs.get(attribute, "")} "{title}"' if title else str(token.attrs.get(attribute, ""))
    return escape_controls(document.formulas.restore(text))


def render_markdown(source: str, width: int, palette: Palette) -> list[Strip] | None:
    """Render Markdown to rows of at most `width` cells, without empty rows at the start and the end.

    Return None if the text cannot be parsed in a bounded time.
    """
    document = parse(source)
    if document is None:
        return None
    options = palette.console.options.update(width=max(1, width), height=None)
    lines = palette.console.render_lines(ChatMarkdown(source, document, palette.code_theme), options, pad=False)
    if palette.glyphs is ASCII_GLYPHS:
        lines = [[Segment(s.text.translate(_TO_ASCII), s.style) for s in line] for line in lines]
    rows = [Strip(line) for line in lines]
    while rows and not rows[-1].text.strip():
        rows.pop()
    while rows and not rows[0].text.strip():
        del rows[0]
    return rows
