"""Layout of Markdown tables: in columns that break no word, or as one record per row if columns would be too narrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.cells import cell_len
from rich.markdown import TableElement
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

# Minimum width of a column with wide characters (Chinese, Japanese); such text can be wrapped after any character.
_MIN_WIDE_CELLS: Final = 12
_UNLIMITED: Final = 1_000_000


class ChatTable(TableElement):
    """Table that shows every word of every cell. Rich cuts the cells of narrow columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headings = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body is not None else []
        widths = _choose_widths([headings, *rows], options.max_width - _measure_frame(len(headings), console, options))
        if widths is not None:
            yield _make_table(headings, rows, widths)
        elif rows:
            for index, row in enumerate(rows):
                yield from _format_record(headings, row, is_first=not index)
        else:
            yield from headings


def _make_table(headings: Sequence[Text], rows: Sequence[Sequence[Text]], widths: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, style="markdown.table.border", show_edge=True, collapse_padding=True)
    for heading, width in zip(headings, widths, strict=True):
        styled_heading = heading.copy()
        styled_heading.stylize("markdown.table.header")
        table.add_column(styled_heading, width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _measure_frame(n_columns: int, console: Console, options: ConsoleOptions) -> int:
    """Return the number of cells that a table needs for padding and lines, in addition to its columns."""
    table = _make_table([Text() for _ in range(n_columns)], [], [1] * n_columns)
    return Measurement.get(console, options.update(max_width=_UNLIMITED), table).maximum - n_columns


def _choose_widths(rows: Sequence[Sequence[Text]], available_cells: int) -> list[int] | None:
    """Choose column widths that break no word; None if the columns do not fit into `available_cells`."""
    columns = list(zip(*rows, strict=False)) if rows and rows[0] else []
    min_widths = [max(map(_measure_longest_word, column)) for column in columns]
    max_widths = [max(_measure_longest_line(cell) for cell in column) for column in columns]
    widths = min_widths
    spare_cells = available_cells - sum(widths)
    if spare_cells < 0:
        return [available_cells] if len(columns) == 1 and available_cells > 0 else None
    while spare_cells > 0 and widths != max_widths:
        # Widen each column that still wraps by the same number of cells.
        growing = [i for i, width in enumerate(widths) if width < max_widths[i]]
        step = max(1, spare_cells // len(growing))
        widths = list(widths)
        for index in growing:
            added = min(step, max_widths[index] - widths[index], spare_cells)
            widths[index] += added
            spare_cells -= added
    return widths


def _measure_longest_word(text: Text) -> int:
    return max((_measure_word(word) for word in text.plain.split()), default=1)


def _measure_word(word: str) -> int:
    width = cell_len(word)
    return min(width, _MIN_WIDE_CELLS) if width > len(word) else width


def _measure_longest_line(text: Text) -> int:
    return max(1, *(cell_len(line) for line in text.plain.split("\n")))


def _format_record(headings: Sequence[Text], row: Sequence[Text], *, is_first: bool) -> RenderResult:
    """Yield a row as one `heading: value` line per cell, with an empty line above unless it is the first row."""
    if not is_first:
        yield Text("")
    for heading, cell in zip(headings, row, strict=False):
        if not (heading.plain or cell.plain):
            continue
        label = heading.copy()
        label.stylize("markdown.table.header")
        yield Text.assemble(label, ": " if heading.plain else "", cell, overflow="fold")
