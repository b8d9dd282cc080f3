"""The list of conversations: by day, pinned ones first, narrowed by what is typed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgechat.chat.messages import first_line
from edgechat.errors import EdgechatError
from edgechat.terminal import visible
from edgechat.tui.confirm import Confirmation

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.chat.session import Session
    from edgechat.chat.store import Summary
    from edgechat.tui.app import ChatApp

_MOST: Final = 1000
_WEEK: Final = 7
_NARROW: Final = 70


class Sidebar(Vertical):
    """Conversations; Enter goes to one."""

    app: ChatApp
    DEFAULT_CSS = """
    Sidebar { dock: left; width: 34; border-right: solid $border-blurred; padding: 0 1 0 0; }
    Sidebar OptionList { height: 1fr; background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the chat", id="list.leave", show=False),
        Binding("ctrl+x", "delete", "Delete the conversation for good", id="list.delete", show=False),
        Binding("ctrl+s", "pin", "Pin it, or not", id="list.pin", show=False),
        Binding("down", "enter_list", "Into the list", id="list.down", show=False),
    ]

    class ListRead(Message):
        """The list was read."""

        def __init__(self, found: list[Summary]) -> None:
            super().__init__()
            self.found = found

    def __init__(self) -> None:
        super().__init__()
        self._all: list[Summary] = []
        self._twice = Confirmation()

    def compose(self) -> ComposeResult:
        """A filter above the list."""
        yield Input(placeholder="filter", id="filter", compact=True)
        yield OptionList(id="conversations", markup=False)

    @property
    def _is_narrow(self) -> bool:
        """True if nothing fits beside it."""
        return self.screen.size.width < _NARROW

    def on_mount(self) -> None:
        """Beside the conversation, or over it."""
        if self._is_narrow:
            self.styles.width = "100%"

    def focus_filter(self) -> None:
        """Let letters narrow the list."""
        self.query_one(Input).focus()

    def refresh_list(self) -> None:
        """Read it again."""
        self._read()

    @work(thread=True, exclusive=True, group="list", exit_on_error=False)
    def _read(self) -> None:
        session = self.app.worker.session
        if session is not None:
            try:
                found = list(session.store.list(limit=_MOST))
            except EdgechatError:
                return
            self.post_message(self.ListRead(found))

    def on_sidebar_list_read(self, message: ListRead) -> None:
        """Show it."""
        self._all = message.found
        self._fill()

    @on(Input.Changed)
    def _fill(self) -> None:
        wanted = self.query_one(Input).value.lower().split()
        fitting = (s for s in self._all if all(word in s.conversation.title.lower() for word in wanted))
        options = self.query_one(OptionList)
        at = options.highlighted
        before = options.get_option_at_index(at).id if at is not None and at < options.option_count else None
        here = self.app.chat.view.conversation.id if self.app.chat.view is not None else None
        options.clear_options()
        options.add_options(list(list_options(fitting, dt.datetime.now().astimezone().date(), here)))
        known = {option.id for option in options.options}
        chosen = before if before in known else here
        if chosen in known and chosen is not None:
            options.highlighted = options.get_option_index(chosen)

    @on(Input.Submitted)
    def _first(self) -> None:
        options = self.query_one(OptionList)
        first = next((o for o in options.options if not o.disabled), None)
        if first is not None and first.id is not None:
            self._go(first.id)

    @on(OptionList.OptionSelected)
    def _chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id is not None:
            self._go(message.option_id)

    def _go(self, conversation_id: str) -> None:
        self.app.actions.go_to(conversation_id)
        if self._is_narrow:
            self.display = False
        self.app.chat.prompt.focus()

    @property
    def _highlighted(self) -> Summary | None:
        options = self.query_one(OptionList)
        if options.highlighted is None or not options.has_focus:
            return None
        chosen = options.get_option_at_index(options.highlighted).id
        return next((s for s in self._all if s.conversation.id == chosen), None)

    def action_enter_list(self) -> None:
        """From the filter into the list."""
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        """Close the list."""
        self.display = False
        self.app.chat.prompt.focus()

    def action_pin(self) -> None:
        """Pin the conversation, or not."""
        summary = self._highlighted
        if summary is not None:
            about = summary.conversation

            def pin(session: Session) -> None:
                if session.conversation.id == about.id:
                    session.pin(on=not about.pinned)
                else:
                    session.store.update(about.id, pinned=not about.pinned)
                self.refresh_list()

            self.app.worker.do(pin)

    def action_delete(self) -> None:
        """Delete the conversation for good, when asked twice."""
        summary = self._highlighted
        if summary is None:
            return
        about = summary.conversation
        if not self._twice.confirm(about.id):
            self.app.notify(f"{about.title or 'This conversation'}: the same key again deletes it for good")
            return
        if self.app.chat.view is not None and self.app.chat.view.conversation.id == about.id:
            self.app.actions.run("new", "")
        self.app.worker.do(lambda session: session.store.delete(about.id))
        self.app.worker.do(lambda session: self.refresh_list())


def list_options(summaries: Iterable[Summary], today: dt.date, here: str | None) -> Iterator[Option]:
    """Options for a list, with a heading for each day or month."""
    from rich.text import Text

    last = ""
    for summary in summaries:
        about = summary.conversation
        heading = "pinned" if about.pinned else day_heading(about.updated_at_ms, today)
        if heading != last:
            yield Option(Text(heading, style="dim"), disabled=True)
            last = heading
        title = first_line(visible(about.title), 200) or "(no title)"
        mark = "* " if about.id == here else "  "
        yield Option(Text(mark + title, no_wrap=True, overflow="ellipsis"), id=about.id)


def day_heading(at_ms: int, today: dt.date) -> str:
    """When, as one remembers it."""
    try:
        date = dt.datetime.fromtimestamp(at_ms / 1000, dt.timezone.utc).astimezone().date()
    except (OverflowError, OSError, ValueError):  # a clock that was never set, or an import from nowhere
        return "some time"
    days = (today - date).days
    if days <= 0:
        return "today"
    if days == 1:
        return "yesterday"
    return "last seven days" if days < _WEEK else f"{date:%B %Y}"
