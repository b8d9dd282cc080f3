"""The command palette: finds commands, conversations, messages, models, personas, themes and settings by words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from textual import on
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input
from textual.widgets.option_list import Option

from edgechat.tui.palette_entries import IndexedEntry, PaletteChoice, PaletteEntry, PaletteIndex, index_entries
from edgechat.tui.palette_sources import MIN_SEARCH_CHARS
from edgechat.tui.row_text import cut_to_columns
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

_KIND_COLUMNS: Final = 14
"""Width of the column with the kind of an entry, with its margin."""
_NARROW_KIND_COLUMNS: Final = 7
_MIN_WIDE_COLUMNS: Final = 40
"""Minimum width of a row that shows the key and the full kind of an entry."""
_MIN_DESCRIPTION_COLUMNS: Final = 12


class CommandPaletteScreen(FilterListScreen["PaletteChoice | None"]):
    """List of commands, conversations and other entries. The result is the chosen entry, or None after Esc."""

    DEFAULT_CSS = """
    CommandPaletteScreen { align: center top; }
    CommandPaletteScreen > Vertical { width: 90%; max-width: 120; height: 80%; margin-top: 1; }
    """

    @dataclass
    class EntriesLoaded(Message):
        """The worker thread has read further palette entries, such as conversations or models."""

        entries: list[IndexedEntry]

    @dataclass
    class MessagesFound(Message):
        """The worker thread has searched the messages for a query."""

        query: str
        entries: list[PaletteEntry]

    def __init__(
        self,
        entries: Iterable[PaletteEntry],
        load_entries: Callable[[], Iterator[Iterable[PaletteEntry]]],
        find_messages: Callable[[str], list[PaletteEntry]],
        recent: Sequence[str],
    ) -> None:
        """`entries` are shown at once; `load_entries` and `find_messages` are called in a thread to find more.

        `recent` are the recent choices, newest first.
        """
        super().__init__()
        self._index = PaletteIndex()
        self._index.add(index_entries(entries))
        self._load_entries = load_entries
        self._find_messages = find_messages
        self._recent = recent
        self._messages: list[PaletteEntry] = []
        self._matches: list[PaletteEntry] = []
        self._is_searching = False
        """True while the search for messages with the typed words is pending."""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Command palette"
            box.border_subtitle = self.format_keys({"enter": "choose", "listing.leave": "close"})
            yield FilterInput(placeholder="Words of a command, conversation, message, model, theme or setting")
            yield EntryList(markup=False)

    def on_mount(self) -> None:
        self.call_after_refresh(self._read_entries)  # the thread would delay the first frame

    def _show_error(self, text: str) -> None:
        self.app.notify(f"Cannot search conversations and models: {text}", severity="error")

    @thread_worker(_show_error, group="entries")
    def _read_entries(self) -> None:
        for entries in self._load_entries():
            self.post_message(self.EntriesLoaded(index_entries(entries)))

    @thread_worker(_show_error, group="messages")
    def _search_messages(self, query: str) -> None:
        self.post_message(self.MessagesFound(query, self._find_messages(query)))

    def on_command_palette_screen_entries_loaded(self, message: EntriesLoaded) -> None:
        self._index.add(message.entries)
        self._fill_list()

    def on_command_palette_screen_messages_found(self, message: MessagesFound) -> None:
        if message.query == self.filter_text:  # the user has not changed the query meanwhile
            self._messages, self._is_searching = message.entries, False
            self._fill_list()

    @on(Input.Changed)
    def _on_typed(self) -> None:
        self._messages = []
        self._is_searching = len(self.filter_text.strip()) >= MIN_SEARCH_CHARS
        self.options.highlighted = None
        self._fill_list()
        search = (lambda: self._search_messages(self.filter_text)) if self._is_searching else None
        self.after_typing_pause(search)

    @on(EntryList.WidthChanged)
    def _fill_list(self) -> None:
        """Show the matching entries. The highlighted entry stays highlighted, unless it was the first."""
        options, width = self.options, self.list_width
        if not width:
            return
        index = options.highlighted
        highlighted = self._matches[index].choice if index and index < len(self._matches) else ""
        self._matches = [*self._index.find(self.filter_text, self._recent), *self._messages]
        options.clear_options()
        options.add_options([Option(format_entry(entry, width)) for entry in self._matches])
        if not self._matches and not self._is_searching:
            options.add_option(Option("Nothing matches", disabled=True))
        choices = [entry.choice for entry in self._matches]
        options.highlighted = (choices.index(highlighted) if highlighted in choices else 0) if choices else None

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if index is not None and index < len(self._matches):
            self.dismiss(PaletteChoice(self._matches[index], self.filter_text))


def format_entry(entry: PaletteEntry, width: int) -> Content:
    """Return a row of `width` columns: kind, title and description, and the key at the right."""
    is_wide = width >= _MIN_WIDE_COLUMNS
    kind_columns, key = (_KIND_COLUMNS, entry.key) if is_wide else (_NARROW_KIND_COLUMNS, "")
    kind = cut_to_columns(entry.kind, kind_columns - 2)
    n_columns = max(0, width - kind_columns - (cell_len(key) + 2 if key else 0))
    title = cut_to_columns(entry.title, n_columns)
    n_left = n_columns - cell_len(title) - 2
    description = cut_to_columns(entry.description, n_left) if n_left >= _MIN_DESCRIPTION_COLUMNS else ""
    details = f"  {description}" if description else ""
    if key:
        details += " " * (width - kind_columns - cell_len(title) - cell_len(details) - cell_len(key)) + key
    return Content.assemble((f"{kind:<{kind_columns}}", "$list-quiet"), title, (details, "$list-quiet"))
