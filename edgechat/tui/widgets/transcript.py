"""The scrollable conversation of the chat screen.

Far from the visible rows, heights are estimates until the text is rendered. When an exact height replaces an estimate,
the top visible row keeps its position on the screen, so that the visible text does not jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from edgechat.tui.render.palette import CITATION
from edgechat.tui.render.row_index import RowPosition
from edgechat.tui.render.transcript_layout import TranscriptLayout
from edgechat.tui.render.word_marks import GUTTER, WordMarks, highlight_span, join_selected_rows
from edgechat.tui.widgets.row_scrolling import RowScrolling

if TYPE_CHECKING:
    from rich.style import Style
    from textual.selection import Selection

    from edgechat.tui.render.code_layout import CodeLayout
    from edgechat.tui.render.entries import MessageEntry, TranscriptEntry
    from edgechat.tui.render.layout_blocks import LayoutBlock
    from edgechat.tui.render.palette import Palette


class Transcript(RowScrolling, can_focus=True):
    """Scrollable list of entries with a message cursor. While the end is visible, new text scrolls into view."""

    ALLOW_SELECT = True
    DEFAULT_CSS = """
    Transcript { height: 1fr; overflow-x: hidden; overflow-y: scroll; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Previous message", id="transcript.up", show=False),
        Binding("down", "move(1)", "Next message", id="transcript.down", show=False),
        Binding("home", "top", "Go to the start", id="transcript.top", show=False),
        Binding("end", "bottom", "Go to the end", id="transcript.bottom", show=False),
        Binding("t", "fold", "Show or hide the reasoning", id="transcript.fold", show=False),
    ]

    class ViewChanged(Message):
        """The last row became visible or hidden, the cursor moved, or the transcript gained or lost the focus."""

    class CitationClicked(Message):
        """The user clicked on a citation, or on the line that stands for all passages of a message."""

        def __init__(self, entry: MessageEntry, index: int) -> None:
            """`index` is the index of the citation in the reply, or `ALL_PASSAGES`."""
            super().__init__()
            self.entry = entry
            self.index = index

    class HighlightRequested(Message):
        """A long code block is complete and must be highlighted in a thread."""

        def __init__(self, block: LayoutBlock, width: int) -> None:
            super().__init__()
            self.block = block
            self.width = width

    def __init__(
        self, get_palette: Callable[[], Palette],
        on_text_typed: Callable[[events.Key | events.Paste], object] = lambda _event: None, *, id: str,  # noqa: A002
    ) -> None:  # fmt: skip
        """`on_text_typed` is called for text that is typed or pasted while the transcript has the focus."""
        super().__init__(id=id)
        self._on_text_typed = on_text_typed
        self._get_palette = get_palette
        self._layout = TranscriptLayout(
            lambda: self.text_width, get_palette,
            lambda block, width: self.post_message(self.HighlightRequested(block, width)),
        )  # fmt: skip
        self.follows_end = True
        """True if the last row is visible, and stays visible when entries grow."""
        self._reported_end = True
        self._marks = WordMarks()
        self.cursor: int | None = None
        """Index of the entry at the message cursor; None if there is no cursor."""
        self._last_key = ""
        self._on_number: tuple[str, Callable[[int | None], object]] | None = None
        """Key that asked for a number, and the function to call with the number."""
        self._is_updating = False
        self._base_style: Style | None = None
        """Style of the widget, applied beneath the style of each row; None until `render_line` reads it."""

    # Entries

    @property
    def entries(self) -> list[TranscriptEntry]:
        return self._layout.entries

    @property
    def text_width(self) -> int:
        """Width in columns of the text, without the gutter and the scrollbar."""
        return max(8, self.scrollable_content_region.width - GUTTER - 1)

    def set_entries(self, entries: Sequence[TranscriptEntry], *, follow: bool = True) -> None:
        """Replace the entries and keep the cursor on its entry. If `follow` is true, scroll to the end.

        If the entry of the cursor is gone, the cursor moves to the message that replaces it, or to the last one.
        """
        old_entries, cursor_entry = self.entries, self.entries[self.cursor] if self.cursor is not None else None
        self._layout.set_entries(entries)
        if cursor_entry is not None:
            is_kept = cursor_entry in self.entries
            self.cursor = self.entries.index(cursor_entry) if is_kept else self._layout.find_new_message(old_entries)
        self.follows_end = self.follows_end or follow
        self.update_layout()

    def append(self, entry: TranscriptEntry) -> None:
        """Add an entry at the end."""
        self.entries.append(entry)
        self._layout.measure_last()
        self.update_layout()

    def update_entry(self, entry: TranscriptEntry) -> None:
        """Lay out an entry again after its text has grown. Does nothing if the end of the transcript is not visible."""
        if self.follows_end:
            index, width = self._layout.index.index_of(entry), self.text_width
            self._layout.measure(index)
            blocks = enumerate(entry.blocks)
            first_block = next((i for i, block in blocks if block.is_stale or block.layout_width != width), 0)
            self.update_layout(first_changed=RowPosition(index, first_block, 0))

    def discard_layout(self) -> None:
        """Discard all rendered rows and render the visible rows again, after a change of colours or glyphs."""
        for entry in self.entries:
            if entry.as_message is not None:
                entry.as_message.use_glyphs(self._get_palette().glyphs)
        self._layout.discard()
        self.update_layout()

    def apply_highlighting(self, block: CodeLayout, rows: list[Strip], width: int) -> None:
        """Show the rows that `highlight_code` returned for `block`; an empty list leaves the block without colours."""
        self._layout.set_highlighted_rows(block, rows, width)
        self.update_layout()

    # Layout

    def update_layout(self, first_changed: RowPosition | None = None) -> None:
        """Render the visible rows and the rows near them, and repaint the widget.

        If the transcript did not scroll, only the rows from `first_changed` to the last row are repainted.
        """
        old_scroll_y, old_n_rows = round(self.scroll_y), self._layout.index.n_rows
        height = self.scrollable_content_region.height
        if self._is_updating or not height or not self.is_attached:
            return
        self._is_updating = True
        try:
            self._lay_out(height)
        finally:
            self._is_updating = False
        top, bottom = 0, self.size.height
        if first_changed is not None and old_scroll_y == round(self.scroll_y):
            blocks = self.entries[first_changed.entry_index].blocks[first_changed.block_index :]
            # An entry has no blocks while its only line can still become a code fence.
            first_row = blocks[0].first_changed_row - blocks[0].gap if blocks else 0
            top = max(0, self._layout.row_of(first_changed) + first_row - old_scroll_y)
            bottom = min(bottom, max(old_n_rows, self._layout.index.n_rows) + 1 - old_scroll_y)
        self.refresh(Region(0, top, self.size.width, max(0, bottom - top)))
        if self._reported_end != self.follows_end:
            self._reported_end = self.follows_end
            self.post_message(self.ViewChanged())

    def _lay_out(self, height: int) -> None:
        """Render the visible rows, then scroll so that the end stays visible, or the top row keeps its position."""
        top: RowPosition | None = None
        if self.follows_end:
            self._layout.lay_out_end(height)
        else:
            top = self._layout.lay_out_from(round(self.scroll_y), height)
        n_rows = self._layout.index.n_rows + 1
        scroll_y = max(0, n_rows - height)
        if top is not None:
            self.follows_end = self._layout.row_of(top) >= scroll_y
            scroll_y = min(self._layout.row_of(top), scroll_y)
        self._set_virtual_size(self.scrollable_content_region.width, n_rows)
        self.set_reactive(ScrollView.scroll_target_y, scroll_y)
        if self.scroll_y != scroll_y:
            self.scroll_y = scroll_y

    # Painting

    def _render_row(self, row: int, *, is_whole: bool = False) -> Strip:
        """Return a transcript row with its gutter. If `is_whole`, a line of code is not cut."""
        if row >= self._layout.index.n_rows or not self.entries:
            return Strip.blank(0)
        position = self._layout.position(row)
        if position.block_index < 0:
            return Strip.blank(0)
        palette = self._get_palette()
        bar, style = " ", palette.muted
        if position.entry_index == self.cursor and self.has_focus:
            bar, style = palette.glyphs.cursor, palette.cursor
        elif self.entries[position.entry_index].kind == "user":
            bar, style = palette.glyphs.bar, palette.user
        return Strip([Segment(f"{bar} ", style), *self._layout.content(position, is_whole=is_whole)])

    def render_line(self, y: int) -> Strip:
        row = round(self.scroll_y) + y
        strip = self._mark_words(row, self._render_row(row)) if self._marks else self._render_row(row)
        selection = self.text_selection
        span = selection.get_span(row) if selection is not None else None
        if span is not None:
            strip = highlight_span(strip, span, self._get_palette().selection)
        if self._base_style is None:
            self._base_style = self.rich_style
        strip = strip.crop_extend(0, self.scrollable_content_region.width, None).apply_style(self._base_style)
        return strip.apply_offsets(0, row)

    def _mark_words(self, row: int, strip: Strip) -> Strip:
        index = self._layout.position(row).entry_index
        if index < len(self.entries) and self._marks.applies_to(self.entries[index]):
            rows = [self._render_row(n) for n in range(row - 1, row + 2)]
            for span in self._marks.find_spans(rows, 1):
                strip = highlight_span(strip, span, self._get_palette().selection)
        return strip

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text of selected rows without gutter and captions; if all are selected, return the source text."""
        if selection.start is None and selection.end is None:
            return "\n\n".join(entry.text for entry in self.entries), "\n"
        last_row = self._layout.index.n_rows - 1
        first = selection.start.y if selection.start is not None else 0
        last = selection.end.y if selection.end is not None else last_row
        rows = (row for row in range(first, min(last, last_row) + 1) if not self._layout.is_caption(row))
        spans = ((row, selection.get_span(row) or (0, 0)) for row in rows)
        return join_selected_rows((self._render_row(row, is_whole=span == (0, -1)), span) for row, span in spans), "\n"

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._base_style = None

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        self.refresh()

    # Scrolling

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._is_updating or round(old_value) == round(new_value):
            return
        self._layout.measure_last()
        self.follows_end = new_value >= self.max_scroll_y
        self.update_layout()

    def on_resize(self) -> None:
        if self.entries:
            top = self._layout.position(round(self.scroll_y))
            self._layout.measure()
            if not self.follows_end:
                self._set_virtual_size(self.size.width, self._layout.index.n_rows + 1)
                self.scroll_y = self._layout.row_of(top)
            self.update_layout()

    def action_top(self) -> None:
        self.cursor = self._layout.next_message(-1, 1) if self.has_focus else None
        self.scroll_to(y=0, animate=False, force=True)
        self.refresh()
        self.post_message(self.ViewChanged())

    def action_bottom(self) -> None:
        self.cursor = self._layout.last_message if self.has_focus else None
        self.follows_end = True
        self._layout.measure_last()
        self.update_layout()
        self.post_message(self.ViewChanged())

    # Keys

    def on_key(self, event: events.Key) -> None:
        """Pass keys that type text and have no binding here to the input.

        Keys that arrive after the focus has moved, in the same packet, are passed to the input, too.
        """
        binding = self.screen.active_bindings.get(event.key)
        if binding is None or not binding.binding.action.startswith(("page", "scroll_rows")):
            self.mark_words()
        if self._take_number(event):
            event.prevent_default()
            event.stop()
            return
        has_lost_focus = self.screen.focused is not self
        if has_lost_focus or (event.is_printable and binding is None):
            event.prevent_default()
            event.stop()
            self._on_text_typed(events.Key(event.key, event.character))

    def await_number(self, on_number: Callable[[int | None], object]) -> None:
        """Wait for the next key: call `on_number` with the digit, or with None if the last key is pressed again."""
        self._on_number = (self._last_key, on_number)

    def _take_number(self, event: events.Key) -> bool:
        """Handle the key after `await_number`: a digit, the same key, or Esc to cancel; return False for other keys."""
        (key, on_number), self._on_number = self._on_number or ("", None), None
        self._last_key = event.key
        is_answer = event.key == key or (event.character or "").isdecimal()
        if on_number is not None and is_answer:
            on_number(int(event.character) if event.character and event.character.isdecimal() else None)
        return on_number is not None and (is_answer or event.key == "escape")

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        self._on_text_typed(events.Paste(event.text))

    # Message cursor

    @property
    def current_message(self) -> MessageEntry | None:
        """The message that keys act on: the message at the cursor, or the last message if there is no cursor."""
        index = self.cursor if self.cursor is not None else self._layout.last_message
        return self.entries[index].as_message if index is not None and index < len(self.entries) else None

    def action_move(self, step: int) -> None:
        """Move the cursor to the next or previous message; in a message taller than the screen, scroll instead."""
        index = self.cursor
        top, height = round(self.scroll_y), self.scrollable_content_region.height
        if index is not None and self._layout.continues_off_screen(index, step, top, height):
            self.scroll_rows(step * max(1, height // 2))
            return
        next_index = self._layout.last_message if index is None else self._layout.next_message(index, step)
        if next_index is not None:
            self.move_cursor_to(next_index)
        elif step > 0:
            self.action_bottom()

    def move_cursor_to(self, index: int) -> None:
        """Put the cursor on an entry and scroll it into view."""
        self.cursor = index
        top, height = round(self.scroll_y), self.scrollable_content_region.height
        start, end = self._layout.index.offsets[index : index + 2]
        if start < top or end - start > height:
            self.scroll_to(y=start, animate=False, force=True)
        elif end > top + height:
            self.scroll_to(y=end - height + 1, animate=False, force=True)
        if self._marks.applies_to(self.entries[index]):
            self.call_after_refresh(self._reveal_mark, index)
        self.refresh()
        self.post_message(self.ViewChanged())

    def mark_words(self, message_id: str = "", words: Sequence[str] = ()) -> None:
        """Mark words in a message until a key that does not scroll is pressed; without arguments, remove the marks."""
        if self._marks or words:
            self._marks = WordMarks(message_id, words)
            self.refresh()

    def _reveal_mark(self, index: int) -> None:
        """Scroll to the first marked word of an entry, if it is not visible."""
        height, top = self.scrollable_content_region.height, round(self.scroll_y)
        row = self._marks.find_row(self._layout, index, height)
        if row is not None and not top <= row < top + height:
            self.scroll_to(y=row - height // 3, animate=False, force=True, immediate=True)

    def on_focus(self) -> None:
        if self.cursor is None:
            self.cursor = self._layout.last_message
        self.refresh()
        self.post_message(self.ViewChanged())

    def on_blur(self) -> None:
        self.cursor = None
        self.mark_words()
        self.refresh()
        self.post_message(self.ViewChanged())

    def action_fold(self) -> None:
        entry = self.current_message
        if entry is not None and entry.reasoning:
            self._toggle_reasoning(entry)

    def _toggle_reasoning(self, entry: MessageEntry) -> None:
        entry.is_expanded = not entry.is_expanded
        entry.invalidate()
        if entry.is_expanded:
            self.follows_end = False
        self._layout.measure(self._layout.index.index_of(entry))
        self.update_layout()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the clicked message; open a clicked citation, and show or hide clicked reasoning."""
        position = self._layout.position(round(self.scroll_y) + event.y)
        if position.entry_index >= len(self.entries):
            return
        entry = self.entries[position.entry_index].as_message
        if entry is not None:
            self.cursor = position.entry_index
            citation = event.style.meta.get(CITATION)
            if citation is not None:
                self.post_message(self.CitationClicked(entry, citation))
            elif entry.reasoning and position.block_index == (1 if entry.alternative[1] > 1 else 0):
                self._toggle_reasoning(entry)
            self.refresh()
            self.post_message(self.ViewChanged())
