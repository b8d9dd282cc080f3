"""The sidebar: a list of conversations grouped by date, with pinned conversations first, and a filter for titles."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgechat.chat.messages import first_line
from edgechat.terminal import escape_controls
from edgechat.tui.confirm import Confirmation
from edgechat.tui.dates import format_day_heading
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.chat.messages import Conversation
    from edgechat.chat.store import ConversationSummary

# Minimum screen width to show the sidebar next to the conversation; on narrower screens it covers the conversation.
_MIN_SPLIT_COLUMNS: Final = 70


class Sidebar(Vertical):
    """List of conversations with a filter. It only posts messages; the screen changes the conversations."""

    DEFAULT_CSS = """
    Sidebar { dock: left; width: 34; border-right: solid $border-blurred; padding: 0 1 0 0; }
    Sidebar OptionList { height: 1fr; background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the chat", id="list.leave", show=False),
        Binding("ctrl+x", "delete", "Delete the conversation", id="list.delete", show=False),
        Binding("ctrl+s", "pin", "Pin or unpin the conversation", id="list.pin", show=False),
        Binding("down", "enter_list", "Go to the list", id="list.down", show=False),
    ]

    class ListReady(Message):
        """The worker thread has read the list of conversations."""

        def __init__(self, summaries: Sequence[ConversationSummary]) -> None:
            super().__init__()
            self.summaries = summaries

    class Closed(Message):
        """The user left the sidebar or chose a conversation, so the prompt gets the focus."""

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
    ) -> None:
        """`list_conversations` is called in a thread, and returns None before the store is open.

        `current_id` returns the ID of the open conversation.
        """
        super().__init__()
        self._list_conversations = list_conversations
        self._current_id = current_id
        self._summaries: Sequence[ConversationSummary] = ()
        self._confirmation = Confirmation()

    def compose(self) -> ComposeResult:
        yield Input(placeholder="Filter", id="filter", compact=True)
        yield EntryList(id="conversations", markup=False)

    @property
    def _covers_screen(self) -> bool:
        return self.screen.size.width < _MIN_SPLIT_COLUMNS

    def on_mount(self) -> None:
        if self._covers_screen:
            self.styles.width = "100%"

    def focus_filter(self) -> None:
        """Move the focus to the filter input."""
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
    def _fill_list(self) -> None:
        words = self.query_one(Input).value.lower().split()
        matches = (s for s in self._summaries if all(word in s.conversation.title.lower() for word in words))
        options = self.query_one(OptionList)
        index = options.highlighted
        is_valid = index is not None and index < options.option_count
        highlighted_id = options.get_option_at_index(index).id if index is not None and is_valid else None
        current_id = self._current_id()
        options.clear_options()
        options.add_options(list(list_options(matches, dt.datetime.now().astimezone().date(), current_id)))
        ids = {option.id for option in options.options}
        next_id = highlighted_id if highlighted_id in ids else current_id
        if next_id is not None and next_id in ids:
            options.highlighted = options.get_option_index(next_id)

    @on(Input.Submitted)
    def _select_first(self) -> None:
        first_option = next((option for option in self.query_one(OptionList).options if not option.disabled), None)
        if first_option is not None and first_option.id is not None:
            self._select(first_option.id)

    @on(OptionList.OptionSelected)
    def _select_option(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id is not None:
            self._select(message.option_id)

    def _select(self, conversation_id: str) -> None:
        self.post_message(self.ConversationSelected(conversation_id))
        if self._covers_screen:
            self.display = False
        self.post_message(self.Closed())

    @property
    def _highlighted_conversation(self) -> Conversation | None:
        """The highlighted conversation; None while the filter has the focus."""
        options = self.query_one(OptionList)
        if options.highlighted is None or not options.has_focus:
            return None
        conversation_id = options.get_option_at_index(options.highlighted).id
        return next((s.conversation for s in self._summaries if s.conversation.id == conversation_id), None)

    def action_enter_list(self) -> None:
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        self.display = False
        self.post_message(self.Closed())

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


def list_options(summaries: Iterable[ConversationSummary], today: dt.date, current_id: str | None) -> Iterator[Option]:
    """Yield an option for each conversation, marked if it is the current one, and a heading before each date group."""
    from rich.text import Text

    last_heading = ""
    for summary in summaries:
        conversation = summary.conversation
        heading = "Pinned" if conversation.pinned else format_day_heading(conversation.updated_at_ms, today)
        if heading != last_heading:
            yield Option(Text(heading, style="dim"), disabled=True)
            last_heading = heading
        title = first_line(escape_controls(conversation.title), 200) or "(no title)"
        mark = "* " if conversation.id == current_id else "  "
        yield Option(Text(mark + title, no_wrap=True, overflow="ellipsis"), id=conversation.id)
