"""Layout blocks: parts of a transcript entry, rendered to rows of terminal cells.

Only blocks near the visible part of the transcript keep their rows.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from edgechat.tui.render.markdown_blocks import MarkdownBlock
from edgechat.tui.render.palette import CONTINUES_LINE

if TYPE_CHECKING:
    from rich.console import Console

    from edgechat.tui.render.palette import Palette

SYNC_HIGHLIGHT_CHARS: Final = 4000
"""Maximum length of code that is highlighted on the event loop.

Longer code is highlighted in a thread, because the delay would be noticeable.
"""
MAX_PROSE_COLUMNS: Final = 100
"""Maximum width of text. Longer lines are hard to read; code and tables use the whole width."""
_TAB_COLUMNS: Final = 4
_TABLE_RULE_CHARS: Final = frozenset("|:- \t>")
# Number of lines at the start of a block in which a table is recognised.
_MAX_TABLE_START: Final = 40
_NO_LETTERS: Final = re.compile(r"[\W\d_]+")


class LayoutBlock:
    """Base class of layout blocks. `lay_out` renders the rows for a width; until then, the height is an estimate."""

    gap = False
    """True if an empty row precedes the block."""
    has_caption = False
    """True if the first row is not text of the message."""
    needs_highlighting = False
    """True if the block is complete code that is shown without colours and must be highlighted in a thread."""

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

    def row(self, number: int) -> Strip:
        """Return a rendered row, or an empty strip if `number` is too large."""
        return self._rows[number] if number < len(self._rows) else Strip.blank(0)


class PlainTextLayout(LayoutBlock):
    """Plain text in one style, wrapped at word boundaries."""

    def __init__(self, text: str, style: str = "", *, gap: bool = False) -> None:
        """`style` is the name of a `Palette` attribute, or empty for the default style."""
        super().__init__()
        self.text = text
        self.style = style
        self.gap = gap

    def estimate_height(self, width: int) -> int:
        return estimate_rows(self.text, min(width, MAX_PROSE_COLUMNS))

    def render(self, width: int, palette: Palette) -> list[Strip]:
        width = min(width, MAX_PROSE_COLUMNS)
        style = getattr(palette, self.style) if self.style else Style.null()
        return wrap_text(Text(self.text, style=style, end=""), width, palette.console)


class MarkdownLayout(LayoutBlock):
    """Layout of a Markdown block and, while the reply is streaming, of the incomplete line after it."""

    def __init__(self, block: MarkdownBlock, partial_line: str = "") -> None:
        super().__init__()
        self.block = block
        self.partial_line = partial_line
        self.gap = block.gap
        self._content_key = (-1, True, "")

    def set_partial_line(self, partial_line: str) -> None:
        """Set the incomplete line, and mark the layout as stale if the line or the block has changed."""
        content_key = (self.block.n_chars, self.block.is_open, partial_line)
        if content_key != self._content_key:
            self._content_key, self.partial_line, self.is_stale = content_key, partial_line, True


class ProseLayout(MarkdownLayout):
    """Layout of a Markdown block other than code."""

    def estimate_height(self, width: int) -> int:
        return estimate_rows(self.block.source, self._limit_width(width))

    def _limit_width(self, width: int) -> int:
        """Return the width of text; a table, which has a row of hyphens and vertical bars, uses the whole width."""
        is_table = any("|" in line and {*line} <= _TABLE_RULE_CHARS for line in self.block.lines[:_MAX_TABLE_START])
        return width if is_table else min(width, MAX_PROSE_COLUMNS)

    def render(self, width: int, palette: Palette) -> list[Strip]:
        width = self._limit_width(width)
        source = "\n".join([*self.block.lines, self.partial_line] if self.partial_line else self.block.lines)
        indent = min(self.block.indent, width // 2)
        rows = _render_markdown_rows(source, max(1, width - indent), palette)
        return [Strip([Segment(" " * indent), *row]) for row in rows] if indent else rows


class CodeLayout(MarkdownLayout):
    """Layout of a code block, which is highlighted only when the block is complete."""

    has_caption = True

    def __init__(self, block: MarkdownBlock) -> None:
        super().__init__(block)
        self._n_lines = 0
        self._n_complete_rows = 0
        self.is_highlighted = False

    def estimate_height(self, width: int) -> int:
        return sum(1 + len(line) // max(1, width - 2) for line in self.block.lines) + 1

    @property
    def needs_highlighting(self) -> bool:  # type: ignore[override]
        return not (self.is_highlighted or self.block.is_open) and bool(self.block.language) and self.layout_width > 0

    def lay_out(self, width: int, palette: Palette) -> None:
        """Highlight complete short code; for streaming or long code, render only the new lines, without colours."""
        block = self.block
        if not block.is_open and block.language and block.n_chars <= SYNC_HIGHLIGHT_CHARS:
            self.set_highlighted_rows(highlight_code(block, width, palette), width)
            return
        is_incremental = self.layout_width == width and not self.is_highlighted
        if not is_incremental:
            self._rows, self._n_lines, self._n_complete_rows, self.is_highlighted = [], 0, 0, False
            self._rows += _render_caption(block, width, palette)
            self._n_complete_rows = len(self._rows)
        first_new_row = self._n_complete_rows if is_incremental else 0
        del self._rows[self._n_complete_rows :]
        for line in block.lines[self._n_lines :]:
            self._rows += wrap_code_line(
                [Segment(expand_tabs(line), palette.code)], width, palette.code, palette.wrap_mark
            )
        self._n_lines, self._n_complete_rows = len(block.lines), len(self._rows)
        if self.partial_line:
            self._rows += wrap_code_line(
                [Segment(expand_tabs(self.partial_line), palette.code)], width, palette.code, palette.wrap_mark
            )
        self._store_rows(self._rows, width)
        self.first_changed_row = first_new_row

    def set_highlighted_rows(self, rows: list[Strip], width: int) -> None:
        """Replace the rows with the result of `highlight_code` for `width`."""
        self._store_rows(rows, width)
        self.is_highlighted = True

    def discard_rows(self) -> None:
        super().discard_rows()
        self.is_highlighted = False
        self._n_lines = self._n_complete_rows = 0


def highlight_code(block: MarkdownBlock, width: int, palette: Palette) -> list[Strip]:
    """Render a code block with syntax colours; the number of rows is the same as without colours.

    This function is thread-safe, and slow for long code.
    """
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound
    from rich.syntax import Syntax

    caption = _render_caption(block, width, palette)
    plain_lines = [[Segment(expand_tabs(line), palette.code)] for line in block.lines]
    try:
        lexer = get_lexer_by_name(block.language.split()[0], stripnl=False)
    except ClassNotFound:
        return caption + [
            row for line in plain_lines for row in wrap_code_line(line, width, palette.code, palette.wrap_mark)
        ]
    theme = Syntax.get_theme(palette.code_theme)
    lines: list[list[Segment]] = [[]]
    for token_type, text in lexer.get_tokens(expand_tabs(block.source)):
        style = _get_token_style(theme, token_type, palette)
        first_line, *next_lines = text.split("\n")
        lines[-1].append(Segment(first_line, style))
        lines += [[Segment(part, style)] for part in next_lines]
    lines = lines[: len(plain_lines)]
    # Some lexers drop characters. In this case, show the code without colours.
    if ["".join(s.text for s in line) for line in lines] != [line[0].text for line in plain_lines]:
        lines = plain_lines
    return caption + [row for line in lines for row in wrap_code_line(line, width, palette.code, palette.wrap_mark)]


def _get_token_style(theme: Any, token_type: Any, palette: Palette) -> Style:
    """Return the style of a token: foreground from `theme`, background from `palette`."""
    style = theme.get_style_for_token(token_type)
    return Style(color=style.color, bold=style.bold, italic=style.italic) + palette.code


def _render_caption(block: MarkdownBlock, width: int, palette: Palette) -> list[Strip]:
    """Return the row above a code block: its number, which keys use to copy and save it, and its language."""
    style = palette.code + palette.muted
    text = f"[{block.code_number}] {block.language}".rstrip()
    if cell_len(text) < width:
        return [Strip([Segment(f" {text}{' ' * (width - 1 - cell_len(text))}", style)], width)]
    return wrap_code_line([Segment(expand_tabs(text), style)], width, style)


def expand_tabs(line: str) -> str:
    """Replace tabs with spaces, with tab stops every 4 columns."""
    return line.expandtabs(_TAB_COLUMNS) if "\t" in line else line


def wrap_code_line(
    segments: Sequence[Segment], width: int, background: Style, wrap_mark: Segment | None = None
) -> list[Strip]:
    """Cut a line of code into rows of exactly `width` cells, with a margin of one cell on each side.

    `wrap_mark` is the left margin of all rows but the first.
    """
    inner_width = max(1, width - 2)
    line = Strip([s for s in segments if s.text])
    margin = Segment(" ", background)
    length = line.cell_length
    rows = []
    for start in range(0, max(1, length), inner_width):
        part = line if length <= inner_width else line.crop(start, start + inner_width)
        padding = Segment(" " * (inner_width - part.cell_length), background)
        rows.append(Strip([margin if not start else wrap_mark or margin, *part, padding, margin], width))
    return rows


def continues_line(row: Strip) -> bool:
    """Return whether a row continues the line of code in the row above it."""
    return any(segment.style is not None and CONTINUES_LINE in segment.style.meta for segment in row)


def estimate_rows(text: str, width: int) -> int:
    """Estimate the number of rows of a wrapped text from its length and its number of newlines."""
    return 1 + text.count("\n") + len(text) // max(1, width)


def wrap_text(text: Text, width: int, console: Console) -> list[Strip]:
    """Wrap text at word boundaries into rows of at most `width` cells."""
    options = console.options.update(width=max(1, width), height=None)
    return [Strip(line) for line in console.render_lines(text, options, pad=False)]


def _render_markdown_rows(source: str, width: int, palette: Palette) -> list[Strip]:
    """Return the rows of rendered Markdown, or of its source if a letter would be missing on the screen.

    Letters are lost if quotes and lists are nested so deeply that no columns remain for their text.
    """
    from edgechat.tui.render.markdown_renderer import render_markdown

    rows: list[Strip] | None = None
    with contextlib.suppress(RecursionError):  # Rich calls itself for each level of nesting
        rows = render_markdown(source, width, palette)
    if not rows or _count_letters(html.unescape(source)) - _count_letters("".join(row.text for row in rows)):
        return wrap_text(Text(source), width, palette.console)
    return rows


def _count_letters(text: str) -> Counter[str]:
    return Counter(_NO_LETTERS.sub("", text))
