"""Transcript entries: messages, notes and errors, each a list of layout blocks that is built on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from edgechat.chat.messages import performance_summary
from edgechat.terminal import escape_controls
from edgechat.tui.render.layout_blocks import (
    CodeLayout,
    LayoutBlock,
    MarkdownLayout,
    PlainTextLayout,
    ProseLayout,
    estimate_rows,
)
from edgechat.tui.render.markdown_blocks import MarkdownBlock, MarkdownSplitter

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.tui.render.palette import Glyphs

Kind = Literal["user", "assistant", "note", "error"]

# Limits of one block of plain text.
_MAX_LINES: Final = 40
_MAX_CHARS: Final = 4096
_SUMMARY_CHARS: Final = 60


class TranscriptEntry:
    """A note or an error, and the base class of messages: layout blocks with an empty row above them."""

    def __init__(self, kind: Kind, text: str) -> None:
        self.kind: Kind = kind
        self.text = text
        self._blocks: list[LayoutBlock] | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """The entry itself if it is a message, otherwise None."""
        return None

    @property
    def blocks(self) -> list[LayoutBlock]:
        """The layout blocks, built on first access."""
        if self._blocks is None:
            self._blocks = self.build_blocks()
        return self._blocks

    def build_blocks(self) -> list[LayoutBlock]:
        """Build the layout blocks from the current content."""
        return plain_text_blocks(escape_controls(self.text), {"note": "muted", "error": "error"}.get(self.kind, ""))

    def height(self, width: int) -> int:
        """Return the number of rows including the empty row above; an estimate for blocks without layout."""
        if self._blocks is None:
            return 1 + estimate_rows(self.text, width)
        return 1 + sum(block.height(width) + block.gap for block in self._blocks)

    def invalidate(self) -> None:
        """Discard the layout blocks; the next access rebuilds them."""
        self._blocks = None


class MessageEntry(TranscriptEntry):
    """A message of the conversation. A reply is extended with `append` while it is streaming."""

    def __init__(
        self, message: Message, alternative: tuple[int, int], glyphs: Glyphs, *, shows_stats: bool = False
    ) -> None:
        """`alternative` is (number, count) among the alternatives of the message, counted from 1."""
        super().__init__("assistant" if message.role == "assistant" else "user", message.text)
        self.message = message
        self.alternative = alternative
        self.glyphs = glyphs
        self.shows_stats = shows_stats
        self.is_expanded = False
        """True if the reasoning is shown in full."""
        self.reasoning = message.reasoning
        self._splitter: MarkdownSplitter | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        return self

    @property
    def is_streaming(self) -> bool:
        return self._splitter is not None

    def build_blocks(self) -> list[LayoutBlock]:
        blocks = self._header_blocks()
        if self.kind == "user":
            blocks += plain_text_blocks(escape_controls(self.text), "")
        else:
            splitter = MarkdownSplitter(escape_controls(self.text))
            if self.is_streaming:
                self._splitter = splitter
            else:
                splitter.finish()
            blocks += [_layout_block(block) for block in splitter.blocks]
            _show_partial_line(blocks, splitter)
        return blocks if self.is_streaming else blocks + self._footer_blocks()

    def _header_blocks(self) -> list[LayoutBlock]:
        """Build the blocks above the text: the number among the alternatives (such as 2/3) and the reasoning."""
        number, count = self.alternative
        blocks: list[LayoutBlock] = []
        if count > 1:
            blocks.append(PlainTextLayout(f"{self.glyphs.left}{number}/{count}{self.glyphs.right}", "muted"))
        if self.reasoning:
            blocks.append(PlainTextLayout(self._reasoning_summary(), "muted"))
            if self.is_expanded:
                blocks += plain_text_blocks(escape_controls(self.reasoning), "muted")
                blocks.append(PlainTextLayout("", "muted"))
        return blocks

    def _reasoning_summary(self) -> str:
        """Return one line about the reasoning, with its most recent line until the text of the reply begins."""
        glyph = self.glyphs.expanded if self.is_expanded else self.glyphs.collapsed
        summary = f"{glyph} Reasoning ({len(self.reasoning.split())} words)"
        if self.is_streaming and not self.text:
            last = next((" ".join(line.split()) for line in reversed(self.reasoning.splitlines()) if line.strip()), "")
            return f"{summary}: {escape_controls(last[-_SUMMARY_CHARS:])}"
        return summary

    def _footer_blocks(self) -> list[LayoutBlock]:
        """Build the blocks below the text: attachments, the reason for an early end, and statistics."""
        message = self.message
        blocks: list[LayoutBlock] = [
            PlainTextLayout(f"[{escape_controls(a.name)}, {a.size_bytes:,} bytes]", "muted")
            for a in message.attachments
        ]
        if message.finish_reason == "length":
            blocks.append(
                PlainTextLayout("(The reply reached its length limit; /continue resumes it)", "muted", gap=True)
            )
        elif message.role == "assistant" and message.is_interrupted:
            reason = "Stopped" if message.finish_reason == "cancelled" else "Interrupted"
            blocks.append(PlainTextLayout(f"({reason}; /continue resumes the reply)", "muted", gap=bool(message.text)))
        if self.shows_stats and message.stats is not None:
            blocks.append(PlainTextLayout(escape_controls(performance_summary(message)), "muted", gap=True))
        return blocks

    def start_streaming(self) -> None:
        """Prepare for calls of `append`, which add to the current text."""
        self._splitter = (
            MarkdownSplitter()
        )  # `build_blocks` replaces this splitter by one that contains the text so far
        self.invalidate()

    def append(self, text: str, reasoning: str) -> None:
        """Extend the reply, and update its last blocks."""
        self.reasoning += reasoning
        had_text = bool(self.text)
        self.text += text
        if self._splitter is None or self._blocks is None or (reasoning or not had_text):
            self.invalidate()
            return
        n_before = len(self._splitter.blocks)
        self._splitter.feed(escape_controls(text))
        self._update_blocks(self._splitter, self._blocks, n_before)

    def _update_blocks(self, splitter: MarkdownSplitter, blocks: list[LayoutBlock], n_before: int) -> None:
        """Bring `blocks` up to date with `splitter`, which had `n_before` blocks at the last update."""
        if blocks and isinstance(blocks[-1], _PartialLineLayout):
            blocks.pop()
        if n_before and blocks:
            _set_partial(blocks[-1], "")
        blocks += [_layout_block(block) for block in splitter.blocks[n_before:]]
        _show_partial_line(blocks, splitter)

    def finish(self, message: Message) -> None:
        """End streaming; `message` is the reply as it was saved."""
        self.message, self.text, self.reasoning = message, message.text, message.reasoning
        splitter, self._splitter = self._splitter, None
        if splitter is None or self._blocks is None or self.reasoning:
            self.invalidate()
            return
        # Keep the layout of all blocks but the last: only the end of the reply changes.
        n_before = len(splitter.blocks)
        splitter.finish()
        self._update_blocks(splitter, self._blocks, n_before)
        self._blocks += self._footer_blocks()

    def update(self, message: Message, alternative: tuple[int, int], *, shows_stats: bool) -> None:
        """Show the current state of the message; keep the layout if nothing changed."""
        is_same = message == self.message and alternative == self.alternative and shows_stats == self.shows_stats
        self.message, self.alternative, self.shows_stats = message, alternative, shows_stats
        if not is_same:
            self.text, self.reasoning = message.text, message.reasoning
            self.invalidate()


class _PartialLineLayout(ProseLayout):
    """The incomplete first line of a block of unknown kind."""

    def __init__(self, partial: str, *, gap: bool) -> None:
        super().__init__(MarkdownBlock("text", 0, gap=gap), partial)


def _layout_block(block: MarkdownBlock) -> LayoutBlock:
    return CodeLayout(block) if block.kind == "code" else ProseLayout(block)


def _show_partial_line(blocks: list[LayoutBlock], splitter: MarkdownSplitter) -> None:
    """Show the incomplete line in the last block, or in a block of its own."""
    partial = splitter.visible_partial
    if splitter.open_block is not None:
        _set_partial(blocks[-1], partial)
    elif partial:
        blocks.append(_PartialLineLayout(partial, gap=bool(splitter.blocks)))


def _set_partial(block: LayoutBlock, partial: str) -> None:
    if isinstance(block, MarkdownLayout):
        block.set_partial(partial)


def plain_text_blocks(text: str, style: str) -> list[LayoutBlock]:
    """Divide a text without markup into blocks of limited size."""
    blocks: list[LayoutBlock] = []
    lines: list[str] = []
    n_chars = 0
    for line in text.split("\n"):
        for start in range(0, max(1, len(line)), _MAX_CHARS):
            part = line[start : start + _MAX_CHARS]
            if lines and (len(lines) >= _MAX_LINES or n_chars + len(part) > _MAX_CHARS):
                blocks.append(PlainTextLayout("\n".join(lines), style))
                lines, n_chars = [], 0
            lines.append(part)
            n_chars += len(part)
    blocks.append(PlainTextLayout("\n".join(lines), style))
    return blocks
