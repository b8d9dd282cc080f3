"""Split streaming Markdown into blocks that are laid out separately. The split is independent of the screen width."""

from __future__ import annotations

import re
from typing import Final, Literal

from edgechat.tui.render.growing_tables import find_table_heading

# Longer blocks are split, so that the layout of a single block is always fast.
_MAX_LINES: Final = 30
_MAX_CHARS: Final = 4096

_FENCE: Final = re.compile(r"(?P<indent>[ ]*)(?P<marks>`{3,64}|~{3,64})[ ]*(?P<info>.*)")
_FENCE_START: Final = re.compile(r"\s*(?:`{3,}|~{3,})")
# Start of a formula that can span several lines, and the indent, quote marks and list mark that may precede it.
_FORMULA_START: Final = re.compile(r"\\\[|\$\$|\\begin\{(?P<name>[A-Za-z]{1,30}\*?)\}")
_LINE_PREFIX: Final = re.compile(r"[ \t>]*(?:[-*+]|\d{1,9}[.)])?[ \t]*")
_LIST_ITEM: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ ]")


class MarkdownBlock:
    """Consecutive non-blank lines of Markdown, or the code between two fences."""

    def __init__(self, kind: Literal["text", "code"], indent: int, language: str = "", *, gap: bool = False) -> None:
        self.kind = kind
        self.indent = indent
        self.language = language
        """Info string after the opening fence: a language name, possibly followed by attributes."""
        self.gap = gap
        """True if an empty row precedes the block."""
        self.lines: list[str] = []
        """Lines of the block without its indent."""
        self.is_open = True
        """True until the end of the block is reached."""
        self.n_chars = 0
        self.code_number = 0
        """Number of a code block within the whole text, from 1; 0 for other blocks."""
        self.table_heading: list[str] = []
        """Heading of the table that began in an earlier block, if this block is the next part of a long table."""
        self._continuations: set[int] = set()

    def add(self, line: str, *, is_continuation: bool = False) -> None:
        """Append a line without its newline. If `is_continuation`, the line continues a long line that was split."""
        if is_continuation:
            self._continuations.add(len(self.lines))
        self.lines.append(line if is_continuation else _dedent(line, self.indent))
        self.n_chars += len(line) + 1

    @property
    def source(self) -> str:
        """The text of the block without code fences; long lines that were split are joined again."""
        if not self._continuations:
            return "\n".join(self.lines)
        parts = (line if i in self._continuations else f"\n{line}" for i, line in enumerate(self.lines))
        return "".join(parts).removeprefix("\n")


