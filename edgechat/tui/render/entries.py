"""Transcript entries: messages, notes and errors. Each entry builds its list of layout blocks on first use."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, Literal

from edgechat.chat.messages import describe_origin, format_performance
from edgechat.documents.descriptions import describe_set
from edgechat.documents.passages import PASSAGES_MEDIA_TYPE
from edgechat.terminal import TextEscaper, escape_controls
from edgechat.tui.render.citation_marks import (
    CitationMarks,
    insert_placeholders,
    restore_citations,
    select_marks,
)
from edgechat.tui.render.code_layout import CodeLayout
from edgechat.tui.render.layout_blocks import (
    LayoutBlock,
    MarkdownLayout,
    PlainTextLayout,
    ProseLayout,
    estimate_rows,
)
from edgechat.tui.render.markdown_blocks import MarkdownBlock, MarkdownSplitter, find_break
from edgechat.tui.render.palette import ALL_PASSAGES, CITATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgechat.chat.messages import Message
    from edgechat.documents.citations import Citation
    from edgechat.documents.passages import PassageSet
    from edgechat.tui.conversation_passages import ConversationPassages
    from edgechat.tui.render.palette import Glyphs

EntryKind = Literal["user", "assistant", "note", "error"]

# Size limits of one block of plain text.
_MAX_LINES: Final = 40
_MAX_CHARS: Final = 4096
_MAX_SUMMARY_CHARS: Final = 60


class TranscriptEntry:
    """A note or an error, as layout blocks below an empty row. Base class of `MessageEntry`."""

    def __init__(self, kind: EntryKind, text: str) -> None:
        self.kind: EntryKind = kind
        self.text = text
        self._blocks: list[LayoutBlock] | None = None

    @property
    def as_message(self) -> MessageEntry | None:
        """This entry if it is a message, otherwise None."""
        return None

    @property
    def blocks(self) -> list[LayoutBlock]:
        """The layout blocks, built on first access."""
        if self._blocks is None:
            self._blocks = self.build_blocks()
        return self._blocks

    def build_blocks(self) -> list[LayoutBlock]:
        """Build the layout blocks from the current content."""
        return split_plain_text(escape_controls(self.text), {"note": "muted", "error": "error"}.get(self.kind, ""))

    def height(self, width: int) -> int:
        """Return the number of rows, including the empty row above the entry; estimated for blocks without a layout."""
        if self._blocks is None:
            return 1 + estimate_rows(self.text, width)
        return 1 + sum(block.height(width) + block.gap for block in self._blocks)

    def invalidate(self) -> None:
        """Discard the layout blocks; the next access rebuilds them."""
        self._blocks = None


class MessageEntry(TranscriptEntry):
    """A message of the conversation. While a reply is streaming, `append` extends it."""

    def __init__(
        self, message: Message, alternative: tuple[int, int], glyphs: Glyphs, *, show_stats: bool = False,
        passages: ConversationPassages | None = None,
    ) -> None:  # fmt: skip
        """`alternative` is (number of the message among its alternatives, from 1; number of alternatives).

        `passages` are those of the conversation; None if it has none.
        """
        super().__init__("assistant" if message.role == "assistant" else "user", message.text)
        self.message = message
        self.alternative = alternative
        self.glyphs = glyphs
        self.shows_stats = show_stats
        self.is_expanded = False
        """True if the reasoning is shown in full."""
        self.reasoning = message.reasoning
        self.passages = passages
        self._citations: list[Citation] | None = None
        self._citation_marks: CitationMarks = {}
        self._splitter: MarkdownSplitter | None = None
        self._escaper = TextEscaper()

    @property
    def as_message(self) -> MessageEntry | None:
        return self

    @property
    def is_streaming(self) -> bool:
        return self._splitter is not None

    def build_blocks(self) -> list[LayoutBlock]:
        blocks = self._build_header()
        if self.kind == "user":
            blocks += split_plain_text(escape_controls(self.text), "user_text")
        else:
            self._escaper = TextEscaper()
            if self.is_streaming:
                splitter = self._splitter = MarkdownSplitter(self._escaper.feed(self.text))
            else:
                splitter = self._split_with_citations()
            blocks += [_make_layout(block, self._citation_marks) for block in splitter.blocks]
            _show_partial_line(blocks, splitter)
        return blocks if self.is_streaming else blocks + self._build_footer()

    @property
    def citations(self) -> list[Citation]:
        """Citations of a complete reply. Their positions are in the text with escaped control characters."""
        if self.is_streaming or self.passages is None or self.kind != "assistant":
            return []
        if self._citations is None:
            self._citations = self.passages.find_citations(escape_controls(self.text)) if "[" in self.text else []
        return self._citations

    @property
    def passage_set(self) -> PassageSet | None:
        """Passages that belong to a user message; None if it has none."""
        return self.passages.sets.get(self.message.id) if self.passages is not None else None

    def _split_with_citations(self) -> MarkdownSplitter:
        """Split the complete text into blocks, with placeholders for the citations."""
        text, self._citation_marks = escape_controls(self.text), {}
        if self.citations:
            text, self._citation_marks = insert_placeholders(text, self.citations)
        splitter = MarkdownSplitter(text)
        splitter.finish()
        return splitter

    def _build_header(self) -> list[LayoutBlock]:
        """Build the blocks above the text: its number among the alternatives, why it was picked, and the reasoning."""
        number, count = self.alternative
        blocks: list[LayoutBlock] = []
        origin = describe_origin(self.message, dt.datetime.now().astimezone().date())
        model = escape_controls(self.message.model.removesuffix(".gguf"))
        if count > 1:
            stats = self.message.stats
            texts = [text for text in (stats.pick, stats.route) if isinstance(text, str)] if stats is not None else []
            reason = "".join(f" {escape_controls(text)}" for text in texts)
            place = f"{self.glyphs.left}{number}/{count}{self.glyphs.right}{reason}"
            names = [place] if origin or not model else [place, model]
            blocks.append(PlainTextLayout(", ".join(names) if reason else " ".join(names), "muted"))
        if origin:
            blocks.append(PlainTextLayout(", ".join(filter(None, (origin, model))), "muted"))
        if self.reasoning:
            blocks.append(PlainTextLayout(self._summarize_reasoning(), "muted"))
            if self.is_expanded:
                blocks += split_plain_text(escape_controls(self.reasoning), "muted")
                blocks.append(PlainTextLayout("", "muted"))
        return blocks

    def _summarize_reasoning(self) -> str:
        """Return one line: the word count of the reasoning and, until the reply has text, the reasoning's last line."""
        glyph = self.glyphs.expanded if self.is_expanded else self.glyphs.collapsed
        summary = f"{glyph} Reasoning ({len(self.reasoning.split())} words)"
        if self.is_streaming and not self.text:
            last = next((" ".join(line.split()) for line in reversed(self.reasoning.splitlines()) if line.strip()), "")
            return f"{summary}: {escape_controls(last[-_MAX_SUMMARY_CHARS:])}"
        return summary

    def _build_footer(self) -> list[LayoutBlock]:
        """Build the blocks below the text: attachments, the reason why the reply ended early, and statistics."""
        message = self.message
        passage_set = self.passage_set
        blocks: list[LayoutBlock] = [
            PlainTextLayout(f"[{escape_controls(a.name)}, {a.size_bytes:,} bytes]", "muted")
            for a in message.attachments
            if passage_set is None or a.media_type != PASSAGES_MEDIA_TYPE
        ]
        if passage_set is not None:
            text = f"{self.glyphs.collapsed} {describe_set(passage_set)}"
            blocks.append(PlainTextLayout(text, "muted", meta={CITATION: ALL_PASSAGES}))
        if message.end_notice:
            blocks.append(PlainTextLayout(f"({message.end_notice})", "muted", gap=bool(message.text)))
        if self.shows_stats and message.stats is not None:
            blocks.append(PlainTextLayout(escape_controls(format_performance(message)), "muted", gap=True))
        return blocks

    def use_glyphs(self, glyphs: Glyphs) -> None:
        """Set the glyphs, and discard the layout if they have changed."""
        if glyphs != self.glyphs:
            self.glyphs = glyphs
            self.invalidate()

    def number(self, alternative: tuple[int, int]) -> bool:
        """Set the number among the alternatives and their number; return False if they have not changed."""
        if alternative == self.alternative:
            return False
        self.alternative = alternative
        self.invalidate()
        return True

    def start_streaming(self) -> None:
        """Prepare to stream text: later calls of `append` add to the current text."""
        # `build_blocks` replaces this splitter with one that contains the text so far.
        self._splitter = MarkdownSplitter()
        self.invalidate()

    def append(self, text: str, reasoning: str) -> None:
        """Append text and reasoning to the reply, and update its last layout blocks."""
        self.reasoning += reasoning
        had_text = bool(self.text)
        self.text += text
        if self._splitter is None or self._blocks is None or (reasoning or not had_text):
            self.invalidate()
            return
        n_old_blocks = len(self._splitter.blocks)
        self._splitter.feed(self._escaper.feed(text))
        self._update_blocks(self._splitter, self._blocks, n_old_blocks)

    def _update_blocks(self, splitter: MarkdownSplitter, blocks: list[LayoutBlock], n_old_blocks: int) -> None:
        """Update `blocks` to the state of `splitter`, which had `n_old_blocks` blocks at the previous update."""
        if blocks and isinstance(blocks[-1], _PartialLineLayout):
            blocks.pop()
        if n_old_blocks and blocks:
            _set_partial_line(blocks[-1], "")
        blocks += [_make_layout(block) for block in splitter.blocks[n_old_blocks:]]
        _show_partial_line(blocks, splitter)

    def finish(self, message: Message) -> None:
        """End streaming; `message` is the saved reply."""
        self.message, self.text, self.reasoning = message, message.text, message.reasoning
        splitter, self._splitter = self._splitter, None
        self._citations = None
        if splitter is None or self._blocks is None or self.reasoning or self.citations:
            self.invalidate()
            return
        # Keep the layout of all blocks but the last: only the end of the reply changes.
        n_old_blocks = len(splitter.blocks)
        self._finish_text(splitter)
        self._update_blocks(splitter, self._blocks, n_old_blocks)
        self._blocks += self._build_footer()

    def _finish_text(self, splitter: MarkdownSplitter) -> None:
        splitter.feed(self._escaper.finish())
        splitter.finish()

    def update(
        self, message: Message, alternative: tuple[int, int], *, show_stats: bool,
        passages: ConversationPassages | None = None,
    ) -> None:  # fmt: skip
        """Replace the message; keep the layout if nothing changed."""
        is_unchanged = message == self.message and alternative == self.alternative and show_stats == self.shows_stats
        if passages is not self.passages:
            old_set, old_citations = self.passage_set, self.citations
            self.passages, self._citations = passages, None
            is_unchanged = is_unchanged and self.passage_set is old_set and self.citations == old_citations
        self.message, self.alternative, self.shows_stats = message, alternative, show_stats
        if not is_unchanged:
            self.text, self.reasoning, self._citations = message.text, message.reasoning, None
            self.invalidate()


