"""The screen with two replies side by side, which may still be growing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual import events, on, work
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical

from edgechat.chat.compared_replies import ComparedReply, read_reply
from edgechat.terminal import escape_controls
from edgechat.tui.render.entries import MessageEntry
from edgechat.tui.screens.modal import Modal
from edgechat.tui.second_reply import GROWTH_INTERVAL_S, finish_grown_text, show_grown_text
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult

    from edgechat.chat.session import Session
    from edgechat.tui.render.palette import Palette

# Minimum width of the screen, in columns, for replies side by side; on a narrower screen, one is below the other.
MIN_COLUMNS_BESIDE: Final = 120
_PARTS: Final = ("first", "second")


class CompareScreen(Modal[str | None]):
    """Two replies, each in a part of the screen that scrolls on its own. The result is the ID of the chosen reply."""

    DEFAULT_CSS = """
    CompareScreen { background: $background; }
    CompareScreen > Container { layout: vertical; width: 100%; height: 100%; }
    CompareScreen.beside > Container { layout: horizontal; }
    CompareScreen Vertical { width: 1fr; height: 1fr; border: round $border; padding: 0; background: $surface; }
    CompareScreen Vertical:focus-within { border: round $accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Close the comparison", id="compare.leave"),
        Binding("tab,right,left,shift+tab", "other", "Go to the other reply", id="compare.other", priority=True),
        Binding("enter", "choose", "Continue with this reply", id="compare.choose", priority=True),
        Binding("1", "choose('first')", "Continue with the first reply", id="compare.first", show=False),
        Binding("2", "choose('second')", "Continue with the second reply", id="compare.second", show=False),
        Binding("s", "stop", "Stop only this reply", id="compare.stop"),
        Binding("down,j", "scroll(1)", "Scroll down", id="compare.down", show=False, priority=True),
        Binding("up,k", "scroll(-1)", "Scroll up", id="compare.up", show=False, priority=True),
    ]

    def __init__(self, session: Session, reply_ids: tuple[str, str], get_palette: Callable[[], Palette]) -> None:
        super().__init__()
        self._get_palette = get_palette
        self._session = session
        self._ids = dict(zip(_PARTS, reply_ids, strict=True))
        self._entries: dict[str, MessageEntry] = {}
        self._shown: dict[str, ComparedReply | None] = {}

    def compose(self) -> ComposeResult:
        with Container():
            for part in _PARTS:
                with Vertical(id=f"{part}_part"):
                    yield Transcript(self._get_palette, self._repeat_key, id=part)

    def on_mount(self) -> None:
        self.query_one("#first", Transcript).focus()
        self._show()
        self.set_interval(GROWTH_INTERVAL_S, self._show)

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width >= MIN_COLUMNS_BESIDE, "beside")

    def _repeat_key(self, event: events.Key | events.Paste) -> None:
        """Repeat a key that arrived at one reply after the focus had moved to the other, in the same packet."""
        if isinstance(event, events.Key) and event.key in self.active_bindings:
            self.app.simulate_key(event.key)

    @property
    def part(self) -> str:
        """The part of the screen that has the focus."""
        # Not `has_focus` of the widgets, which changes later.
        return _PARTS[1] if self.focused is self.query_one("#second") else _PARTS[0]

    def _show(self) -> None:
        """Show the current state of both replies."""
        for part, reply_id in self._ids.items():
            reply = read_reply(self._session, reply_id)
            if part in self._shown and reply == self._shown[part]:
                continue
            self._shown[part] = reply
            if reply is not None:
                self._show_reply(part, reply)
        self._show_headings()

    def _show_reply(self, part: str, reply: ComparedReply) -> None:
        transcript, entry = self.query_one(f"#{part}", Transcript), self._entries.get(part)
        if entry is None:
            # The heading of the part has the number of the reply and its model.
            glyphs = self._get_palette().glyphs
            entry = self._entries[part] = MessageEntry(reply.message, (1, 1), glyphs, show_stats=True)
            transcript.follows_end = reply.is_growing  # a complete reply is read from its start
            transcript.set_entries([entry], follow=False)
        if reply.is_growing:
            show_grown_text(entry, reply.message)
            transcript.update_entry(entry)
        else:
            if entry.is_streaming:
                finish_grown_text(entry, reply.message)
            else:
                entry.update(reply.message, (1, 1), show_stats=True)
            transcript.set_entries([entry], follow=False)

    def _show_headings(self) -> None:
        """Show what each part contains, and the keys."""
        for part in _PARTS:
            box, reply = self.query_one(f"#{part}_part", Vertical), self._shown.get(part)
            box.border_title = escape_controls(reply.heading) if reply is not None else "This reply was deleted"
        labels = {"compare.choose": "continue with this reply"}
        if any(reply is not None and reply.is_growing for reply in self._shown.values()):
            labels["compare.stop"] = "stop this reply"
        first_labels = {"compare.other": "other reply", "compare.leave": "close"}
        self.query_one("#first_part", Vertical).border_subtitle = self.format_keys(first_labels)
        self.query_one("#second_part", Vertical).border_subtitle = self.format_keys(labels)

    @on(Transcript.HighlightRequested)
    @work(exit_on_error=False)
    async def _on_highlight_requested(self, message: Transcript.HighlightRequested) -> None:
        """Highlight a long code block of one of the replies in a background thread."""
        from edgechat.tui.code_highlighting import highlight_block

        for transcript in self.query(Transcript):
            if any(message.block is block for entry in transcript.entries for block in entry.blocks):
                await highlight_block(transcript, message, self._get_palette, self.app.notify)

    def action_other(self) -> None:
        """Move the focus to the other reply."""
        other = _PARTS[1] if self.part == _PARTS[0] else _PARTS[0]
        self.query_one(f"#{other}", Transcript).focus()

    def action_scroll(self, direction: int) -> None:
        """Scroll the reply that has the focus by a row."""
        self.query_one(f"#{self.part}", Transcript).scroll_rows(direction)

    def action_choose(self, part: str = "") -> None:
        """Close the screen, and continue with a reply: that of `part`, or the one that has the focus."""
        part = part or self.part
        self.dismiss(self._ids[part] if self._shown.get(part) is not None else None)

    def action_stop(self) -> None:
        """Stop the reply that has the focus, and keep its text; the other one continues to grow."""
        if not self._session.second.stop_reply(self._ids[self.part]):
            self.app.notify("This reply is complete")

    def action_leave(self) -> None:
        self.dismiss()
