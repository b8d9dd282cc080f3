"""The search screen: matches in all conversations, with a preview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text
from textual import on
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat.chat.commands import Destination
from edgechat.chat.messages import first_line
from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer

    from edgechat.chat.store import SearchHit

_TYPING_PAUSE_S: Final = 0.15
_MAX_HITS: Final = 100


class SearchScreen(FilterListScreen["Destination | None"]):
    """Search in all conversations. The result is the conversation and message of the chosen hit, or None after Esc."""

    DEFAULT_CSS = """
    SearchScreen { align: center middle; background: $background 60%; }
    SearchScreen > Vertical {
        width: 90%; max-width: 110; height: 90%;
        border: round $border; padding: 0 1; background: $surface;
    }
    SearchScreen OptionList { height: 1fr; }
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
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Search all conversations"
            yield Input(self._query, placeholder='Words, or an "exact phrase"', compact=True)
            yield EntryList(markup=False)
            yield Static("", id="preview", markup=False)

    @on(Input.Changed)
    def _on_typed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(_TYPING_PAUSE_S, self._start_search)

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
        if message.query == self.filter_text:  # otherwise, the user has changed the query
            self._show_hits(message.hits, "" if message.hits else "No matches")

    def _show_hits(self, hits: list[SearchHit], text: str) -> None:
        """Show the hits, or `text` if there are none."""
        self._hits = hits
        options = self.options
        options.clear_options()
        options.add_options([Option(_format_hit(hit)) for hit in hits])
        options.highlighted = 0 if hits else None
        if not hits:
            self.query_one("#preview", Static).update(escape_controls(text))

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if message.option_index < len(self._hits):
            self.query_one("#preview", Static).update(_format_preview(self._hits[message.option_index]))

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if index is not None and index < len(self._hits):
            hit = self._hits[index]
            self.dismiss(Destination(hit.conversation_id, hit.message_id))


def _format_hit(hit: SearchHit) -> Text:
    title = first_line(escape_controls(hit.title), 40) or "(no title)"
    text = Text(f"{title}  ", no_wrap=True, overflow="ellipsis")
    start = max(0, hit.marks[0][0] - 20) if hit.marks else 0
    return text.append_text(_format_snippet(hit, start, one_line=True))


def _format_snippet(hit: SearchHit, start: int = 0, *, one_line: bool = False) -> Text:
    """Return the snippet from character `start` on, with the words of the query in bold."""
    text = Text(hit.snippet[start:], style="dim")
    for mark_start, mark_end in hit.marks:
        text.stylize("bold not dim", max(0, mark_start - start), max(0, mark_end - start))
    escaped_text = escape_controls(text.plain)
    # If `escape_controls` removed characters, the marks do not fit, so the snippet is shown without bold words.
    if len(escaped_text) == len(text.plain):
        text.plain = escaped_text.replace("\n", " ") if one_line else escaped_text
        return text
    return Text(escaped_text.replace("\n", " ") if one_line else escaped_text, style="dim")


def _format_preview(hit: SearchHit) -> Text:
    text = Text(f"{first_line(escape_controls(hit.title), 80)}  ({hit.role or 'title'})\n", style="bold")
    return text.append_text(_format_snippet(hit))