class _PartialLineLayout(ProseLayout):
    """Layout of an incomplete line that starts a block whose kind is not known yet."""

    def __init__(self, partial_line: str, *, gap: bool) -> None:
        super().__init__(MarkdownBlock("text", 0, gap=gap), partial_line)


def _make_layout(block: MarkdownBlock, citations: CitationMarks | None = None) -> LayoutBlock:
    if not citations:
        return CodeLayout(block) if block.kind == "code" else ProseLayout(block)
    if block.kind == "code":
        block.lines = [restore_citations(line, citations) for line in block.lines]
        return CodeLayout(block)
    return ProseLayout(block, citations=select_marks(block.source, citations))


def _show_partial_line(blocks: list[LayoutBlock], splitter: MarkdownSplitter) -> None:
    """Show the incomplete line in the last layout block, or in a new one if no Markdown block is open."""
    partial_line = splitter.visible_partial_line
    if splitter.open_block is not None:
        _set_partial_line(blocks[-1], partial_line)
    elif partial_line:
        blocks.append(_PartialLineLayout(partial_line, gap=bool(splitter.blocks)))


def _set_partial_line(block: LayoutBlock, partial_line: str) -> None:
    if isinstance(block, MarkdownLayout):
        block.set_partial_line(partial_line)


def _split_line(line: str) -> Iterator[str]:
    """Yield the parts of a line, each of at most `_MAX_CHARS` characters."""
    while len(line) > _MAX_CHARS:
        end = find_break(line, _MAX_CHARS)
        yield line[:end]
        line = line[end:]
    yield line


def split_plain_text(text: str, style: str) -> list[LayoutBlock]:
    """Split plain text into layout blocks of at most `_MAX_LINES` lines and about `_MAX_CHARS` characters."""
    blocks: list[LayoutBlock] = []
    lines: list[str] = []
    n_chars = 0
    for line in text.split("\n"):
        for part in _split_line(line):
            if lines and (len(lines) >= _MAX_LINES or n_chars + len(part) > _MAX_CHARS):
                blocks.append(PlainTextLayout("\n".join(lines), style))
                lines, n_chars = [], 0
            lines.append(part)
            n_chars += len(part)
    blocks.append(PlainTextLayout("\n".join(lines), style))
    return blocks
