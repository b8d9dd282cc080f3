"""Which row of the whole is what: entries and their pieces one below the other, some of them only guessed."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.layout_blocks import LayoutBlock


class RowPosition(NamedTuple):
    """A row: of which piece of which entry. Piece -1 is the empty row before an entry."""

    entry: int
    block: int
    row: int


class RowIndex:
    """Entries, and where each begins. Pure: what is laid out, and when, is another's business."""

    def __init__(self) -> None:
        self.entries: list[TranscriptEntry] = []
        self.offsets: list[int] = [0]
        """The first row of each entry, and behind them how many rows there are."""

    @property
    def n_rows(self) -> int:
        """All of them."""
        return self.offsets[-1]

    def update_offsets(self, width: int, first: int = 0) -> None:
        """Find out where entries begin, those before `first` being as they were."""
        del self.offsets[first + 1 :]
        heights = (entry.height(width) for entry in self.entries[first:])
        self.offsets[first:] = itertools.accumulate(heights, initial=self.offsets[first])

    def index_of(self, entry: TranscriptEntry) -> int:
        """Where an entry is; looked for from the end."""
        return next(at for at in range(len(self.entries) - 1, -1, -1) if self.entries[at] is entry)

    def position(self, row: int, width: int) -> RowPosition:
        """What is in a row of the whole."""
        number = min(bisect.bisect_right(self.offsets, row) - 1, len(self.entries) - 1)
        if number < 0:
            return RowPosition(0, -1, 0)
        left = row - self.offsets[number] - 1
        if left < 0:
            return RowPosition(number, -1, 0)
        pieces = self.entries[number].blocks
        for position, piece in enumerate(pieces):
            left -= piece.gap
            if left < piece.height(width):
                return RowPosition(number, position, left)  # -1 is the gap
            left -= piece.height(width)
        return RowPosition(number, max(0, len(pieces) - 1), max(0, left))

    def row_of(self, place: RowPosition, width: int) -> int:
        """The row of a place; the last of its piece, if that became shorter."""
        row = self.offsets[min(place.entry, len(self.offsets) - 1)]
        if place.block < 0 or place.entry >= len(self.entries):
            return row
        pieces = self.entries[place.entry].blocks
        row += 1 + sum(piece.height(width) + piece.gap for piece in pieces[: place.block])
        if place.block < len(pieces):
            piece = pieces[place.block]
            row += piece.gap + min(place.row, piece.height(width) - 1)
        return row

    def blocks_from(self, place: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Pieces from this one on, each with the number of its entry."""
        first = max(0, place.block)
        for number in range(place.entry, len(self.entries)):
            for piece in self.entries[number].blocks[first:]:
                yield number, piece
            first = 0

    def blocks_before(self, place: RowPosition) -> Iterator[tuple[int, LayoutBlock]]:
        """Pieces before this one, the nearest first."""
        last: int | None = max(0, place.block)
        for number in range(min(place.entry, len(self.entries) - 1), -1, -1):
            before = self.entries[number].blocks[:last] if number == place.entry else self.entries[number].blocks
            for piece in reversed(before):
                yield number, piece
