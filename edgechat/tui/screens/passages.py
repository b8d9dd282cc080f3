"""The panel with passages of documents: the text that a reply cites, its place, and why it was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual import events, on
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from edgechat.documents.descriptions import describe_scores, format_place
from edgechat.terminal import escape_controls
from edgechat.tui.messages import CopyRequested
from edgechat.tui.screens.modal import Modal
from edgechat.tui.widgets.entry_list import EntryList

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.documents.passages import Passage
    from edgechat.tui.passage_items import PassageItem

# On a screen with at least so many columns, the panel is beside the conversation.
_MIN_COLUMNS_BESIDE: Final = 110
_MAX_PANEL_COLUMNS: Final = 72


class PassagesScreen(Modal[None]):
    """Panel with one passage at a time, and optionally a list of all of them above its text."""

    DEFAULT_CSS = """
    PassagesScreen { align: right middle; background: $background 0%; }
    PassagesScreen > Vertical {
        width: 100%; height: 100%; border: round $border; padding: 0 1; background: $surface;
    }
    PassagesScreen EntryList { height: auto; max-height: 40%; }
    PassagesScreen #place { height: auto; margin-bottom: 1; }
    PassagesScreen VerticalScroll { height: 1fr; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close the passages", id="passages.leave"),
        Binding("right,n", "step(1)", "Next passage", id="passages.next", show=False),
        Binding("left,p", "step(-1)", "Previous passage", id="passages.previous", show=False),
        Binding("enter,o", "open", "Open the document in the editor", id="passages.open", show=False),
        Binding("y", "copy", "Copy the passage", id="passages.copy", show=False),
        Binding("down,j", "scroll(1)", "Scroll down", id="passages.down", show=False),
        Binding("up,k", "scroll(-1)", "Scroll up", id="passages.up", show=False),
        Binding("pagedown,space", "page(1)", "Page down", id="passages.page_down", show=False),
        Binding("pageup", "page(-1)", "Page up", id="passages.page_up", show=False),
    ]

    def __init__(
        self, items: Sequence[PassageItem], index: int, open_file: Callable[[Path, int], object],
        adapt: Callable[[int], object], *, shows_list: bool,
    ) -> None:  # fmt: skip
        """Show `items`, beginning with the one at `index`.

        `open_file` opens a path at a line. `adapt` is called with the number of columns that the panel takes beside the
        conversation; 0 if it covers the conversation.
        """
        super().__init__()
        self._items = items
        self._index = index
        self._open_file = open_file
        self._adapt = adapt
        self._shows_list = shows_list

    @property
    def item(self) -> PassageItem:
        """The passage that is shown."""
        return self._items[self._index]

    def compose(self) -> ComposeResult:
        with Vertical():
            if self._shows_list:
                rows = EntryList(*(Option(_format_row(item)) for item in self._items), markup=False)
                rows.can_focus = False
                yield rows
            yield Static(id="place")
            with VerticalScroll(can_focus=False):
                yield Static(id="text")

    def on_mount(self) -> None:
        if self._shows_list:
            self.query_one(EntryList).highlighted = self._index
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        is_beside = event.size.width >= _MIN_COLUMNS_BESIDE
        width = min(_MAX_PANEL_COLUMNS, event.size.width // 2) if is_beside else 0
        self.query_one(Vertical).styles.width = width or "100%"
        self._adapt(width)

    def _show(self) -> None:
        """Show the passage with its place, and the keys."""
        box, item, passage = self.query_one(Vertical), self.item, self.item.passage
        position = f" ({self._index + 1} of {len(self._items)})" if len(self._items) > 1 else ""
        box.border_title = f"Passage {item.number}{position}"
        labels = {"passages.leave": "close", "passages.open": "open", "passages.copy": "copy"}
        steps = f"{self.key_label('passages.previous', 'passages.next')}: other   " if len(self._items) > 1 else ""
        box.border_subtitle = steps + self.format_keys(labels)
        self.query_one("#place", Static).update(self._format_place(item))
        text = _format_passage(passage) if passage is not None else Text("The conversation has no such passage.")
        first = self._highlight_terms(text, item.terms)
        self.query_one("#text", Static).update(text)
        self.query_one(VerticalScroll).scroll_home(animate=False, force=True)
        if first:
            self.call_after_refresh(self._reveal, text, first)

    def _highlight_terms(self, text: Text, terms: Sequence[str]) -> int:
        """Highlight words in a text; return the index of the first one, or 0."""
        if not terms:
            return 0
        words = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
        colour = self.app.theme_variables.get("text-accent", "")
        style = f"bold {colour}" if colour.startswith("#") else "bold"
        spans = [match.span() for match in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", text.plain, re.IGNORECASE)]
        for start, end in spans:
            text.stylize(style, start, end)
        return spans[0][0] if spans else 0

    def _reveal(self, text: Text, index: int) -> None:
        """Scroll to the row of a character, if it is not visible."""
        box, width = self.query_one(VerticalScroll), self.query_one("#text", Static).size.width
        if width and self.item.passage is not None:
            row = len(text[:index].wrap(self.app.console, width)) - 1
            if row >= box.size.height:
                box.scroll_to(y=row - box.size.height // 3, animate=False, force=True)

    def _format_place(self, item: PassageItem) -> Text:
        """Return the place of a passage, its heading, what the user should check, and why it was found."""
        variables, passage = self.app.theme_variables, item.passage
        text = Text()
        if passage is not None:
            text.append(escape_controls(" ".join(passage.place.split())), "bold")
            if passage.heading:
                text.append(f"\n{escape_controls(' '.join(passage.heading.split()))}")
        if item.problem:
            glyph = "!" if self.app.has_class("ascii") else "⚠"
            colour = variables.get("text-warning", "")
            style = f"bold {colour}" if colour.startswith("#") else "bold yellow"
            text.append(f"{chr(10) if text else ''}{glyph} {escape_controls(item.problem)}", style)
        if passage is not None:
            reason = describe_scores(passage.scores)
            origin = f"Found in {passage.collection}: {reason}" if reason else f"From {passage.collection}"
            text.append(f"\n{escape_controls(' '.join(origin.split()))}", "dim")
        return text

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if message.option_index != self._index:
            self._index = message.option_index
            self._show()

    @on(OptionList.OptionSelected)
    def _on_selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()  # a click; `_on_highlighted` shows the passage

    def action_step(self, step: int) -> None:
        """Show the next or previous passage; after the last one, the first one."""
        self._index = (self._index + step) % len(self._items)
        if self._shows_list:
            self.query_one(EntryList).highlighted = self._index
        self._show()

    def action_scroll(self, step: int) -> None:
        """Scroll the text by a row; if there is a list, move in it."""
        if self._shows_list:
            self.action_step(step)
            return
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False, force=True)

    def action_page(self, step: int) -> None:
        box = self.query_one(VerticalScroll)
        box.scroll_relative(y=step * max(1, box.size.height - 1), animate=False, force=True)

    def action_open(self) -> None:
        """Open the document in the editor at the lines of the passage; copy the path of a document without lines."""
        passage = self.item.passage
        if passage is None:
            return
        if not passage.path or passage.first_line is None:
            self.app.post_message(CopyRequested(passage.path or passage.document, "Path of the document"))
            return
        self._open_file(Path(passage.path), passage.first_line)

    def action_copy(self) -> None:
        passage = self.item.passage
        if passage is not None:
            self.app.post_message(CopyRequested(f"{passage.text}\n\n({passage.place})", "Passage"))

    def action_leave(self) -> None:
        self.dismiss()


def _format_row(item: PassageItem) -> Text:
    passage = item.passage
    place = format_place(passage) if passage is not None else f"[{item.number}]"
    row = Text(escape_controls(place), no_wrap=True, overflow="ellipsis")
    if passage is not None and passage.heading:
        row.append(f"  {escape_controls(' '.join(passage.heading.split()))}", "dim")
    return row


def _format_passage(passage: Passage) -> Text:
    """Return the text of a passage, with line numbers if its lines are those of the document."""
    lines = escape_controls(passage.text).split("\n")
    first, last = passage.first_line, passage.last_line
    if first is None or len(lines) != (last or first) - first + 1:
        return Text("\n".join(lines))
    n_digits = len(str(first + len(lines) - 1))
    text = Text()
    for number, line in enumerate(lines, first):
        text.append(f"{number:>{n_digits}} ", "dim")
        text.append(line if number == first + len(lines) - 1 else f"{line}\n")
    return text
