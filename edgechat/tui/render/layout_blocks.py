"""Layout blocks: parts of a transcript entry, rendered to rows of terminal cells.

Only blocks near the visible part of the transcript keep their rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from edgechat.tui.render.citation_marks import CitationMarks, format_text, restore_citations
from edgechat.tui.render.growing_tables import complete_table, has_table
from edgechat.tui.render.markdown_blocks import MarkdownBlock

if TYPE_CHECKING:
    from rich.console import Console

    from edgechat.tui.render.palette import Palette

MAX_PROSE_COLUMNS: Final = 100
"""Maximum width of text. Longer lines are hard to read; code and tables use the whole width."""
# Number of lines at the start of a block that are searched for a table.
_MAX_TABLE_START: Final = 40


class LayoutBlock:
    """Base class of layout blocks. `lay_out` renders the rows for a width; until then, the height is an estimate."""

    gap = False
    """True if an empty row precedes the block."""
    has_caption = False
    """True if the first row is not text of the message."""
    needs_highlighting = False
    """True if the block is complete code that is shown without colours and must be highlighted in a thread."""

    max_offset = 0
    """Number of columns by which the longest row exceeds the width; 0 if rows are wrapped."""

    def __init__(self) -> None:
        self.layout_width = 0
        """Width of the rendered rows in cells; 0 if no rows are rendered."""
        self.is_stale = False
        """True if the content changed since the last layout."""
        self.first_changed_row = 0
        """Number of the first row that the last layout changed."""
        self._rows: list[Strip] = []
        self._n_rows = 0
        self._measured_width = 0

    @property
    def source_text(self) -> str:
        """The source of the block: plain text or Markdown."""
        return ""

    @property
    def n_rows(self) -> int:
        """Number of rendered rows."""
        return len(self._rows)

    def height(self, width: int) -> int:
        """Return the number of rows: exact for the width of the last layout, otherwise an estimate."""
        return self._n_rows if self._measured_width == width else max(1, self.estimate_height(width))

    def estimate_height(self, width: int) -> int:  # noqa: ARG002
        return 1

    def lay_out(self, width: int, palette: Palette) -> None:
        """Render the rows for `width` columns and store them."""
        self._store_rows(self.render(width, palette), width)

    def _store_rows(self, rows: list[Strip], width: int) -> None:
        pairs = enumerate(zip(self._rows, rows))  # noqa: B905  (up to the end of the shorter list)
        self.first_changed_row = next((i for i, (a, b) in pairs if a != b), min(len(self._rows), len(rows)))
        self._rows, self._n_rows = rows, len(rows)
        self.layout_width = self._measured_width = width
        self.is_stale = False

    def render(self, width: int, palette: Palette) -> list[Strip]:
        """Return the rows of the block, wrapped to `width` columns."""
        raise NotImplementedError

    def discard_rows(self) -> None:
        """Discard the rendered rows to free memory; their number is kept for `height`."""
        self._rows = []
        self.layout_width = 0

    def set_wrapping(self, *, wrap: bool) -> None:
        """Set whether long lines of code are wrapped into several rows; otherwise they are cut at the screen's edge."""

    def cut_row(self, number: int, offset: int, palette: Palette) -> Strip:  # noqa: ARG002
        """Return the part of a row that is visible after scrolling by `offset` columns."""
        return self.row(number)

    def row(self, number: int) -> Strip:
        """Return a rendered row, or an empty strip if `number` is too large."""
        return self._rows[number] if number < len(self._rows) else Strip.blank(0)


class PlainTextLayout(LayoutBlock):
    """Plain text in one style, wrapped at word boundaries."""

    def __init__(
        self, text: str, style: str = "", *, gap: bool = False, meta: Mapping[str, object] | None = None
    ) -> None:
        """`style` is the name of a `Palette` attribute, or empty for the default style; `meta` is added to it."""
        super().__init__()
        self.text = text
        self.style = style
        self.gap = gap
        self.meta = meta

    @property
    def source_text(self) -> str:
        return self.text

    def estimate_height(self, width: int) -> int:
        return estimate_rows(self.text, min(width, MAX_PROSE_COLUMNS))

    def render(self, width: int, palette: Palette) -> list[Strip]:
        width = min(width, MAX_PROSE_COLUMNS)
        style = getattr(palette, self.style) if self.style else Style.null()
        if self.meta is not None:
            style += Style(meta=dict(self.meta))
        return wrap_text(Text(self.text, style=style, end=""), width, palette.console)


class MarkdownLayout(LayoutBlock):
    """Layout of a Markdown block and, while the reply is streaming, of the incomplete line after it."""

    def __init__(self, block: MarkdownBlock, partial_line: str = "") -> None:
        super().__init__()
        self.block = block
        self.partial_line = partial_line
        self.gap = block.gap
        self._content_key = (-1, True, "")

    @property
    def source_text(self) -> str:
        return self.block.source

    def set_partial_line(self, partial_line: str) -> None:
        """Set the incomplete line, and mark the layout as stale if the line or the block has changed."""
        content_key = (self.block.n_chars, self.block.is_open, partial_line)
        if content_key != self._content_key:
            self._content_key, self.partial_line, self.is_stale = content_key, partial_line, True


class ProseLayout(MarkdownLayout):
    """Layout of a Markdown block other than code."""

    def __init__(
        self, block: MarkdownBlock, partial_line: str = "", citations: CitationMarks = MappingProxyType({})
    ) -> None:
        """`citations` are the citations by their placeholders in the block."""
        super().__init__(block, partial_line)
        self.citations = citations

    @property
    def source_text(self) -> str:
        source = super().source_text
        return restore_citations(source, self.citations) if self.citations else source

    def estimate_height(self, width: int) -> int:
        return estimate_rows(self.block.source, self._limit_width(width, self.block.lines))

    def _limit_width(self, width: int, lines: Sequence[str]) -> int:
        """Return the whole width if `lines` contain a table, otherwise at most `MAX_PROSE_COLUMNS`."""
        return width if has_table(lines[:_MAX_TABLE_START]) else min(width, MAX_PROSE_COLUMNS)

    def render(self, width: int, palette: Palette) -> list[Strip]:
        lines = [*self.block.table_heading, *self.block.lines, *([self.partial_line] if self.partial_line else [])]
        if self.block.is_open:
            lines = complete_table(lines)
        width = self._limit_width(width, lines)
        indent = min(self.block.indent, width // 2)
        rows = _render_markdown_rows("\n".join(lines), max(1, width - indent), palette, self.citations)
        return [Strip([Segment(" " * indent), *row]) for row in rows] if indent else rows


def estimate_rows(text: str, width: int) -> int:
    """Estimate the number of rows of a wrapped text from its length and its number of newlines."""
    return 1 + text.count("\n") + len(text) // max(1, width)


def wrap_text(text: Text, width: int, console: Console) -> list[Strip]:
    """Wrap text at word boundaries into rows of at most `width` cells."""
    options = console.options.update(width=max(1, width), height=None)
    return [Strip(line) for line in console.render_lines(text, options, pad=False)]


def _render_markdown_rows(source: str, width: int, palette: Palette, citations: CitationMarks) -> list[Strip]:
    """Render Markdown to rows; if it cannot be rendered completely, render its source as plain text."""
    from edgechat.tui.render.markdown_renderer import render_markdown

    rows: list[Strip] | None = None
    with contextlib.suppress(RecursionError):  # Rich recurses at each level of nesting
        rows = render_markdown(source, width, palette, citations)
    return rows or wrap_text(format_text(source, citations, palette), width, palette.console)
