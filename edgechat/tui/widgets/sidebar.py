"""The sidebar: conversations grouped by date, pinned ones first, with a filter for titles and the keys of the list."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from rich.cells import cell_len
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat.tui import keys
from edgechat.tui.confirm import Confirmation
from edgechat.tui.dates import format_day_heading, format_short_date
from edgechat.tui.key_names import format_key
from edgechat.tui.row_text import contains_words, cut_to_columns, format_title_row
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.events import Key

    from edgechat.chat.messages import Conversation
    from edgechat.chat.store import ConversationSummary

# Minimum width of the screen, in columns, to show the list next to the conversation. On narrower screens, the list
# covers a part of the conversation while it has the focus; on very narrow screens, it covers the whole conversation.
_MIN_SPLIT_COLUMNS: Final = 100
_MIN_OVERLAY_COLUMNS: Final = 70
# Minimum height of the screen, in rows, to show the keys of the list.
_MIN_ROWS_WITH_KEYS: Final = 12
# Columns of the border and the padding around the keys.
_KEY_PADDING: Final = 2
# Columns between a title and the date.
_DATE_GAP: Final = 2
MAX_CONVERSATIONS: Final = 1000
"""Maximum number of conversations in the list: more of them would delay the keys of the filter."""
_KEY_LABELS: Final = {"list.pin": "pin", "list.delete": "delete", "list.leave": "back"}
"""Labels of the keys of the list by binding ID."""


class Sidebar(Vertical):
    """List of conversations with a filter. It only posts messages; the screen changes the conversations."""

    DEFAULT_CSS = """
    Sidebar {
        dock: left; width: 38%; min-width: 34; max-width: 56;
        border-right: solid $border-blurred; padding: 0 1 0 0;
    }
    Sidebar.-overlay { layer: overlay; width: 56; background: $background; }
    Sidebar.-whole { width: 100%; max-width: 100%; }
    Sidebar OptionList { height: 1fr; background: $background; }
    Sidebar #list-keys { height: auto; color: $list-quiet; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the chat", id="list.leave", show=False),
        Binding("ctrl+x", "delete", "Delete the conversation", id="list.delete", show=False, priority=True),
        Binding("ctrl+s", "pin", "Pin or unpin the conversation", id="list.pin", show=False, priority=True),
        Binding("down", "enter_list", "Go to the list", id="list.down", show=False),
    ]

    class ListReady(Message):
        """The worker thread has read the list of conversations."""

        def __init__(self, summaries: Sequence[ConversationSummary]) -> None:
            super().__init__()
            self.summaries = summaries

    class Closed(Message):
        """The user closed the sidebar, which had the focus."""

    class ConversationSelected(Message):
        """The user chose a conversation to show."""

        def __init__(self, conversation_id: str) -> None:
            super().__init__()
            self.conversation_id = conversation_id

    class PinToggled(Message):
        """The user pinned or unpinned a conversation."""

        def __init__(self, conversation: Conversation) -> None:
            super().__init__()
            self.conversation = conversation

    class DeleteConfirmed(Message):
        """The user pressed the delete key twice to delete a conversation."""

        def __init__(self, conversation: Conversation) -> None:
            super().__init__()
            self.conversation = conversation

    def __init__(
        self,
        list_conversations: Callable[[], Sequence[ConversationSummary] | None],
        current_id: Callable[[], str | None],
        get_key_overrides: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`list_conversations` is called in a thread, and returns None before the store is open.

        `current_id` returns the ID of the open conversation, `get_key_overrides` the configured keys by binding ID.
        """
        super().__init__()
        self._list_conversations = list_conversations
        self._current_id = current_id
        self._get_key_overrides = get_key_overrides
        self._summaries: Sequence[ConversationSummary] = ()
        self._confirmation = Confirmation()

    def compose(self) -> ComposeResult:
        yield FilterInput(placeholder="Filter", id="filter")
        yield EntryList(id="conversations", markup=False)
        yield Static("", id="list-keys", markup=False)

    @property
    def _covers_chat(self) -> bool:
        return self.screen.size.width < _MIN_SPLIT_COLUMNS

    def on_mount(self) -> None:
        self.adapt()
        self.watch(self.screen, "focused", self._show_keys)
        self.watch(self.screen, "focused", self._hide_without_focus, init=False)

    def adapt(self) -> None:
        """Adapt to the screen's width: show the list next to the conversation, over a part of it, or over all of it."""
        width = self.screen.size.width
        self.set_class(width < _MIN_OVERLAY_COLUMNS, "-whole")
        self.set_class(self._covers_chat and width >= _MIN_OVERLAY_COLUMNS, "-overlay")

    def _hide_without_focus(self) -> None:
        focused = self.screen.focused
        if self._covers_chat and focused is not None and self not in focused.ancestors_with_self:
            self.display = False

    def _show_keys(self) -> None:
        """While the sidebar has the focus, show its keys in its last rows, if the screen is high enough."""
        overrides = self._get_key_overrides()
        labels = {b.id: format_key((overrides.get(b.id) or b.keys).partition(",")[0]) for b in _list_bindings()}
        hints = ["Enter open", *(f"{labels[name]} {label}" for name, label in _KEY_LABELS.items())]
        keys = self.query_one("#list-keys", Static)
        keys.display = self.has_focus_within and self.screen.size.height >= _MIN_ROWS_WITH_KEYS
        rows = ["  ".join(hints)]
        if len(rows[0]) > self.size.width - _KEY_PADDING:
            rows = ["  ".join(hints[:2]), "  ".join(hints[2:])]
        keys.update("\n".join(rows))

    def focus_filter(self) -> None:
        """Clear the filter input and move the focus to it."""
        self.query_one(Input).value = ""
        self.query_one(Input).focus()

    def refresh_list(self) -> None:
        """Reload the list of conversations in a thread."""
        self._read_list()

    def _show_error(self, text: str) -> None:
        self.app.notify(f"Cannot list the conversations: {text}", severity="error")

    @thread_worker(_show_error, group="list")
    def _read_list(self) -> None:
        summaries = self._list_conversations()
        if summaries is not None:
            self.post_message(self.ListReady(summaries))

    def on_sidebar_list_ready(self, message: ListReady) -> None:
        self._summaries = message.summaries
        self._fill_list()

    @on(Input.Changed)
    @on(EntryList.WidthChanged)
    def _fill_list(self) -> None:
        """Show the conversations whose titles contain all words of the filter."""
        query = self.query_one(Input).value
        matches = [s for s in self._summaries if contains_words(s.conversation.title, query)]
        options = self.query_one(OptionList)
        highlighted, current_id = options.highlighted_option, self._current_id()
        today, width = dt.datetime.now().astimezone().date(), options.scrollable_content_region.width
        search_key = format_key(self._get_key_overrides().get("chat.search", "ctrl+f").partition(",")[0])
        options.clear_options()
        options.add_options(list(list_options(matches, today, current_id, width)))
        if query.strip() and not matches:
            options.add_option(Option(f"No title matches. {search_key} searches messages", disabled=True))
        if len(self._summaries) >= MAX_CONVERSATIONS:
            options.add_option(Option(f"{search_key} searches older conversations", disabled=True))
        ids = [option.id for option in options.options if not option.disabled]
        wanted_ids = [highlighted.id if highlighted is not None else None, current_id, *ids]
        next_id = next((i for i in wanted_ids if i is not None and i in ids), None)
        if next_id is not None:
            options.highlighted = options.get_option_index(next_id)

    def on_key(self, event: Key) -> None:
        """Type letters into the filter, even while the list has the focus."""
        if event.is_printable and event.character:  # the filter stops the keys that it handles itself
            event.stop()
            filter_input = self.query_one(Input)
            filter_input.focus()
            filter_input.insert_text_at_cursor(event.character)

    @on(Input.Submitted)
    def _select_highlighted(self) -> None:
        option = self.query_one(OptionList).highlighted_option
        if option is not None and option.id is not None:
            self._select(option.id)

    @on(OptionList.OptionSelected)
    def _select_option(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id is not None:
            self._select(message.option_id)

    def _select(self, conversation_id: str) -> None:
        self.query_one(Input).value = ""
        self.post_message(self.ConversationSelected(conversation_id))
        if self._covers_chat:
            self.display = False

    @property
    def _highlighted_conversation(self) -> Conversation | None:
        """The highlighted conversation; None if the list is empty."""
        option = self.query_one(OptionList).highlighted_option
        conversation_id = option.id if option is not None else None
        return next((s.conversation for s in self._summaries if s.conversation.id == conversation_id), None)

    def action_enter_list(self) -> None:
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        if self.has_focus_within:  # the focus is in the sidebar, so it must move elsewhere
            self.post_message(self.Closed())
        self.display = False

    def action_pin(self) -> None:
        conversation = self._highlighted_conversation
        if conversation is not None:
            self.post_message(self.PinToggled(conversation))

    def action_delete(self) -> None:
        conversation = self._highlighted_conversation
        if conversation is None:
            return
        if self._confirmation.confirm(conversation.id):
            self.post_message(self.DeleteConfirmed(conversation))
        else:
            self.app.notify(f"Press the same key again to delete {conversation.title or 'this conversation'}")


def list_options(
    summaries: Iterable[ConversationSummary], today: dt.date, current_id: str | None, width: int
) -> Iterator[Option]:
    """Yield a heading for each date group, and an option for each conversation, marked if it is the current one.

    A row of `width` columns shows the title and, if there is room after it, the date and the number of messages.
    """
    last_heading = ""
    for summary in summaries:
        conversation = summary.conversation
        heading = "Pinned" if conversation.pinned else format_day_heading(conversation.updated_at_ms, today)
        if heading != last_heading:
            yield Option(Content.styled(heading, "bold"), disabled=True)
            last_heading = heading
        mark = "* " if conversation.id == current_id else "  "
        title = cut_to_columns(format_title_row(conversation.title), max(1, width - len(mark)))
        n_left = max(0, width - len(mark) - cell_len(title))
        date, count = format_short_date(conversation.updated_at_ms, today), f" ({summary.n_messages:,})"
        if n_left < _DATE_GAP + len(date):
            date = ""
        if n_left < len(count) + _DATE_GAP + len(date):
            count = ""
        yield Option(
            Content.assemble(mark, title, (f"{count}{date:>{n_left - len(count)}}", "$list-quiet")), id=conversation.id
        )


def _list_bindings() -> list[keys.KeyBinding]:
    return keys.list_declared_bindings(Sidebar)