class MarkdownSplitter:
    """Splits Markdown incrementally. The result does not depend on how the text is divided between calls of `feed`."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[MarkdownBlock] = []
        self.partial_line = ""
        """The incomplete last line. If `open_block` is not None, the line belongs to that block."""
        self._fence = ""
        """The opening fence of the open code block; an empty string outside of code."""
        self._formula_end = ""
        """Closing delimiter of the formula that is open in the last block, such as `\\]`; empty if none is open."""
        self._n_code_blocks = 0
        self._gap = False
        self._continues = False
        """True if the next line continues a long line that was split."""
        if text:
            self.feed(text)

    def feed(self, text: str) -> None:
        """Append the next part of the text."""
        head, newline, tail = text.rpartition("\n")
        if newline:
            for line in (self.partial_line + head).split("\n"):
                self._add_line(self._split_long_line(line))
            self.partial_line = tail
        else:
            self.partial_line += text
        # Each call scans all of `partial_line`, so a long line is split.
        self.partial_line = self._split_long_line(self.partial_line)

    def finish(self) -> None:
        """End the text: complete the partial line and close the last block."""
        if self.partial_line:
            self._add_line(self.partial_line)
            self.partial_line = ""
        self._close_block()
        self._fence = ""

    @property
    def visible_partial_line(self) -> str:
        """The incomplete line, or "" while the line can still become a fence, because fences are not shown."""
        return "" if _FENCE_START.match(self.partial_line) else self.partial_line

    @property
    def open_block(self) -> MarkdownBlock | None:
        """The block that the incomplete line belongs to; None if the line starts a new block."""
        return self.blocks[-1] if self.blocks and self.blocks[-1].is_open else None

    def _split_long_line(self, line: str) -> str:
        """Split parts of up to `_MAX_CHARS` characters off a longer line and add them; return the remainder."""
        while len(line) > _MAX_CHARS:
            end = find_break(line, _MAX_CHARS)
            self._add_line(line[:end])
            self._continues = True
            line = line[end:]
        return line

    def _add_line(self, line: str) -> None:
        continues, self._continues = self._continues, False
        if self._fence:
            if continues:
                self.blocks[-1].add(line, is_continuation=True)
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
        elif not line.strip() and not (self._formula_end and self.blocks[-1].n_chars < _MAX_CHARS):
            self._close_block()
            self._gap = True
        else:
            block = self.open_block
            if block is None or self._must_start_block(block, line):
                self._start_block("text", len(line) - len(line.lstrip(" ")))
                if block is not None and "|" in line and not self._formula_end:
                    self.blocks[-1].table_heading = block.table_heading or find_table_heading(block.lines)
            self.blocks[-1].add(line)
            self._formula_end = _find_open_formula(line, self._formula_end)

    def _is_closing_fence(self, line: str) -> bool:
        stripped_line = line.strip()
        return len(stripped_line) >= len(self._fence) and not stripped_line.strip(self._fence[0])

    def _must_start_block(self, block: MarkdownBlock, line: str) -> bool:
        """Return whether `line` must start a new block, because `block` is too long or is indented more than `line`."""
        if block.n_chars + len(line) > _MAX_CHARS:
            return True
        if self._formula_end:
            return False
        if len(line) - len(line.lstrip(" ")) < block.indent:
            return True
        return len(block.lines) >= _MAX_LINES and _LIST_ITEM.match(_dedent(line, block.indent)) is not None

    def _start_block(self, kind: Literal["text", "code"], indent: int, language: str = "") -> None:
        gap = self._gap or (bool(self.blocks) and "code" in (kind, self.blocks[-1].kind))
        self._close_block()
        block = MarkdownBlock(kind, indent, language, gap=gap and bool(self.blocks))
        if kind == "code":
            self._n_code_blocks += 1
            block.code_number = self._n_code_blocks
        self.blocks.append(block)
        self._gap = False

    def _close_block(self) -> None:
        self._formula_end = ""
        if self.blocks:
            self.blocks[-1].is_open = False


def find_break(line: str, max_chars: int) -> int:
    """Return where to split a long line: after the last space before `max_chars` if it is near, else at `max_chars`."""
    return line.rfind(" ", max_chars // 2, max_chars) + 1 or max_chars


def _find_open_formula(line: str, end: str) -> str:
    """Return the closing delimiter of the formula that is still open after `line`; empty if none is open.

    `end` is the closing delimiter of the formula that is open before the line. A formula stays open only if it begins
    at the start or at the end of a line.
    """
    position = 0
    while True:
        if end:
            index = line.find(end, position)
            if index < 0:
                return end
            position, end = index + len(end), ""
        start = _FORMULA_START.search(line, position)
        if start is None:
            return ""
        position = start.end()
        closing = rf"\end{{{start['name']}}}" if start["name"] else start[0].replace("[", "]")
        if closing in line[position:] or not line[position:].strip() or _LINE_PREFIX.fullmatch(line, 0, start.start()):
            end = closing


def split_markdown(text: str) -> list[MarkdownBlock]:
    """Split a complete Markdown text into blocks."""
    splitter = MarkdownSplitter(text)
    splitter.finish()
    return splitter.blocks


def find_code_blocks(text: str) -> list[str]:
    """Return the contents of all fenced code blocks in `text`, in order."""
    return [block.source for block in list_code_blocks(text)]


def list_code_blocks(text: str) -> list[MarkdownBlock]:
    """Return all fenced code blocks in `text`, in order."""
    return [block for block in split_markdown(text) if block.kind == "code"]


def _dedent(line: str, indent: int) -> str:
    """Remove up to `indent` leading spaces."""
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
