"""Layout of code blocks: a caption and rows of code, with syntax colours even while the code is being generated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip

from edgechat.tui.render.highlighting import (
    MAX_SYNC_CHARS,
    GrowingHighlighter,
    Line,
    expand_tabs,
    find_lexer,
    highlight,
    make_plain_lines,
)
from edgechat.tui.render.layout_blocks import MarkdownLayout
from edgechat.tui.render.palette import CONTINUES_LINE

if TYPE_CHECKING:
    from rich.style import Style

    from edgechat.tui.render.markdown_blocks import MarkdownBlock
    from edgechat.tui.render.palette import Palette

_DIAGRAMS: Final = {"mermaid": "Mermaid", "dot": "Graphviz", "graphviz": "Graphviz", "plantuml": "PlantUML"}
"""Languages that describe diagrams, and the names that the caption shows for them."""
_DIAGRAM_KINDS: Final = {"graph": "flowchart", "pie": "pie chart", "gantt": "Gantt chart", "journey": "user journey"}
_DIAGRAM_KIND: Final = re.compile(r"[A-Za-z]{3,40}")
_DIAGRAM_TITLE: Final = re.compile(r"(?:pie[ \t]+(?:showData[ \t]+)?)?title(?:[ \t]+|[ \t]*[:=][ \t]*)(\S.{0,80})")
_MAX_DIAGRAM_HEAD: Final = 20
"""Number of lines at the start of a diagram that are searched for its kind and its title."""


class CodeLayout(MarkdownLayout):
    """Layout of a code block. The cost of an update while the block grows is independent of the block's length."""

    has_caption = True

    def __init__(self, block: MarkdownBlock) -> None:
        super().__init__(block)
        self.wraps = True
        self.is_highlighted = False
        """True if the complete block has its final colours."""
        self._highlighter: GrowingHighlighter | None = None
        self._lines: list[Line] = []
        """Lines of code that have been rendered to rows."""
        self._caption = ""
        self._max_cells = 0
        self._first_rows: list[int] = []
        """Number of the first row of each line."""

    def estimate_height(self, width: int) -> int:
        if not self.wraps:
            return len(self.block.lines) + 1
        return sum(1 + len(line) // max(1, width - 2) for line in self.block.lines) + 1

    def set_wrapping(self, *, wrap: bool) -> None:
        if wrap != self.wraps:
            self.wraps = wrap
            self.discard_rows()

    @property
    def max_offset(self) -> int:  # type: ignore[override]
        return max(0, self._max_cells - max(1, self.layout_width - 2)) if self._rows and not self.wraps else 0

    def cut_row(self, number: int, offset: int, palette: Palette) -> Strip:
        row, width = self.row(number), self.layout_width
        if self.wraps or not number or not row.cell_length:
            return row
        first = 1 + min(offset, self.max_offset)
        part = row.crop(first, first + width - 2)
        margin = Segment(" ", palette.code)
        left = palette.cut_left if first > 1 and row.cell_length > 1 else margin
        right = palette.cut_right if row.cell_length > first + width - 2 else margin
        return Strip([left, *part, Segment(" " * (width - 2 - part.cell_length), palette.code), right], width)

    @property
    def needs_highlighting(self) -> bool:  # type: ignore[override]
        return not (self.is_highlighted or self.block.is_open) and bool(self.block.language) and self.layout_width > 0

    def lay_out(self, width: int, palette: Palette) -> None:
        """Highlight the block if it is complete and short; otherwise update only the lines that may have changed."""
        block = self.block
        if not block.is_open and block.language and block.n_chars <= MAX_SYNC_CHARS:
            self.set_highlighted_rows(highlight_code(block, width, palette, wrap=self.wraps), width)
            return
        caption = describe_code(block)
        is_new = self.layout_width != width or self.is_highlighted or caption != self._caption
        first_line, new_lines = self._colour_end(palette)
        if is_new:
            self._rows, self._first_rows, self.is_highlighted = _render_caption(block, width, palette), [], False
            self._caption = caption
            new_lines, first_line = [*self._lines[:first_line], *new_lines], 0
        first_row = self._first_rows[first_line] if first_line < len(self._first_rows) else len(self._rows)
        old_rows = self._rows[first_row:]
        del self._rows[first_row:], self._first_rows[first_line:], self._lines[first_line:]
        for line in new_lines:
            self._first_rows.append(len(self._rows))
            self._rows += _render_line(line, width, palette, wrap=self.wraps)
        self._lines += new_lines
        self._measure_rows(self._rows[first_row:])
        pairs = enumerate(zip(old_rows, self._rows[first_row:]))  # noqa: B905  (up to the end of the shorter list)
        n_equal_rows = next((i for i, (a, b) in pairs if a != b), min(len(old_rows), len(self._rows) - first_row))
        self.first_changed_row = 0 if is_new else first_row + n_equal_rows
        self._n_rows = len(self._rows)
        self.layout_width = self._measured_width = width
        self.is_stale = False

    def _colour_end(self, palette: Palette) -> tuple[int, list[Line]]:
        """Return the number of the first line that may have changed, and the coloured lines from there on."""
        block = self.block
        if self._highlighter is None and block.is_open and block.language:
            lexer = find_lexer(block.language)
            self._highlighter = GrowingHighlighter(lexer, palette) if lexer is not None else None
        if self._highlighter is not None:
            return self._highlighter.update(block.lines, self.partial_line)
        # Without colours, only the last line may have changed, because it was incomplete.
        first_line = min(max(0, len(self._lines) - 1), len(block.lines))
        partial_lines = [self.partial_line] if self.partial_line else []
        return first_line, make_plain_lines([*block.lines[first_line:], *partial_lines], palette)

    def set_highlighted_rows(self, rows: list[Strip], width: int) -> None:
        """Replace the rows with the result of `highlight_code` for `width`."""
        self._store_rows(rows, width)
        self._forget_lines()
        self._measure_rows(rows[len(rows) - len(self.block.lines) :])  # without the caption
        self.is_highlighted = True

    def discard_rows(self) -> None:
        super().discard_rows()
        self._forget_lines()
        self.is_highlighted = False

    def _measure_rows(self, rows: Sequence[Strip]) -> None:
        """Update the length of the longest line from new rows. Wrapped lines need no length."""
        if not self.wraps:
            self._max_cells = max(self._max_cells, *(row.cell_length - 1 for row in rows), 0)

    def _forget_lines(self) -> None:
        self._max_cells = 0
        self._highlighter = None
        self._lines, self._first_rows = [], []


def highlight_code(block: MarkdownBlock, width: int, palette: Palette, *, wrap: bool = True) -> list[Strip]:
    """Render a code block with syntax colours; the number of rows is the same as without colours.

    If `wrap` is false, a row is as long as its line, with a margin of one cell at its left.

    This function is thread-safe, and slow for long code.
    """
    rows = _render_caption(block, width, palette)
    for line in highlight(block.lines, block.source, block.language, palette):
        rows += _render_line(line, width, palette, wrap=wrap)
    return rows


def _render_line(line: Line, width: int, palette: Palette, *, wrap: bool) -> list[Strip]:
    if wrap:
        return wrap_code_line(line, width, palette.code, palette.wrap_mark)
    return [Strip([Segment(" ", palette.code), *(segment for segment in line if segment.text)])]


def describe_code(block: MarkdownBlock) -> str:
    """Return the language of a code block; for a diagram, its kind and its title."""
    name = _DIAGRAMS.get(block.language.split(maxsplit=1)[0].lower() if block.language else "")
    if name is None:
        return block.language
    lines = [line.strip() for line in block.lines[:_MAX_DIAGRAM_HEAD]]
    title = next((match[1] for line in lines if (match := _DIAGRAM_TITLE.match(line))), "").strip("\"' ")
    kind = "diagram"
    if name == "Mermaid":
        start = lines.index("---", 1) + 1 if lines[:1] == ["---"] and "---" in lines[1:] else 0
        word = next((match[0] for line in lines[start:] if (match := _DIAGRAM_KIND.match(line))), "")
        kind = _DIAGRAM_KINDS.get(word) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word).lower() or kind
    return f"{name} {kind}: {title}" if title else f"{name} {kind}"


def _render_caption(block: MarkdownBlock, width: int, palette: Palette) -> list[Strip]:
    """Render the caption of a code block: its number, by which users copy and save it, and its description."""
    style = palette.code + palette.muted
    text = f"[{block.code_number}] {describe_code(block)}".rstrip()
    if cell_len(text) < width:
        return [Strip([Segment(f" {text}{' ' * (width - 1 - cell_len(text))}", style)], width)]
    return wrap_code_line([Segment(expand_tabs(text), style)], width, style)


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
