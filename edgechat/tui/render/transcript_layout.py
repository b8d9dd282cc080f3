"""Layout of a transcript: only blocks near the visible rows are rendered, all other heights are estimates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from textual.strip import Strip

from edgechat.tui.render.row_index import RowIndex, RowPosition

if TYPE_CHECKING:
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.layout_blocks import CodeLayout, LayoutBlock
    from edgechat.tui.render.palette import Palette

# Maximum number of blocks whose rendered rows are cached; a screen shows about a tenth of them.
_MAX_RENDERED_BLOCKS: Final = 400


class TranscriptLayout:
    """Entries of a transcript, their rendered rows, and the row at which each entry starts."""

    def __init__(
        self,
        width: Callable[[], int],
        palette: Callable[[], Palette],
        on_highlighting_needed: Callable[[LayoutBlock, int], object],
    ) -> None:
        """`width` returns the current width of a row in cells.

        `on_highlighting_needed` receives each long code block once, with the width of its rows.
        """
        self.index = RowIndex()
        self._width = width
        self._palette = palette
        self._on_highlighting_needed = on_highlighting_needed
        self._rendered: dict[LayoutBlock, None] = {}
        """Blocks with rows, least recently visible first."""
        self._highlighting: set[LayoutBlock] = set()

    @property
    def entries(self) -> list[TranscriptEntry]:
        return self.index.entries

    def set_entries(self, entries: Sequence[TranscriptEntry]) -> None:
        """Replace all entries and measure the new ones."""
        self.index.entries = list(entries)
        self.measure()

    def measure(self, first: int = 0) -> None:
        """Recompute the rows at which the entries from number `first` on start."""
        self.index.update_offsets(self._width(), first)

    def measure_last(self) -> None:
        """Recompute the height of the last entry, which may have grown since the last layout."""
        self.measure(max(0, len(self.entries) - 1))

    def position(self, row: int) -> RowPosition:
        """Return the position of a transcript row."""
        return self.index.position(row, self._width())

    def row_of(self, position: RowPosition) -> int:
        """Return the transcript row of a position."""
        return self.index.row_of(position, self._width())

    @property
    def last_message(self) -> int | None:
        """The index of the last message; None without messages."""
        return self.next_message(len(self.entries), -1)

    def next_message(self, start: int, step: int) -> int | None:
        """Return the index of the nearest message after (`step` 1) or before (`step` -1) an entry."""
        end = len(self.entries) if step > 0 else -1
        return next((i for i in range(start + step, end, step) if self.entries[i].as_message is not None), None)

    def continues_off_screen(self, entry: int, step: int, top: int, height: int) -> bool:
        """Return True if a visible entry is taller than the screen and has hidden rows in the direction of `step`.

        The screen shows `height` rows from row `top` on.
        """
        start, end = self.index.offsets[entry : entry + 2]
        if end - start <= height or end <= top or start >= top + height:
            return False
        return start < top if step < 0 else end > top + height

    def lay_out_from(self, row: int, height: int) -> RowPosition:
        """Render the `height` visible rows from `row` on, and as many above and below.

        Returns the position of `row`, whose number may change because estimated heights become exact.
        """
        top = self.position(row)
        visited: dict[LayoutBlock, None] = {}
        self._lay_out(self.index.blocks_from(top), 2 * height + top.row, visited)
        self._lay_out(self.index.blocks_before(top), height, visited)
        self._discard_distant(visited)
        return top

    def lay_out_end(self, height: int) -> None:
        """Render the last `height` rows, and as many above."""
        visited: dict[LayoutBlock, None] = {}
        self._lay_out(self.index.blocks_before(RowPosition(len(self.entries), -1, 0)), 2 * height, visited)
        self._discard_distant(visited)

    def _lay_out(
        self, blocks: Iterator[tuple[int, LayoutBlock]], n_rows: int, visited: dict[LayoutBlock, None]
    ) -> None:
        """Render blocks until they fill `n_rows`, and add them to `visited`."""
        palette, width = self._palette(), self._width()
        changed: set[int] = set()
        for entry, block in blocks:
            if block.layout_width != width or block.is_stale:
                block.lay_out(width, palette)
                changed.add(entry)
            visited[block] = None
            if block.needs_highlighting and block not in self._highlighting:
                self._highlighting.add(block)
                self._on_highlighting_needed(block, width)
            n_rows -= block.height(width) + block.gap
            if n_rows <= 0:
                break
        if changed:
            self.measure(min(changed))

    def _discard_distant(self, visited: dict[LayoutBlock, None]) -> None:
        """Discard the rows of the least recently visible blocks beyond the limit."""
        for block in visited:
            self._rendered.pop(block, None)
        self._rendered.update(visited)
        n_excess = len(self._rendered) - _MAX_RENDERED_BLOCKS - len(visited)
        for block in list(itertools.islice(self._rendered, max(0, n_excess))):
            block.discard_rows()
            self._highlighting.discard(block)
            del self._rendered[block]

    def discard(self) -> None:
        """Discard all rows, for example after the colours changed."""
        for block in self._rendered:
            block.discard_rows()
        self._rendered.clear()
        self._highlighting.clear()

    def set_highlighted_rows(self, block: CodeLayout, rows: list[Strip], width: int) -> None:
        """Show the highlighted rows of a code block, unless it was laid out differently meanwhile."""
        self._highlighting.discard(block)
        if rows and block.layout_width == width == self._width() and not block.block.is_open:
            block.set_highlighted_rows(rows, width)

    def content(self, position: RowPosition) -> Strip:
        """Return the rendered row at a position, empty for gaps."""
        blocks = self.entries[position.entry].blocks
        if position.block < 0 or position.row < 0 or position.block >= len(blocks):
            return Strip.blank(0)
        return blocks[position.block].row(position.row)
