"""Markdown cut into the pieces that are laid out one by one, while it grows. Pure: knows nothing of a screen."""

from __future__ import annotations

import re
from typing import Final, Literal

# Beyond these a block is cut, so that no piece is ever slow to lay out.
_MOST_LINES: Final = 30
_MOST_CHARS: Final = 4096

_FENCE: Final = re.compile(r"(?P<indent>[ ]*)(?P<marks>`{3,64}|~{3,64})[ ]*(?P<info>.*)")
_ITEM: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ ]")
_FENCE_BEGINS: Final = re.compile(r"\s*(?:`{3,}|~{3,})")


class MarkdownBlock:
    """A run of lines of Markdown without a blank one, or the code between two fences."""

    def __init__(self, kind: Literal["text", "code"], indent: int, language: str = "", *, gap: bool = False) -> None:
        self.kind = kind
        self.indent = indent
        self.language = language
        """What stands after the fence: a language's name, and perhaps more."""
        self.gap = gap
        """True if there is an empty line before it."""
        self.lines: list[str] = []
        """Without the indent of the first one."""
        self.is_open = True
        self.n_chars = 0
        self._continued: set[int] = set()

    def add(self, line: str, *, continues: bool = False) -> None:
        """One line more, without its end; or more of one that was too long."""
        if continues:
            self._continued.add(len(self.lines))
        self.lines.append(line if continues else _dedented(line, self.indent))
        self.n_chars += len(line) + 1

    @property
    def source(self) -> str:
        """Its lines; of code what stands between the fences."""
        if not self._continued:
            return "\n".join(self.lines)
        parts = (line if at in self._continued else f"\n{line}" for at, line in enumerate(self.lines))
        return "".join(parts).removeprefix("\n")


class MarkdownSplitter:
    """Takes text in any pieces; the blocks are the same however it was cut."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[MarkdownBlock] = []
        self.partial = ""
        """The line that is not complete yet; it belongs to the last block if that is open."""
        self._marks = ""
        self._gap = False
        self._continues = False
        """True if the next line is more of the last one."""
        if text:
            self.feed(text)

    def feed(self, text: str) -> None:
        """More text."""
        head, newline, tail = text.rpartition("\n")
        if newline:
            for line in (self.partial + head).split("\n"):
                self._line(self._cut(line))
            self.partial = tail
        else:
            self.partial += text
        self.partial = self._cut(self.partial)  # all of it is looked at with each piece that comes

    def finish(self) -> None:
        """There is no more."""
        if self.partial:
            self._line(self.partial)
            self.partial = ""
        self._close()
        self._marks = ""

    @property
    def visible_partial(self) -> str:
        """What of the incomplete line can be shown: not what becomes a fence."""
        return "" if _FENCE_BEGINS.match(self.partial) else self.partial

    @property
    def open_block(self) -> MarkdownBlock | None:
        """The block that the incomplete line belongs to; None if it begins one."""
        return self.blocks[-1] if self.blocks and self.blocks[-1].is_open else None

    def _cut(self, line: str) -> str:
        """Take what of a line is too much for one; returns the rest."""
        while len(line) > _MOST_CHARS:
            self._line(line[:_MOST_CHARS])
            self._continues = True
            line = line[_MOST_CHARS:]
        return line

    def _line(self, line: str) -> None:
        continues, self._continues = self._continues, False
        if self._marks:
            if continues:
                self.blocks[-1].add(line, continues=True)
            elif self._ends_fence(line):
                self._close()
                self._marks = ""
            else:
                self.blocks[-1].add(line)
            return
        fence = _FENCE.fullmatch(line) if not continues else None
        if fence is not None and not (fence["marks"][0] == "`" and "`" in fence["info"]):
            self._marks = fence["marks"]
            self._begin("code", len(fence["indent"]), fence["info"].strip())
        elif not line.strip():
            self._close()
            self._gap = True
        else:
            last = self.open_block
            if last is None or self._is_full(last, line):
                self._begin("text", len(line) - len(line.lstrip(" ")))
            self.blocks[-1].add(line)

    def _ends_fence(self, line: str) -> bool:
        stripped = line.strip()
        return len(stripped) >= len(self._marks) and not stripped.strip(self._marks[0])

    def _is_full(self, block: MarkdownBlock, line: str) -> bool:
        if block.n_chars + len(line) > _MOST_CHARS or len(line) - len(line.lstrip(" ")) < block.indent:
            return True
        return len(block.lines) >= _MOST_LINES and _ITEM.match(_dedented(line, block.indent)) is not None

    def _begin(self, kind: Literal["text", "code"], indent: int, language: str = "") -> None:
        gap = self._gap or (bool(self.blocks) and "code" in (kind, self.blocks[-1].kind))
        self._close()
        self.blocks.append(MarkdownBlock(kind, indent, language, gap=gap and bool(self.blocks)))
        self._gap = False

    def _close(self) -> None:
        if self.blocks:
            self.blocks[-1].is_open = False


def split_markdown(text: str) -> list[MarkdownBlock]:
    """All blocks of a text that is complete."""
    splitter = MarkdownSplitter(text)
    splitter.finish()
    return splitter.blocks


def code_blocks(text: str) -> list[str]:
    """What stands between fences, in order."""
    return [block.source for block in split_markdown(text) if block.kind == "code"]


def _dedented(line: str, indent: int) -> str:
    """Without its first spaces, at most so many."""
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
