"""Map rows of a transcript to entries and their layout blocks, with estimated heights for blocks without layout."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.layout_blocks import LayoutBlock


class RowPosition(NamedTuple):
    """A row inside the transcript: index of the entry, index of its block, row of the block.

    Block -1 is the empty row above an entry; row -1 is the gap above a block.
    """

    entry: int
    block: int
    row: int


class RowIndex:
    """Entries of a transcript and the first row of each."""

    def __init__(self) -> None:
        self.entries: list[TranscriptEntry] = []
        self.offsets: list[int] = [0]
        """The first row of each entry, and at the end the number of all rows."""

    @property
    def n_rows(self) -> int:
        return self.offsets[-1]

    def update_offsets(self, width: int, first: int = 0) -> None:
        """Recompute the offsets of the entries from `first` on; those before it have not changed."""
        del self.offsets[first + 1 :]
        heights = (entry.height(width) for entry in self.entries[first:])
        self.offsets[first:] = itertools.accumulate(heights, initial=self.offsets[first])

    def index_of(self, entry: TranscriptEntry) -> int:
        """Return the index of an entry, searching from the end."""
        return next(i for i in range(len(self.entries) - 1, -1, -1) if self.entries[i] is entry)

    def position(self, row: int, width: int) -> RowPosition:
        """Return the position of a transcript row, clamped to the last row."""
        number = min(bisect.bisect_right(self.offsets, row) - 1, len(self.entries) - 1)
        if number < 0:
            return RowPosition(0, -1, 0)
        remaining = row - self.offsets[number] - 1
        if remaining < 0:
            return RowPosition(number, -1, 0)
        blocks = self.entries[number].blocks
        for i, block in enumerate(blocks):
            remaining -= block.gap
            height = block.height(width)
            if remaining < height:
                return RowPosition(number, i, remaining)
            remaining -= height
        return RowPosition(number, max(0, len(blocks) - 1), max(0, remaining))

    def row_of(self, position: RowPosition, width: int) -> int:
        """Return the transcript row of a position; the block's last row if the block became shorter."""
        row = self.offsets[min(position.entry, len(self.offsets) - 1)]
        if position.block < 0 or position.entry >= len(self.entries):
            return row
        blocks = self.entries[position.entry].blocks
        row += 1 + sum(block.height(width) + block.gap for block in blocks[: position.block])
        if position.block < len(blocks):
            block = blocks[position.block]
            row += block.gap + min(position.row, block.height(width) - 1)
        return row

    def blocks_from(self, position: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Iterate over (entry index, block) from this position to the end."""
        first = max(0, position.block)
        for number in range(position.entry, len(self.entries)):
            for block in self.entries[number].blocks[first:]:
                yield number, block
            first = 0

    def blocks_before(self, position: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Iterate over (entry index, block) from just before this position back to the start."""
        end: int | None = max(0, position.block)
        for number in range(min(position.entry, len(self.entries) - 1), -1, -1):
            blocks = self.entries[number].blocks
            for block in reversed(blocks[:end] if number == position.entry else blocks):
                yield number, block
