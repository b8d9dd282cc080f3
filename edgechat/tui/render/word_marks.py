"""Mark the words of a search in one message; extract and highlight the text of selected rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgechat.tui.render.row_index import RowPosition

if TYPE_CHECKING:
    from edgechat.tui.render.entries import TranscriptEntry
    from edgechat.tui.render.transcript_layout import TranscriptLayout

GUTTER: Final = 2
"""Width in columns of the gutter, which shows the bar of user messages and of the cursor, left of the text."""


class WordMarks:
    """Words to mark in one message, which is identified by its ID."""

    def __init__(self, message_id: str = "", words: Iterable[str] = ()) -> None:
        """Compile the words to one pattern. A word can be a phrase; its spaces also match line breaks."""
        patterns = [r"\s+".join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True)]
        self._message_id = message_id
        self._pattern = re.compile("|".join(filter(None, patterns)), re.IGNORECASE) if any(patterns) else None

    def __bool__(self) -> bool:
        return bool(self._message_id) and self._pattern is not None

    def applies_to(self, entry: TranscriptEntry) -> bool:
        """Return whether words are marked in this entry."""
        message = entry.as_message
        return bool(self) and message is not None and message.message.id == self._message_id

    def find_spans(self, rows: Sequence[Strip], index: int) -> list[tuple[int, int]]:
        """Return the columns [start, end) of marked words in row `index`; a word may begin or end in another row."""
        from edgechat.tui.render.code_layout import continues_line  # here, so that the first frame is not delayed

        characters: list[tuple[str, int, int, int]] = []
        for number, row in enumerate(rows):
            column, is_margin = 0, False
            if number and continues_line(row):
                del characters[-1:]  # the margin of the row above, and the mark of this row
                is_margin = True
            elif number:
                characters.append(("\n", -1, 0, 0))
            for character in row.text:
                end = column + cell_len(character)
                if column >= GUTTER and not (is_margin and column == GUTTER):
                    characters.append((character, number, column, end))
                column = end
        text = "".join(character for character, *_ in characters)
        spans = []
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            columns = [(start, end) for _, number, start, end in characters[slice(*match.span())] if number == index]
            if columns and columns[0][0] < columns[-1][1]:
                spans.append((columns[0][0], columns[-1][1]))
        return spans

    def find_row(self, layout: TranscriptLayout, entry_index: int, height: int) -> int | None:
        """Lay out the rows around the first marked word of an entry, and return its row; None if there is none."""
        pattern, blocks = self._pattern, layout.entries[entry_index].blocks
        if pattern is None:
            return None
        number = next((i for i, block in enumerate(blocks) if pattern.search(block.source_text)), None)
        if number is None:
            return None
        start = RowPosition(entry_index, number, 0)
        layout.lay_out_from(layout.row_of(start), height)
        texts = (blocks[number].row(n).text for n in range(blocks[number].n_rows))
        row = next((n for n, text in enumerate(texts) if pattern.search(text)), 0)
        layout.lay_out_from(layout.row_of(start._replace(block_row=row)), height)
        return layout.row_of(start._replace(block_row=row))


def join_selected_rows(rows: Iterable[tuple[Strip, tuple[int, int]]]) -> str:
    """Join the selected columns [start, end) of rows, without the gutter; end -1 means the end of the row."""
    from edgechat.tui.render.code_layout import continues_line  # here, so that the first frame is not delayed

    lines: list[str] = []
    for strip, (start, end) in rows:
        text = strip.crop(max(GUTTER, start), None if end < 0 else max(GUTTER, end)).text
        if lines and continues_line(strip):  # replaces the margin of the row above and the mark of this row
            lines[-1] = lines[-1][:-1] + text[1:]
        else:
            lines.append(text)
    return "\n".join(line.rstrip() for line in lines)


def highlight_span(strip: Strip, span: tuple[int, int], style: Style) -> Strip:
    """Apply `style` to the columns [start, end) of `span` except the gutter; end -1 means the end of the row."""
    start, end = max(GUTTER, span[0]), strip.cell_length if span[1] < 0 else span[1]
    if end <= start:
        return strip
    selected_segments = [
        Segment(segment.text, (segment.style or Style.null()) + style) for segment in strip.crop(start, end)
    ]
    return Strip([*strip.crop(0, start), *selected_segments, *strip.crop(end, strip.cell_length)])
