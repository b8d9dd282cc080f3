"""Split streaming Markdown into blocks that are laid out separately. Independent of screen and width."""

from __future__ import annotations

import re
from typing import Final, Literal

# Longer blocks are split, so that the layout of a single block is always fast.
_MAX_LINES: Final = 30
_MAX_CHARS: Final = 4096

_FENCE: Final = re.compile(r"(?P<indent>[ ]*)(?P<marks>`{3,64}|~{3,64})[ ]*(?P<info>.*)")
_FENCE_START: Final = re.compile(r"\s*(?:`{3,}|~{3,})")
_LIST_ITEM: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ ]")


class MarkdownBlock:
    """Consecutive non-blank lines of Markdown, or the code between two fences."""

    def __init__(self, kind: Literal["text", "code"], indent: int, language: str = "", *, gap: bool = False) -> None:
        self.kind = kind
        self.indent = indent
        self.language = language
        """The info string after the opening fence: a language name, possibly followed by attributes."""
        self.gap = gap
        """True if the block is preceded by an empty row."""
        self.lines: list[str] = []
        """Lines without the indent of the block."""
        self.is_open = True
        """True until the end of the block is reached."""
        self.n_chars = 0
        self._continuations: set[int] = set()

    def add(self, line: str, *, continues: bool = False) -> None:
        """Append a line without its newline, or with `continues` the rest of a line that was split for its length."""
        if continues:
            self._continuations.add(len(self.lines))
        self.lines.append(line if continues else _dedented(line, self.indent))
        self.n_chars += len(line) + 1

    @property
    def source(self) -> str:
        """The text of the block with long lines rejoined; of code, without the fences."""
        if not self._continuations:
            return "\n".join(self.lines)
        parts = (line if i in self._continuations else f"\n{line}" for i, line in enumerate(self.lines))
        return "".join(parts).removeprefix("\n")


class MarkdownSplitter:
    """Incremental splitter. The blocks do not depend on how the text was divided between calls of `feed`."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[MarkdownBlock] = []
        self.partial = ""
        """The incomplete last line. It belongs to `open_block` if that is not None."""
        self._fence = ""
        """The opening fence of the code block that is open; empty outside of code."""
        self._gap = False
        self._continues = False
        """True if the next line continues a line that was split for its length."""
        if text:
            self.feed(text)

    def feed(self, text: str) -> None:
        """Add the next part of the text."""
        head, newline, tail = text.rpartition("\n")
        if newline:
            for line in (self.partial + head).split("\n"):
                self._add_line(self._split_long_line(line))
            self.partial = tail
        else:
            self.partial += text
        self.partial = self._split_long_line(self.partial)  # each call scans all of `partial`, so it must stay short

    def finish(self) -> None:
        """End the text: complete the partial line and close the last block."""
        if self.partial:
            self._add_line(self.partial)
            self.partial = ""
        self._close_block()
        self._fence = ""

    @property
    def visible_partial(self) -> str:
        """The incomplete line; empty while it may become a fence, which is not shown."""
        return "" if _FENCE_START.match(self.partial) else self.partial

    @property
    def open_block(self) -> MarkdownBlock | None:
        """The block that the incomplete line belongs to; None if that line starts a new block."""
        return self.blocks[-1] if self.blocks and self.blocks[-1].is_open else None

    def _split_long_line(self, line: str) -> str:
        """Add as many full-length parts of a line as it has; return the remainder."""
        while len(line) > _MAX_CHARS:
            self._add_line(line[:_MAX_CHARS])
            self._continues = True
            line = line[_MAX_CHARS:]
        return line

    def _add_line(self, line: str) -> None:
        continues, self._continues = self._continues, False
        if self._fence:
            if continues:
                self.blocks[-1].add(line, continues=True)
            elif self._is_closing_fence(line):
                self._close_block()
                self._fence = ""
            else:
                self.blocks[-1].add(line)
            return
        fence = _FENCE.fullmatch(line) if not continues else None
        if fence is not None and not (fence["marks"][0] == "`" and "`" in fence["info"]):
            self._fence = fence["marks"]
            self._start_block("code", len(fence["indent"]), fence["info"].strip())
        elif not line.strip():
            self._close_block()
            self._gap = True
        else:
            block = self.open_block
            if block is None or self._is_full(block, line):
                self._start_block("text", len(line) - len(line.lstrip(" ")))
            self.blocks[-1].add(line)

    def _is_closing_fence(self, line: str) -> bool:
        stripped = line.strip()
        return len(stripped) >= len(self._fence) and not stripped.strip(self._fence[0])

    def _is_full(self, block: MarkdownBlock, line: str) -> bool:
        """Return True if `line` must start a new block: for the length of this one, or because it is outdented."""
        if block.n_chars + len(line) > _MAX_CHARS or len(line) - len(line.lstrip(" ")) < block.indent:
            return True
        return len(block.lines) >= _MAX_LINES and _LIST_ITEM.match(_dedented(line, block.indent)) is not None

    def _start_block(self, kind: Literal["text", "code"], indent: int, language: str = "") -> None:
        gap = self._gap or (bool(self.blocks) and "code" in (kind, self.blocks[-1].kind))
        self._close_block()
        self.blocks.append(MarkdownBlock(kind, indent, language, gap=gap and bool(self.blocks)))
        self._gap = False

    def _close_block(self) -> None:
        if self.blocks:
            self.blocks[-1].is_open = False


def split_markdown(text: str) -> list[MarkdownBlock]:
    """Split a complete text into blocks."""
    splitter = MarkdownSplitter(text)
    splitter.finish()
    return splitter.blocks


def code_blocks(text: str) -> list[str]:
    """Return the contents of all fenced code blocks, in order."""
    return [block.source for block in split_markdown(text) if block.kind == "code"]


def _dedented(line: str, indent: int) -> str:
    """Remove up to `indent` leading spaces."""
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
