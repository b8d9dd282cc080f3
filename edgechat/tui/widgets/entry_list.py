"""List of options whose highlighted row is always visible and readable, and whose rows can depend on its width."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.message import Message
from textual.strip import Strip
from textual.widgets import OptionList

_HIGHLIGHTED_CLASSES = ("option-list--option", "option-list--option-highlighted")


class EntryList(OptionList):
    """Option list for rows with quiet colours. The highlighted row has a single colour, so that it is readable."""

    DEFAULT_CSS = """
    EntryList {
        border: none; padding: 0; color: $list-text; background: $surface; text-wrap: nowrap; text-overflow: ellipsis;
        scrollbar-gutter: stable;
    }
    EntryList:focus { border: none; background-tint: transparent; }
    EntryList > .option-list--option-highlighted, EntryList:focus > .option-list--option-highlighted {
        color: $selection-text; background: $selection-area; text-style: none;
    }
    EntryList > .option-list--option-disabled { color: $list-quiet; }
    """

    class WidthChanged(Message):
        """The width of the rows has changed, so rows that depend on it must be formatted again."""

    _row_width = 0

    def on_resize(self) -> None:
        """Keep the highlighted row visible, for example when the description below the list needs more rows."""
        self.call_after_refresh(self.scroll_to_highlight)
        width = self.scrollable_content_region.width
        if self._row_width != width:
            self._row_width = width
            self.post_message(self.WidthChanged())

    def action_page_up(self) -> None:
        if self.virtual_size.height:  # Textual fails if no row has been laid out, on a screen of very few columns
            super().action_page_up()  # type: ignore[no-untyped-call]

    def action_page_down(self) -> None:
        if self.virtual_size.height:
            super().action_page_down()  # type: ignore[no-untyped-call]

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        index = next((s.style.meta["option"] for s in strip if s.style is not None and "option" in s.style.meta), None)
        if index is None or index != self.highlighted or self.options[index].disabled:
            return strip
        colour = self.get_visual_style(*_HIGHLIGHTED_CLASSES).rich_style.color
        uniform = Style(color=colour, dim=False)
        return Strip([Segment(s.text, (s.style or Style.null()) + uniform) for s in strip], strip.cell_length)
