"""Blocks of text, such as paragraphs and rows of tables, from which the text of a section is joined."""

from __future__ import annotations

LINE, PARAGRAPH = 1, 2
"""Number of line feeds between two blocks."""


class BlockWriter:
    """Joins blocks with the larger of the gaps after the previous block and before the next, up to a size."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._parts: list[str] = []
        self._n_chars = 0
        self._gap = 0

    @property
    def is_full(self) -> bool:
        """True if the text exceeds the maximum, so that the extraction should stop."""
        return self._n_chars > self._max_chars

    @property
    def text(self) -> str:
        """All blocks."""
        return "".join(self._parts)

    def add(self, block: str, gap: int = PARAGRAPH) -> None:
        """Append a block with a `gap` before and after it. A block without text is ignored."""
        if not block or block.isspace() or self.is_full:
            return
        if self._parts:
            self._parts.append("\n" * max(self._gap, gap))
        self._parts.append(block)
        self._gap = gap
        self._n_chars += len(block) + gap

    def end_paragraph(self) -> None:
        """Separate the next block by an empty line."""
        self._gap = PARAGRAPH


def format_row(cells: list[str]) -> str:
    """Return the row of a table in one line. Empty cells at the end are left out."""
    texts = [" ".join(cell.split()) for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return " | ".join(texts)
