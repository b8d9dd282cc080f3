"""What stands in the transcript: messages and notes, each as pieces that are made when they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from edgechat.chat.messages import figures
from edgechat.terminal import visible
from edgechat.tui.render.layout_blocks import BlockPiece, Code, LayoutBlock, Prose, Words, guess_rows
from edgechat.tui.render.markdown_blocks import Block, MarkdownSplitter

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.tui.render.palette import Signs

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
        self._pieces: list[LayoutBlock] | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """Itself, if it is a message."""
        return None

    @property
    def pieces(self) -> list[LayoutBlock]:
        """Made when they are first asked for."""
        if self._pieces is None:
            self._pieces = self.make()
        return self._pieces

    def make(self) -> list[LayoutBlock]:
        """The pieces."""
        return plain(visible(self.text), {"note": "muted", "error": "error"}.get(self.kind, ""))

    def height(self, width: int) -> int:
        """Rows, the empty one before it included; guessed where it was not laid out."""
        if self._pieces is None:
            return 1 + guess_rows(self.text, width)
        return 1 + sum(piece.height(width) + piece.gap for piece in self._pieces)

    def remake(self) -> None:
        """Something of it changed that is not its text."""
        self._pieces = None


class MessageEntry(TranscriptEntry):
    """A message of the conversation."""

    def __init__(self, message: Message, place: tuple[int, int], signs: Signs, *, figures: bool = False) -> None:
        """`place` is which of how many alternatives it is."""
        super().__init__("assistant" if message.role == "assistant" else "user", message.text)
        self.message = message
        self.place = place
        self.signs = signs
        self.shows_figures = figures
        self.is_unfolded = False
        """True if the reasoning is shown."""
        self.reasoning = message.reasoning
        self._splitter: MarkdownSplitter | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """Itself."""
        return self

    @property
    def is_growing(self) -> bool:
        """True while it is written."""
        return self._splitter is not None

    def make(self) -> list[LayoutBlock]:
        """The reasoning or a line for it, the text, and what there is to say of it."""
        pieces: list[LayoutBlock] = self._above()
        if self.kind == "user":
            pieces += plain(visible(self.text), "")
        else:
            splitter = MarkdownSplitter(visible(self.text))
            if self.is_growing:
                self._splitter = splitter
            else:
                splitter.finish()
            pieces += [_piece(block) for block in splitter.blocks]
            _show_partial(pieces, splitter)
        return pieces + self._below()

    def _above(self) -> list[LayoutBlock]:
        number, count = self.place
        found: list[LayoutBlock] = []
        if count > 1:
            found.append(Words(f"{self.signs.left}{number}/{count}{self.signs.right}", "muted"))
        if self.reasoning:
            found.append(Words(self._fold_line(), "muted"))
            if self.is_unfolded:
                found += plain(visible(self.reasoning), "muted")
                found.append(Words("", "muted"))
        return found

    def _fold_line(self) -> str:
        """One line for the reasoning: while it grows, what it is at."""
        sign = self.signs.unfolded if self.is_unfolded else self.signs.folded
        n_words = len(self.reasoning.split())
        if self.is_growing and not self.text:
            last = next((" ".join(line.split()) for line in reversed(self.reasoning.splitlines()) if line.strip()), "")
            return f"{sign} thinking ({n_words} words): {visible(last[-_SUMMARY_CHARS:])}"
        return f"{sign} thought for {n_words} words"

    def _below(self) -> list[LayoutBlock]:
        message = self.message
        found: list[LayoutBlock] = [
            Words(f"[{visible(a.name)}, {a.size_bytes:,} bytes]", "muted") for a in message.attachments
        ]
        if self.is_growing:
            return found
        if message.finish_reason == "length":
            found.append(Words("(the answer reached its length limit)", "muted", gap=True))
        elif message.role == "assistant" and message.interrupted:
            why = "stopped" if message.finish_reason == "cancelled" else "interrupted"
            found.append(Words(f"({why}; /continue goes on)", "muted", gap=bool(message.text)))
        if self.shows_figures and message.stats is not None:
            found.append(Words(visible(figures(message)), "muted", gap=True))
        return found

    # Growing

    def begin(self) -> None:
        """It is written from now on, after what there is of it."""
        self._splitter = MarkdownSplitter()  # `make` gives it that
        self.remake()

    def grow(self, text: str, reasoning: str) -> None:
        """More of it."""
        self.reasoning += reasoning
        had_text = bool(self.text)
        self.text += text
        if self._splitter is None or self._pieces is None or (reasoning or not had_text):
            self.remake()
            return
        before = len(self._splitter.blocks)
        self._splitter.feed(visible(text))
        self._update(before)

    def _update(self, n_before: int) -> None:
        """Bring the last pieces up to what the splitter found."""
        splitter, pieces = self._splitter, self._pieces
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
        if splitter is None or self._pieces is None or self.reasoning:
            self._splitter = None
            self.remake()
            return
        # What was laid out stays: only the end is new.
        before = len(splitter.blocks)
        splitter.finish()
        self._update(before)
        self._splitter = None
        self._pieces += self._below()

    def rendered(self, message: Message, place: tuple[int, int], *, figures: bool) -> None:
        """Show the message as it is now, if that makes a difference."""
        is_same = message == self.message and place == self.place and figures == self.shows_figures
        self.message, self.place, self.shows_figures = message, place, figures
        if not is_same:
            self.text, self.reasoning = message.text, message.reasoning
            self.remake()


class _Beginning(Prose):
    """The first line of a block, before it is known what that will be."""

    def __init__(self, partial: str, *, gap: bool) -> None:
        block = Block("text", 0, gap=gap)
        super().__init__(block, partial)


def _piece(block: Block) -> LayoutBlock:
    return Code(block) if block.kind == "code" else Prose(block)


def _show_partial(pieces: list[LayoutBlock], splitter: MarkdownSplitter) -> None:
    """Show the line that is not complete, where it will be."""
    partial = splitter.shown_partial
    if splitter.last is not None:
        _set_partial(pieces[-1], partial)
    elif partial:
        pieces.append(_Beginning(partial, gap=bool(splitter.blocks)))


def _set_partial(piece: LayoutBlock, partial: str) -> None:
    if isinstance(piece, BlockPiece):
        piece.show(partial)


def plain(text: str, style: str) -> list[LayoutBlock]:
    """Pieces of a text that is shown as it stands."""
    pieces: list[LayoutBlock] = []
    lines: list[str] = []
    n_chars = 0
    for line in text.split("\n"):
        for start in range(0, max(1, len(line)), _MOST_CHARS):
            part = line[start : start + _MOST_CHARS]
            if lines and (len(lines) >= _MOST_LINES or n_chars + len(part) > _MOST_CHARS):
                pieces.append(Words("\n".join(lines), style))
                lines, n_chars = [], 0
            lines.append(part)
            n_chars += len(part)
    pieces.append(Words("\n".join(lines), style))
    return pieces
