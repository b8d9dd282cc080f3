"""The conversation on the screen: a list of entries, of which only what is near the screen is laid out.

Rows that were never laid out are guessed. What is about to come into view is laid out before it does, and the position is
kept by the row at the top of the screen, so that nothing jumps when a guess turns out wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from edgechat.tui.render.row_index import RowIndex, RowPosition

if TYPE_CHECKING:
    from textual import events
    from textual.selection import Selection

    from edgechat.tui.render.entries import MessageEntry, TranscriptEntry
    from edgechat.tui.render.layout_blocks import CodeLayout, LayoutBlock
    from edgechat.tui.render.palette import Palette

# Columns before the text, for the bar.
GUTTER: Final = 2
# So many laid out pieces are kept; a screen shows a tenth of that.
_KEPT_PIECES: Final = 400


class Transcript(ScrollView, can_focus=True):
    """Entries, one below the other. Follows the end while it is in view."""

    ALLOW_SELECT = True
    DEFAULT_CSS = """
    Transcript { height: 1fr; overflow-x: hidden; overflow-y: scroll; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "To the message before", id="transcript.up", show=False),
        Binding("down", "move(1)", "To the message after", id="transcript.down", show=False),
        Binding("pageup", "page(-1)", "A page up", id="transcript.page_up", show=False),
        Binding("pagedown", "page(1)", "A page down", id="transcript.page_down", show=False),
        Binding("home", "top", "To the beginning", id="transcript.top", show=False),
        Binding("end", "bottom", "To the end", id="transcript.bottom", show=False),
        Binding("t", "fold", "Show or hide the reasoning", id="transcript.fold", show=False),
    ]

    # Textual's own lays out the whole screen when it changes, which nothing but a scrollbar depends on here.
    virtual_size = Reactive(Size(0, 0))

    class ViewChanged(Message):
        """The end came into view, or went out of it; or keys are about a message now, or not any more."""

    class HighlightRequested(Message):
        """A long block of code is complete, and is to be coloured beside the screen."""

        def __init__(self, block: LayoutBlock, width: int) -> None:
            super().__init__()
            self.block = block
            self.width = width

    def __init__(self, palette: Callable[[], Palette], *, id: str) -> None:  # noqa: A002  (Textual's name)
        super().__init__(id=id)
        self._palette = palette
        self._rows = RowIndex()
        self.follows_end = True
        """True if the end is in view, and stays there."""
        self.cursor: int | None = None
        """The entry that keys are about."""
        self._laid_out: dict[LayoutBlock, None] = {}
        self._is_settling = False
        self._asked_colour: set[LayoutBlock] = set()
        self._base: Style | None = None
        """Under the style of every row; None if it is to be looked up."""

    # What is shown

    @property
    def entries(self) -> list[TranscriptEntry]:
        """What there is, one below the other."""
        return self._rows.entries

    @property
    def text_width(self) -> int:
        """Columns for text."""
        return max(8, self.scrollable_content_region.width - GUTTER - 1)

    def set_entries(self, entries: Sequence[TranscriptEntry], *, follow: bool = True) -> None:
        """Show these and no others."""
        before = self.entries[self.cursor] if self.cursor is not None else None
        self._rows.entries = list(entries)
        self.cursor = self.entries.index(before) if before in self.entries else None
        self.follows_end = self.follows_end or follow
        self._rows.update_offsets(self.text_width)
        self.update_layout()

    def append(self, entry: TranscriptEntry) -> None:
        """One more, at the end."""
        self.entries.append(entry)
        self._rows.update_offsets(self.text_width, len(self.entries) - 1)
        self.update_layout()

    def entry_changed(self, entry: TranscriptEntry) -> None:
        """An entry of the last ones grew. Nothing is painted while the end is out of view."""
        if self.follows_end:
            at = self._rows.index_of(entry)
            self._rows.update_offsets(self.text_width, at)
            width = self.text_width
            number = next((n for n, p in enumerate(entry.blocks) if p.is_stale or p.layout_width != width), 0)
            self.update_layout(grown=(at, number))

    def discard_layout(self) -> None:
        """Lay everything out again: the colours are others."""
        for piece in self._laid_out:
            piece.discard_rows()
        self._laid_out.clear()
        self._asked_colour.clear()
        self.update_layout()

    # Laying out

    def update_layout(self, grown: tuple[int, int] | None = None) -> None:
        """Lay out what is in view and near it, and keep the row at the top where it is.

        With `grown`, an entry and the number of a piece of it, all before that is as it was.
        """
        before = round(self.scroll_y)
        height, width = self.scrollable_content_region.height, self.text_width
        if self._is_settling or not height or not self.is_attached:
            return
        self._is_settling = True
        try:
            self._settle(height, width)
        finally:
            self._is_settling = False
        top = 0
        if grown is not None and before == round(self.scroll_y):
            pieces = self.entries[grown[0]].blocks[grown[1] :]
            changed = pieces[0].first_changed_row - pieces[0].gap if pieces else 0  # none, of the beginning of a fence
            top = max(0, self._rows.row_of(RowPosition(*grown, 0), width) + changed - before)
        self.refresh(Region(0, top, self.size.width, max(0, self.size.height - top)))

    def _settle(self, height: int, width: int) -> None:
        visited: dict[LayoutBlock, None] = {}
        top = RowPosition(0, -1, 0)
        if not self.follows_end:
            top = self._rows.position(round(self.scroll_y), width)
            self._lay_out(self._rows.blocks_from(top), 2 * height + top.row, width, visited)
            self._lay_out(self._rows.blocks_before(top), height, width, visited)
        else:
            self._lay_out(self._rows.blocks_before(RowPosition(len(self.entries), -1, 0)), 2 * height, width, visited)
        self._forget(visited)
        total = self._rows.n_rows + 1
        self.virtual_size = Size(self.scrollable_content_region.width, total)
        wanted = (
            max(0, total - height) if self.follows_end else min(self._rows.row_of(top, width), max(0, total - height))
        )
        self._scroll_update(self.virtual_size)
        self.set_reactive(ScrollView.scroll_target_y, wanted)
        if self.scroll_y != wanted:
            self.scroll_y = wanted

    def _lay_out(
        self, pieces: Iterator[tuple[int, LayoutBlock]], n_rows: int, width: int, visited: dict[LayoutBlock, None]
    ) -> None:
        """As many of these as make so many rows."""
        palette = self._palette()
        changed: set[int] = set()
        for entry, piece in pieces:
            if piece.layout_width != width or piece.is_stale:
                piece.lay_out(width, palette)
                changed.add(entry)
            visited[piece] = None
            if piece.needs_highlighting and piece not in self._asked_colour:
                self._asked_colour.add(piece)
                self.post_message(self.HighlightRequested(piece, width))
            n_rows -= piece.height(width) + piece.gap
            if n_rows <= 0:
                break
        if changed:
            self._rows.update_offsets(self.text_width, min(changed))

    def _forget(self, visited: dict[LayoutBlock, None]) -> None:
        for piece in visited:
            self._laid_out.pop(piece, None)
        self._laid_out.update(visited)
        for piece in list(itertools.islice(self._laid_out, max(0, len(self._laid_out) - _KEPT_PIECES - len(visited)))):
            piece.discard_rows()
            self._asked_colour.discard(piece)
            del self._laid_out[piece]

    def apply_highlighting(self, piece: CodeLayout, rows: list[Strip], width: int) -> None:
        """Rows in colours have come."""
        self._asked_colour.discard(piece)
        if rows and piece.layout_width == width == self.text_width and not piece.block.is_open:
            piece.set_highlighted_rows(rows, width)
        self.update_layout()

    # Rows

    def _strip(self, row: int) -> Strip:
        """A row with its bar, as wide as it is."""
        if row >= self._rows.n_rows or not self.entries:
            return Strip.blank(0)
        width = self.text_width
        place = self._rows.position(row, width)
        entry, palette = self.entries[place.entry], self._palette()
        if place.block < 0:
            return Strip.blank(0)
        bar, style = " ", palette.muted
        if place.entry == self.cursor and self.has_focus:
            bar, style = palette.glyphs.cursor, palette.cursor
        elif entry.kind == "user":
            bar, style = palette.glyphs.bar, palette.user
        pieces = entry.blocks
        content = pieces[place.block].row(place.row) if place.row >= 0 and place.block < len(pieces) else Strip.blank(0)
        return Strip([Segment(f"{bar} ", style), *content])

    def render_line(self, y: int) -> Strip:
        """A row of the screen."""
        row = round(self.scroll_y) + y
        width = self.scrollable_content_region.width
        strip = self._strip(row)
        selection = self.text_selection
        span = selection.get_span(row) if selection is not None else None
        if span is not None:
            strip = _selected(strip, span, self.screen.get_component_rich_style("screen--selection"))
        if self._base is None:
            self._base = self.rich_style
        strip = strip.crop_extend(0, width, None).apply_style(self._base)
        return strip.apply_offsets(0, row)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """What is selected, without bars; all messages as they were written, if everything is."""
        if selection.start is None and selection.end is None:
            return "\n\n".join(entry.text for entry in self.entries), "\n"
        first = selection.start.y if selection.start is not None else 0
        last = selection.end.y if selection.end is not None else self._rows.n_rows - 1
        lines = []
        for row in range(first, min(last, self._rows.n_rows - 1) + 1):
            start, end = selection.get_span(row) or (0, 0)
            text = self._strip(row).crop(max(GUTTER, start), None if end < 0 else max(GUTTER, end)).text
            lines.append(text.rstrip())
        return "\n".join(lines), "\n"

    def notify_style_update(self) -> None:
        """Something about the looks changed."""
        super().notify_style_update()
        self._base = None

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        """Something else is selected."""
        self.refresh()

    # Scrolling

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The reader moved, or we did."""
        super().watch_scroll_y(old_value, new_value)
        if self._is_settling or round(old_value) == round(new_value):
            return
        before = self.follows_end
        # What grew while the end was out of view is measured now.
        self._rows.update_offsets(self.text_width, max(0, len(self.entries) - 1))
        self.follows_end = new_value >= self.max_scroll_y
        self.update_layout()
        if before != self.follows_end:
            self.post_message(self.ViewChanged())

    def on_resize(self) -> None:
        """The width is another one: nothing is laid out for it."""
        if self.entries:
            place = self._rows.position(round(self.scroll_y), self.text_width)
            self._rows.update_offsets(self.text_width)
            if not self.follows_end:
                self.virtual_size = Size(self.size.width, self._rows.n_rows + 1)
                self._scroll_update(self.virtual_size)
                self.scroll_y = self._rows.row_of(place, self.text_width)
            self.update_layout()

    def scroll_rows(self, rows: int) -> None:
        """Up or down, without waiting."""
        self.scroll_relative(y=rows, animate=False, force=True, immediate=True)

    def action_page(self, direction: int) -> None:
        """A screen up or down, but for a row."""
        self.scroll_rows(direction * max(1, self.scrollable_content_region.height - 1))

    def action_top(self) -> None:
        """To the beginning."""
        self.cursor = self._next_message(-1, 1)
        self.scroll_to(y=0, animate=False, force=True)
        self.refresh()

    def action_bottom(self) -> None:
        """To the end, and stay there."""
        self.cursor = self._next_message(len(self.entries), -1)
        was_away, self.follows_end = not self.follows_end, True
        self._rows.update_offsets(self.text_width, max(0, len(self.entries) - 1))
        self.update_layout()
        if was_away:
            self.post_message(self.ViewChanged())

    # The cursor

    @property
    def current_message(self) -> MessageEntry | None:
        """The message that keys are about: the one with the cursor, else the last."""
        at = self.cursor if self.cursor is not None else self._next_message(len(self.entries), -1)
        return self.entries[at].as_message if at is not None and at < len(self.entries) else None

    def _next_message(self, start: int, step: int) -> int | None:
        at = start + step
        while 0 <= at < len(self.entries):
            if self.entries[at].as_message is not None:
                return at
            at += step
        return None

    def action_move(self, step: int) -> None:
        """To the message before or after; within one that is higher than the screen, through it."""
        at = self.cursor
        if at is not None and self._has_more(at, step):
            self.scroll_rows(step * max(1, self.scrollable_content_region.height // 2))
            return
        found = self._next_message(len(self.entries) if at is None else at, step if at is not None else -1)
        if found is not None:
            self.move_cursor_to(found)
        elif step > 0:
            self.action_bottom()

    def _has_more(self, at: int, step: int) -> bool:
        """True if the message at the cursor goes on beyond the screen, in this direction."""
        top, height = round(self.scroll_y), self.scrollable_content_region.height
        start, end = self._rows.offsets[at], self._rows.offsets[at + 1]
        if end - start <= height or end <= top or start >= top + height:
            return False
        return start < top if step < 0 else end > top + height

    def move_cursor_to(self, at: int) -> None:
        """Put the cursor on an entry, and bring it into view."""
        self.cursor = at
        top, height = round(self.scroll_y), self.scrollable_content_region.height
        start, end = self._rows.offsets[at], self._rows.offsets[at + 1]
        if start < top or end - start > height:
            self.scroll_to(y=start, animate=False, force=True)
        elif end > top + height:
            self.scroll_to(y=end - height + 1, animate=False, force=True)
        self.refresh()

    def on_focus(self) -> None:
        """Keys are about a message from now on."""
        if self.cursor is None:
            self.cursor = self._next_message(len(self.entries), -1)
        self.refresh()
        self.post_message(self.ViewChanged())

    def on_blur(self) -> None:
        """No message is marked."""
        self.cursor = None
        self.refresh()
        self.post_message(self.ViewChanged())

    def action_fold(self) -> None:
        """Show the reasoning of a message, or hide it."""
        entry = self.current_message
        if entry is not None and entry.reasoning:
            self._fold(entry)

    def _fold(self, entry: MessageEntry) -> None:
        entry.is_expanded = not entry.is_expanded
        entry.invalidate()
        self.follows_end = False if entry.is_expanded else self.follows_end
        self._rows.update_offsets(self.text_width, self._rows.index_of(entry))
        self.update_layout()

    def on_click(self, event: events.Click) -> None:
        """A message gets the cursor; the line of the reasoning unfolds it."""
        place = self._rows.position(round(self.scroll_y) + event.y, self.text_width)
        if place.entry >= len(self.entries):
            return
        entry = self.entries[place.entry].as_message
        if entry is not None:
            self.cursor = place.entry
            if entry.reasoning and place.block == (1 if entry.alternative[1] > 1 else 0):
                self._fold(entry)
            self.refresh()


def _selected(strip: Strip, span: tuple[int, int], style: Style) -> Strip:
    """With a part of it in another style."""
    start, end = max(GUTTER, span[0]), strip.cell_length if span[1] < 0 else span[1]
    if end <= start:
        return strip
    middle = strip.crop(start, end)
    marked = [Segment(segment.text, (segment.style or Style.null()) + style) for segment in middle]
    return Strip([*strip.crop(0, start), *marked, *strip.crop(end, strip.cell_length)])
