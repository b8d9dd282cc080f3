"""Map rows of a transcript to entries and layout blocks; the heights of blocks without a layout are estimates."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.layout_blocks import LayoutBlock


class RowPosition(NamedTuple):
    """Position of a row in the transcript: index of the entry, index of the block in the entry, row in the block.

    Block -1 is the empty row above an entry; row -1 is the empty row above a block.
    """

    entry_index: int
    block_index: int
    block_row: int


class RowIndex:
    """Entries of a transcript and the first row of each entry."""

    def __init__(self) -> None:
        self.entries: list[TranscriptEntry] = []
        self.offsets: list[int] = [0]
        """First row of each entry; the last item is the total number of rows."""

    @property
    def n_rows(self) -> int:
        return self.offsets[-1]

    def update_offsets(self, width: int, first_entry_index: int = 0) -> None:
        """Recompute the offsets of all entries from index `first_entry_index` on, for rows of `width` columns."""
        del self.offsets[first_entry_index + 1 :]
        heights = (entry.height(width) for entry in self.entries[first_entry_index:])
        self.offsets[first_entry_index:] = itertools.accumulate(heights, initial=self.offsets[first_entry_index])

    def index_of(self, entry: TranscriptEntry) -> int:
        """Return the index of an entry. The search starts at the end, because most changes are in recent entries."""
        return next(i for i in range(len(self.entries) - 1, -1, -1) if self.entries[i] is entry)

    def position(self, row: int, width: int) -> RowPosition:
        """Return the position of transcript row `row`; if `row` is too large, return the position of the last row."""
        number = min(bisect.bisect_right(self.offsets, row) - 1, len(self.entries) - 1)
        if number < 0:
            return RowPosition(0, -1, 0)
        n_remaining_rows = row - self.offsets[number] - 1
        if n_remaining_rows < 0:
            return RowPosition(number, -1, 0)
        blocks = self.entries[number].blocks
        for i, block in enumerate(blocks):
            n_remaining_rows -= block.gap
            height = block.height(width)
            if n_remaining_rows < height:
                return RowPosition(number, i, n_remaining_rows)
            n_remaining_rows -= height
        return RowPosition(number, max(0, len(blocks) - 1), max(0, n_remaining_rows))

    def row_of(self, position: RowPosition, width: int) -> int:
        """Return the transcript row of a position; if the block has become too short, return the block's last row."""
        row = self.offsets[min(position.entry_index, len(self.offsets) - 1)]
        if position.block_index < 0 or position.entry_index >= len(self.entries):
            return row
        blocks = self.entries[position.entry_index].blocks
        row += 1 + sum(block.height(width) + block.gap for block in blocks[: position.block_index])
        if position.block_index < len(blocks):
            block = blocks[position.block_index]
            row += block.gap + min(position.block_row, block.height(width) - 1)
        return row

    def blocks_from(self, position: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Iterate over (entry index, block), from `position` to the end of the transcript."""
        first_block_index = max(0, position.block_index)
        for entry_index in range(position.entry_index, len(self.entries)):
            for block in self.entries[entry_index].blocks[first_block_index:]:
                yield entry_index, block
            first_block_index = 0

    def blocks_before(self, position: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Iterate backwards over (entry index, block), from the block before `position` to the first block."""
        end_block_index: int | None = max(0, position.block_index)
        for entry_index in range(min(position.entry_index, len(self.entries) - 1), -1, -1):
            blocks = self.entries[entry_index].blocks
            for block in reversed(blocks[:end_block_index] if entry_index == position.entry_index else blocks):
                yield entry_index, block
