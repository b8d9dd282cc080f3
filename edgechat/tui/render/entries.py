"""What stands in the transcript: messages and notes, each as pieces that are made when they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from edgechat.chat.messages import figures
from edgechat.terminal import visible
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

# Plain text is cut into pieces of so much.
_MOST_LINES: Final = 40
_MOST_CHARS: Final = 4096
_SUMMARY_CHARS: Final = 60


class TranscriptEntry:
    """A note, an error, or the base of a message: some pieces, and an empty row before them."""

    def __init__(self, kind: Kind, text: str) -> None:
        self.kind: Kind = kind
        self.text = text
        self._blocks: list[LayoutBlock] | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """Itself, if it is a message."""
        return None

    @property
    def blocks(self) -> list[LayoutBlock]:
        """Made when they are first asked for."""
        if self._blocks is None:
            self._blocks = self.build_blocks()
        return self._blocks

    def build_blocks(self) -> list[LayoutBlock]:
        """The pieces."""
        return plain_text_blocks(visible(self.text), {"note": "muted", "error": "error"}.get(self.kind, ""))

    def height(self, width: int) -> int:
        """Rows, the empty one before it included; guessed where it was not laid out."""
        if self._blocks is None:
            return 1 + estimate_rows(self.text, width)
        return 1 + sum(piece.height(width) + piece.gap for piece in self._blocks)

    def invalidate(self) -> None:
        """Something of it changed that is not its text."""
        self._blocks = None


class MessageEntry(TranscriptEntry):
    """A message of the conversation."""

    def __init__(
        self, message: Message, alternative: tuple[int, int], glyphs: Glyphs, *, shows_stats: bool = False
    ) -> None:
        """`place` is which of how many alternatives it is."""
        super().__init__("assistant" if message.role == "assistant" else "user", message.text)
        self.message = message
        self.alternative = alternative
        self.glyphs = glyphs
        self.shows_stats = shows_stats
        self.is_expanded = False
        """True if the reasoning is shown."""
        self.reasoning = message.reasoning
        self._splitter: MarkdownSplitter | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """Itself."""
        return self

    @property
    def is_streaming(self) -> bool:
        """True while it is written."""
        return self._splitter is not None

    def build_blocks(self) -> list[LayoutBlock]:
        """The reasoning or a line for it, the text, and what there is to say of it."""
        pieces: list[LayoutBlock] = self._above()
        if self.kind == "user":
            pieces += plain_text_blocks(visible(self.text), "")
        else:
            splitter = MarkdownSplitter(visible(self.text))
            if self.is_streaming:
                self._splitter = splitter
            else:
                splitter.finish()
            pieces += [_piece(block) for block in splitter.blocks]
            _show_partial(pieces, splitter)
        return pieces + self._below()

    def _above(self) -> list[LayoutBlock]:
        number, count = self.alternative
        found: list[LayoutBlock] = []
        if count > 1:
            found.append(PlainTextLayout(f"{self.glyphs.left}{number}/{count}{self.glyphs.right}", "muted"))
        if self.reasoning:
            found.append(PlainTextLayout(self._fold_line(), "muted"))
            if self.is_expanded:
                found += plain_text_blocks(visible(self.reasoning), "muted")
                found.append(PlainTextLayout("", "muted"))
        return found

    def _fold_line(self) -> str:
        """One line for the reasoning: while it grows, what it is at."""
        sign = self.glyphs.unfolded if self.is_expanded else self.glyphs.folded
        n_words = len(self.reasoning.split())
        if self.is_streaming and not self.text:
            last = next((" ".join(line.split()) for line in reversed(self.reasoning.splitlines()) if line.strip()), "")
            return f"{sign} thinking ({n_words} words): {visible(last[-_SUMMARY_CHARS:])}"
        return f"{sign} thought for {n_words} words"

    def _below(self) -> list[LayoutBlock]:
        message = self.message
        found: list[LayoutBlock] = [
            PlainTextLayout(f"[{visible(a.name)}, {a.size_bytes:,} bytes]", "muted") for a in message.attachments
        ]
        if self.is_streaming:
            return found
        if message.finish_reason == "length":
            found.append(PlainTextLayout("(the answer reached its length limit)", "muted", gap=True))
        elif message.role == "assistant" and message.interrupted:
            why = "stopped" if message.finish_reason == "cancelled" else "interrupted"
            found.append(PlainTextLayout(f"({why}; /continue goes on)", "muted", gap=bool(message.text)))
        if self.shows_stats and message.stats is not None:
            found.append(PlainTextLayout(visible(figures(message)), "muted", gap=True))
        return found

    # Growing

    def start_streaming(self) -> None:
        """It is written from now on, after what there is of it."""
        self._splitter = MarkdownSplitter()  # `make` gives it that
        self.invalidate()

    def append(self, text: str, reasoning: str) -> None:
        """More of it."""
        self.reasoning += reasoning
        had_text = bool(self.text)
        self.text += text
        if self._splitter is None or self._blocks is None or (reasoning or not had_text):
            self.invalidate()
            return
        before = len(self._splitter.blocks)
        self._splitter.feed(visible(text))
        self._update(before)

    def _update(self, n_before: int) -> None:
        """Bring the last pieces up to what the splitter found."""
        splitter, pieces = self._splitter, self._blocks
        if splitter is None or pieces is None:
            return
        if pieces and isinstance(pieces[-1], _Beginning):
            pieces.pop()
        blocks = splitter.blocks
        if n_before and pieces:
            _set_partial(pieces[-1], "")
        pieces += [_piece(block) for block in blocks[n_before:]]
        _show_partial(pieces, splitter)

    def finish(self, message: Message) -> None:
        """It is complete, or was stopped: `message` is as it is kept."""
        self.message, self.text, self.reasoning = message, message.text, message.reasoning
        splitter = self._splitter
        if splitter is None or self._blocks is None or self.reasoning:
            self._splitter = None
            self.invalidate()
            return
        # What was laid out stays: only the end is new.
        before = len(splitter.blocks)
        splitter.finish()
        self._update(before)
        self._splitter = None
        self._blocks += self._below()

    def update(self, message: Message, place: tuple[int, int], *, figures: bool) -> None:
        """Show the message as it is now, if that makes a difference."""
        is_same = message == self.message and place == self.alternative and figures == self.shows_stats
        self.message, self.alternative, self.shows_stats = message, place, figures
        if not is_same:
            self.text, self.reasoning = message.text, message.reasoning
            self.invalidate()


class _Beginning(ProseLayout):
    """The first line of a block, before it is known what that will be."""

    def __init__(self, partial: str, *, gap: bool) -> None:
        block = MarkdownBlock("text", 0, gap=gap)
        super().__init__(block, partial)


def _piece(block: MarkdownBlock) -> LayoutBlock:
    return CodeLayout(block) if block.kind == "code" else ProseLayout(block)


def _show_partial(pieces: list[LayoutBlock], splitter: MarkdownSplitter) -> None:
    """Show the line that is not complete, where it will be."""
    partial = splitter.visible_partial
    if splitter.open_block is not None:
        _set_partial(pieces[-1], partial)
    elif partial:
        pieces.append(_Beginning(partial, gap=bool(splitter.blocks)))


def _set_partial(piece: LayoutBlock, partial: str) -> None:
    if isinstance(piece, MarkdownLayout):
        piece.set_partial(partial)


def plain_text_blocks(text: str, style: str) -> list[LayoutBlock]:
    """Pieces of a text that is shown as it stands."""
    pieces: list[LayoutBlock] = []
    lines: list[str] = []
    n_chars = 0
    for line in text.split("\n"):
        for start in range(0, max(1, len(line)), _MOST_CHARS):
            part = line[start : start + _MOST_CHARS]
            if lines and (len(lines) >= _MOST_LINES or n_chars + len(part) > _MOST_CHARS):
                pieces.append(PlainTextLayout("\n".join(lines), style))
                lines, n_chars = [], 0
            lines.append(part)
            n_chars += len(part)
    pieces.append(PlainTextLayout("\n".join(lines), style))
    return pieces
