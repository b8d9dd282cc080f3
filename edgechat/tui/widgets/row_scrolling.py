"""Base class of the transcript: scrolling by rows and, if long lines of code are cut, sideways."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.reactive import Reactive
from textual.scroll_view import ScrollView

from edgechat.tui import textual_private

if TYPE_CHECKING:
    from textual import events

    from edgechat.tui.render.transcript_layout import TranscriptLayout

_STEP_COLUMNS: Final = 8


class RowScrolling(ScrollView):
    """View that scrolls by rows, and scrolls code sideways; the first sideways movement turns wrapping off."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pageup", "page(-1)", "Page up", id="transcript.page_up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="transcript.page_down", show=False),
        Binding("alt+z", "wrap_code", "Wrap or cut long lines of code", id="transcript.wrap", show=False),
        Binding("shift+left", "scroll_code(-1)", "Scroll code to the left", id="transcript.left", show=False),
        Binding("shift+right", "scroll_code(1)", "Scroll code to the right", id="transcript.right", show=False),
    ]
    # Changing Textual's own `virtual_size` would lay out the whole screen, but here only the scrollbar depends on it.
    virtual_size = Reactive(Size(0, 0))
    _layout: TranscriptLayout

    def discard_layout(self) -> None:
        """Discard all rendered rows and render the visible rows again."""
        raise NotImplementedError

    def _set_virtual_size(self, width: int, n_rows: int) -> None:
        """Set the size of the content, on which the scrollbar depends, in columns and rows."""
        self.virtual_size = Size(width, n_rows)
        textual_private.update_scrollbars(self, self.virtual_size)

    def scroll_rows(self, n_rows: int) -> None:
        """Scroll down by `n_rows`, or up if negative, without animation."""
        self.scroll_relative(y=n_rows, animate=False, force=True, immediate=True)

    def action_page(self, direction: int) -> None:
        self.scroll_rows(direction * max(1, self.scrollable_content_region.height - 1))

    def action_wrap_code(self) -> None:
        self._layout.wraps_code = not self._layout.wraps_code
        self._layout.code_offset = 0
        self.discard_layout()

    def action_scroll_code(self, direction: int) -> None:
        """Scroll code sideways by a few columns, at most to the end of the longest visible line."""
        if self._layout.wraps_code:
            if direction > 0:
                self.action_wrap_code()
            return
        offset = self._layout.code_offset + direction * _STEP_COLUMNS
        self._layout.code_offset = max(0, min(offset, self._layout.max_code_offset))
        self.refresh()

    def _scroll_sideways(self, event: events.MouseEvent, direction: int) -> None:
        event.prevent_default()
        event.stop()
        self.action_scroll_code(direction)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        if event.shift:
            self._scroll_sideways(event, 1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        if event.shift:
            self._scroll_sideways(event, -1)

    def on_mouse_scroll_right(self, event: events.MouseScrollRight) -> None:
        self._scroll_sideways(event, 1)

    def on_mouse_scroll_left(self, event: events.MouseScrollLeft) -> None:
        self._scroll_sideways(event, -1)
