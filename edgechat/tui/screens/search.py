"""The search screen: matches grouped by conversation, with a preview."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from textual import on
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static

from edgechat.chat.commands import Destination
from edgechat.chat.store import parse_query
from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.search_rows import format_preview, list_hit_options
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.chat.store import SearchHit

_MAX_HITS: Final = 100


class SearchScreen(FilterListScreen["Destination | None"]):
    """Search in all conversations. The result is the conversation and message of the chosen hit, or None after Esc."""

    DEFAULT_CSS = """
    SearchScreen > Vertical { width: 90%; max-width: 160; height: 90%; }
    SearchScreen #preview { height: auto; max-height: 8; border-top: solid $border-blurred; padding: 0 1; }
    """

    @dataclass
    class SearchHits(Message):
        """The worker thread has found the hits of a query."""

        query: str
        hits: list[SearchHit]

    def __init__(self, query: str, search: Callable[[str, int], Sequence[SearchHit]]) -> None:
        """`query` is the initial text of the input. `search(query, max_hits)` is called in a thread."""
        super().__init__()
        self._query = query
        self._search_store = search
        self._hits: list[SearchHit] = []

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Search all conversations"
            box.border_subtitle = self.format_keys({"enter": "open", "listing.leave": "close"})
            yield FilterInput(self._query, placeholder='Words, or an "exact phrase"')
            yield EntryList(markup=False)
            yield Static("", id="preview", markup=False)

    @on(Input.Changed)
    def _on_typed(self) -> None:
        self.after_typing_pause(self._start_search)

    def _start_search(self) -> None:
        query = self.filter_text
        if query.strip(' "'):
            self._search(query)
        else:
            self._show_hits([], "")

    def _show_error(self, text: str) -> None:
        self._show_hits([], text)

    @thread_worker(_show_error, group="search")
    def _search(self, query: str) -> None:
        self.post_message(self.SearchHits(query, list(self._search_store(query, _MAX_HITS))))

    def on_search_screen_search_hits(self, message: SearchHits) -> None:
        if message.query == self.filter_text:  # the user has not changed the query meanwhile
            self._show_hits(message.hits, "" if message.hits else "No matches")

    def _show_hits(self, hits: list[SearchHit], text: str) -> None:
        """Show the hits, or `text` if there are none."""
        self._hits = hits
        self.options.highlighted = None
        self._fill_list()
        if not hits:
            self.query_one("#preview", Static).update(escape_controls(text))

    @on(EntryList.WidthChanged)
    def _fill_list(self) -> None:
        """Format the hits for the width of the list; the highlighted hit stays highlighted."""
        options = self.options
        index = options.highlighted
        options.clear_options()
        options.add_options(list_hit_options(self._hits, self.list_width, dt.datetime.now().astimezone().date()))
        options.highlighted = (index or 1) if self._hits else None  # the first row is a heading

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        hit = self._find_hit(message.option_id)
        if hit is not None:
            self.query_one("#preview", Static).update(format_preview(hit))

    def _find_hit(self, option_id: str | None) -> SearchHit | None:
        """Return the hit of a row; None for a heading, and for a row of an earlier list that had more hits."""
        index = int(option_id) if option_id is not None else len(self._hits)
        return self._hits[index] if index < len(self._hits) else None

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        hit = self._find_hit(option_id)
        if hit is not None:
            self.dismiss(Destination(hit.conversation_id, hit.message_id, tuple(parse_query(self.filter_text))))
