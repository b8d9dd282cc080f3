"""Layout of a transcript: blocks near the visible rows are rendered; the heights of other blocks can be estimates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from textual.strip import Strip

from edgechat.tui.render.row_index import RowIndex, RowPosition

if TYPE_CHECKING:
    from edgechat.tui.render.code_layout import CodeLayout
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.layout_blocks import LayoutBlock
    from edgechat.tui.render.palette import Palette

# Maximum number of blocks whose rendered rows are cached; about 10 times the number of visible blocks.
_MAX_RENDERED_BLOCKS: Final = 400


class TranscriptLayout:
    """Entries of a transcript, their rendered rows, and the row at which each entry starts."""

    def __init__(
        self,
        get_width: Callable[[], int],
        get_palette: Callable[[], Palette],
        on_highlighting_needed: Callable[[LayoutBlock, int], object],
    ) -> None:
        """`get_width` returns the current width of a row in cells.

        `on_highlighting_needed` is called once for each long code block, with the width of its rows.
        """
        self.index = RowIndex()
        self.wraps_code = True
        """True if long lines of code are wrapped, False if they are cut."""
        self.code_offset = 0
        """Number of columns by which code is scrolled to the left, if it is cut."""
        self._get_width = get_width
        self._get_palette = get_palette
        self._on_highlighting_needed = on_highlighting_needed
        self._rendered: dict[LayoutBlock, None] = {}
        """Blocks with rendered rows, least recently visible first."""
        self._pending_highlights: set[LayoutBlock] = set()
        """Blocks that were passed to `on_highlighting_needed` and whose highlighted rows have not arrived yet."""

    @property
    def entries(self) -> list[TranscriptEntry]:
        return self.index.entries

    def set_entries(self, entries: Sequence[TranscriptEntry]) -> None:
        """Replace all entries, and recompute the rows at which they start."""
        self.index.entries = list(entries)
        self.measure()

    def find_new_message(self, old_entries: Sequence[TranscriptEntry]) -> int | None:
        """Return the index of the first message that was added below `old_entries`, or else of the last message."""
        old = set(map(id, old_entries))
        messages = (n for n, entry in enumerate(self.entries) if entry.as_message is not None)
        return next((n for n in messages if id(self.entries[n]) not in old), 0) or self.last_message

    def measure(self, first_entry_index: int = 0) -> None:
        """Recompute the start rows of all entries from index `first_entry_index` on."""
        self.index.update_offsets(self._get_width(), first_entry_index)

    def measure_last(self) -> None:
        """Recompute the height of the last entry, which may have grown since the last layout."""
        self.measure(max(0, len(self.entries) - 1))

    def position(self, row: int) -> RowPosition:
        """Return the position of a transcript row."""
        return self.index.position(row, self._get_width())

    def row_of(self, position: RowPosition) -> int:
        """Return the transcript row of a position."""
        return self.index.row_of(position, self._get_width())

    @property
    def last_message(self) -> int | None:
        """Index of the last message; None if the transcript has no messages."""
        return self.next_message(len(self.entries), -1)

    def next_message(self, start: int, step: int) -> int | None:
        """Return the index of the first message after (`step` 1) or before (`step` -1) entry `start`, or None."""
        end = len(self.entries) if step > 0 else -1
        return next((i for i in range(start + step, end, step) if self.entries[i].as_message is not None), None)

    def continues_off_screen(self, entry_index: int, step: int, top: int, height: int) -> bool:
        """Return whether a visible entry is taller than the screen and has hidden rows above (`step` -1) or below it.

        The screen shows `height` rows of the transcript, starting at row `top`.
        """
        start, end = self.index.offsets[entry_index : entry_index + 2]
        if end - start <= height or end <= top or start >= top + height:
            return False
        return start < top if step < 0 else end > top + height

    def lay_out_from(self, row: int, height: int) -> RowPosition:
        """Render the `height` visible rows that start at `row`, and `height` rows above and below them.

        Returns the position of `row`. The row number of this position may change, because exact heights replace
        estimates.
        """
        top = self.position(row)
        visited_blocks: dict[LayoutBlock, None] = {}
        self._lay_out(self.index.blocks_from(top), 2 * height + top.block_row, visited_blocks)
        self._lay_out(self.index.blocks_before(top), height, visited_blocks)
        self._discard_distant_blocks(visited_blocks)
        return top

    def lay_out_end(self, height: int) -> None:
        """Render the last `height` rows, and `height` rows above them."""
        visited_blocks: dict[LayoutBlock, None] = {}
        self._lay_out(self.index.blocks_before(RowPosition(len(self.entries), -1, 0)), 2 * height, visited_blocks)
        self._discard_distant_blocks(visited_blocks)

    def _lay_out(
        self, blocks: Iterator[tuple[int, LayoutBlock]], n_rows: int, visited_blocks: dict[LayoutBlock, None]
    ) -> None:
        """Render blocks until they fill `n_rows` rows, and add them to `visited_blocks`."""
        palette, width = self._get_palette(), self._get_width()
        changed_entries: set[int] = set()
        for entry_index, block in blocks:
            block.set_wrapping(wrap=self.wraps_code)
            if block.layout_width != width or block.is_stale:
                block.lay_out(width, palette)
                changed_entries.add(entry_index)
            visited_blocks[block] = None
            if block.needs_highlighting and block not in self._pending_highlights:
                self._pending_highlights.add(block)
                self._on_highlighting_needed(block, width)
            n_rows -= block.height(width) + block.gap
            if n_rows <= 0:
                break
        if changed_entries:
            self.measure(min(changed_entries))

    def _discard_distant_blocks(self, visited_blocks: dict[LayoutBlock, None]) -> None:
        """Mark `visited_blocks` as most recently visible, and discard the rows of the oldest blocks over the limit."""
        for block in visited_blocks:
            self._rendered.pop(block, None)
        self._rendered.update(visited_blocks)
        n_excess_blocks = len(self._rendered) - _MAX_RENDERED_BLOCKS - len(visited_blocks)
        for block in list(itertools.islice(self._rendered, max(0, n_excess_blocks))):
            block.discard_rows()
            self._pending_highlights.discard(block)
            del self._rendered[block]

    def discard(self) -> None:
        """Discard all rows, for example after a change of the theme."""
        for block in self._rendered:
            block.discard_rows()
        self._rendered.clear()
        self._pending_highlights.clear()

    def set_highlighted_rows(self, block: CodeLayout, rows: list[Strip], width: int) -> None:
        """Replace the rows of a code block with highlighted ones, unless its width has changed meanwhile."""
        self._pending_highlights.discard(block)
        if rows and block.layout_width == width == self._get_width() and not block.block.is_open:
            block.set_highlighted_rows(rows, width)

    def is_caption(self, row: int) -> bool:
        """Return whether a row shows the number and the language of a code block."""
        position = self.position(row)
        if position.entry_index >= len(self.entries) or position.block_index < 0 or position.block_row:
            return False
        blocks = self.entries[position.entry_index].blocks
        return position.block_index < len(blocks) and blocks[position.block_index].has_caption

    @property
    def max_code_offset(self) -> int:
        """Number of columns by which the longest line of code near the visible rows exceeds the width."""
        return max((block.max_offset for block in self._rendered), default=0)

    def content(self, position: RowPosition, *, is_whole: bool = False) -> Strip:
        """Return the rendered row at a position; for empty rows between blocks, return an empty strip.

        If `is_whole`, a line of code is not cut.
        """
        blocks = self.entries[position.entry_index].blocks
        if position.block_index < 0 or position.block_row < 0 or position.block_index >= len(blocks):
            return Strip.blank(0)
        block = blocks[position.block_index]
        if self.wraps_code or is_whole:
            return block.row(position.block_row)
        return block.cut_row(position.block_row, self.code_offset, self._get_palette())
