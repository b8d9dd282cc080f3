"""Search in everything that was said: what fits, what stands around it, and the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text
from textual import on, work
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat.chat.messages import first_line
from edgechat.errors import EdgechatError
from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer

    from edgechat.chat.store import SearchHit
    from edgechat.tui.app import ChatApp

_AFTER_S: Final = 0.15
_MOST: Final = 100


class SearchScreen(FilterListScreen["tuple[str, str | None] | None"]):
    """Ends with a conversation and a message of it, or None."""

    app: ChatApp
    DEFAULT_CSS = """
    SearchScreen { align: center middle; background: $background 60%; }
    SearchScreen > Vertical { width: 90%; max-width: 110; height: 90%; border: round $border; padding: 0 1; background: $surface; }
    SearchScreen OptionList { height: 1fr; }
    SearchScreen #preview { height: auto; max-height: 8; border-top: solid $border-blurred; padding: 0 1; }
    """

    class SearchHits(Message):
        """What a query found."""

        def __init__(self, query: str, hits: list[SearchHit], problem: str) -> None:
            super().__init__()
            self.query = query
            self.hits = hits
            self.problem = problem

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self._hits: list[SearchHit] = []
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Words, what was found, and the place around it."""
        with Vertical() as box:
            box.border_title = "Search everything"
            yield Input(self._words, placeholder='words; "several words" as they stand', compact=True)
            yield OptionList(markup=False)
            yield Static("", id="preview", markup=False)

    @on(Input.Changed)
    def _on_typed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(_AFTER_S, self._ask)

    def _ask(self) -> None:
        query = self.typed
        if query.strip(' "'):
            self._search(query)
        else:
            self.on_search_screen_search_hits(self.SearchHits(query, [], ""))

    @work(thread=True, exclusive=True, group="search", exit_on_error=False)
    def _search(self, query: str) -> None:
        session = self.app.worker.session
        if session is None:
            return
        try:
            self.post_message(self.SearchHits(query, list(session.store.search(query, limit=_MOST)), ""))
        except EdgechatError as error:
            self.post_message(self.SearchHits(query, [], str(error)))

    def on_search_screen_search_hits(self, message: SearchHits) -> None:
        """Show it, if nothing else was typed meanwhile."""
        if message.query != self.typed:
            return
        self._hits = message.hits
        options = self.options
        options.clear_options()
        options.add_options([Option(_line(hit)) for hit in message.hits])
        options.highlighted = 0 if message.hits else None
        if not message.hits:
            said = message.problem or ("nothing was found" if message.query.strip() else "")
            self.query_one("#preview", Static).update(escape_controls(said))

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if message.option_index < len(self._hits):
            self.query_one("#preview", Static).update(_preview(self._hits[message.option_index]))

    def choose(self, at: int | None, option_id: str | None) -> None:  # noqa: ARG002
        """There."""
        if at is not None and at < len(self._hits):
            hit = self._hits[at]
            self.dismiss((hit.conversation_id, hit.message_id))


def _line(hit: SearchHit) -> Text:
    title = first_line(escape_controls(hit.title), 40) or "(no title)"
    text = Text(f"{title}  ", no_wrap=True, overflow="ellipsis")
    start = max(0, hit.marks[0][0] - 20) if hit.marks else 0
    return text.append_text(_marked(hit, start, one_line=True))


def _marked(hit: SearchHit, start: int = 0, *, one_line: bool = False) -> Text:
    """The place that was found, with what was looked for in bold."""
    text = Text(hit.snippet[start:], style="dim")
    for first, end in hit.marks:
        text.stylize("bold not dim", max(0, first - start), max(0, end - start))
    plain = escape_controls(text.plain)
    if len(plain) == len(text.plain):  # marks stay where they are
        text.plain = plain.replace("\n", " ") if one_line else plain
        return text
    return Text(plain.replace("\n", " ") if one_line else plain, style="dim")


def _preview(hit: SearchHit) -> Text:
    text = Text(f"{first_line(escape_controls(hit.title), 80)}  ({hit.role or 'title'})\n", style="bold")
    return text.append_text(_marked(hit))
