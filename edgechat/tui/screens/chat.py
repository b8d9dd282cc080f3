"""The chat screen: the open conversation, the list of conversations, and their keys and commands."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on, work
from textual.binding import Binding, BindingType

from edgechat.errors import UsageError
from edgechat.tui import textual_private
from edgechat.tui.confirm import Confirmation
from edgechat.tui.conversation_pane import ConversationPane
from edgechat.tui.messages import (
    CommandFinished,
    CopyRequested,
    SecondReplyEnded,
    SecondReplyProgressed,
    ViewRequested,
)
from edgechat.tui.screens.sidebar_screen import SidebarScreen
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textual.app import ComposeResult
    from textual.timer import Timer

    from edgechat.chat.session import Session
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.session_worker import SessionWorker

# Pause in typing after which the input is saved and its tokens are counted.
TYPING_PAUSE_S: Final = 0.3
_MAX_PAST_MESSAGES: Final = 500
_MAX_LABEL_CHARS: Final = 300
_MAX_NAME_CHARS: Final = 60
_SCROLLED_ROWS: Final = 3
_DOUBLE_PRESS_S: Final = 1.0


class ChatScreen(SidebarScreen):
    """Screen with a `ConversationPane`, and its keys and commands."""

    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop the reply, or switch between input and conversation", id="chat.stop"),
        Binding("ctrl+c", "interrupt", "Copy the selection, stop the reply, or quit", id="chat.interrupt"),
        Binding("ctrl+n", "command('new')", "New conversation", id="chat.new"),
        Binding("ctrl+b", "command('open')", "Conversations", id="chat.conversations"),
        Binding("ctrl+f", "command('search')", "Search all conversations", id="chat.search"),
        Binding("ctrl+o", "command('model')", "Models", id="chat.models"),
        Binding("ctrl+t", "command('figures')", "Show or hide the speed of replies", id="chat.figures", show=False),
        Binding("f1", "command('help')", "Help", id="chat.help"),
        Binding("f2", "command('settings')", "Settings", id="chat.settings"),
        Binding("f3", "command('plan')", "Show why this model was chosen", id="chat.plan", show=False),
        Binding("f4", "command('persona')", "Personas", id="chat.personas", show=False),
        Binding("f5", "command('now')", "End the reasoning; the model answers now", id="chat.now", show=False),
        Binding("f6", "command('earlier')", "Use the earlier reply to the same message", id="chat.earlier", show=False),
        Binding("f8", "command('also')", "Answer with another model, too", id="chat.also", show=False),
        Binding("f9", "command('compare')", "Compare two replies", id="chat.compare", show=False),
        Binding("pageup", "page(-1)", "Page up", id="chat.page_up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="chat.page_down", show=False),
        Binding("ctrl+up,shift+up", "scroll_rows(-1)", "Scroll up", id="chat.scroll_up", show=False),
        Binding("ctrl+down,shift+down", "scroll_rows(1)", "Scroll down", id="chat.scroll_down", show=False),
        Binding("ctrl+l", "redraw", "Remove notes and errors, and redraw the screen", id="chat.redraw", show=False),
        Binding("ctrl+home,home", "start", "Scroll to the start", id="chat.start", show=False),
        Binding("ctrl+end,end", "end", "Scroll to the end", id="chat.end", show=False),
        Binding(
            "alt+left", "on_message('previous_alternative')", "Previous alternative", id="chat.previous", show=False
        ),
        Binding("alt+right", "on_message('next_alternative')", "Next alternative", id="chat.next", show=False),
        # Keys while the transcript has the focus; in the input, these letters are typed as text.
        Binding(
            "left", "on_message('previous_alternative')", "Previous alternative", id="message.previous", show=False
        ),
        Binding("right", "on_message('next_alternative')", "Next alternative", id="message.next", show=False),
        Binding("enter,i", "app.focus('prompt')", "Go to the input", id="chat.prompt", show=False),
        Binding("y", "on_message('copy_message')", "Copy the message", id="message.copy", show=False),
        Binding("c", "on_message('copy_code')", "Copy a code block by its number", id="message.copy_code", show=False),
        Binding("s", "on_message('save_code')", "Save a code block to a file", id="message.save_code", show=False),
        Binding("o", "on_message('open_passages')", "Open the cited passages", id="message.passages", show=False),
        Binding("e", "on_message('edit_message')", "Edit your message", id="message.edit", show=False),
        Binding("r", "on_message('retry_message')", "Generate an alternative reply", id="message.retry", show=False),
        Binding("n", "on_message('continue_message')", "Continue the reply", id="message.continue", show=False),
        Binding(
            "d,delete", "on_message('delete_message')", "Delete the message and all messages below it",
            id="message.delete", show=False,
        ),
        Binding(
            "D", "on_message('delete_pair')", "Delete your message with its reply, and all messages below them",
            id="message.delete_pair", show=False,
        ),
        Binding("u", "command('undo')", "Restore the last deleted message", id="message.undo", show=False),
        Binding("b", "on_message('branch')", "Start a new branch after this message", id="message.branch", show=False),
    ]  # fmt: skip

    def __init__(
        self, worker: SessionWorker, get_palette: Callable[[], Palette],
        get_key_overrides: Callable[[], Mapping[str, str]], get_download_status: Callable[[], str],
        on_first_frame: Callable[[], object], problems: Sequence[str],
        *, figures: bool, footer: bool,
    ) -> None:  # fmt: skip
        """`on_first_frame` is called after the first frame. `problems` are descriptions of invalid settings."""
        pane = ConversationPane(
            worker, get_palette, get_key_overrides, get_download_status, figures=figures, footer=footer
        )
        super().__init__(pane, worker, get_key_overrides)
        self._get_palette = get_palette
        self._on_first_frame = on_first_frame
        self._problems = problems
        self._typing_timer: Timer | None = None
        self._confirmation = Confirmation()
        self._text_with_missing_files = ""
        """Text that Enter did not send, because it names files that do not exist; a second Enter sends it."""
        self._escape_at = 0.0
        """Time at which Esc last stopped a reply, cancelled an edit or returned queued messages."""

    def compose(self) -> ComposeResult:
        yield self.pane

    def on_mount(self) -> None:
        for problem in self._problems:
            self.pane.add_note(f"{problem} (ignored)")
        self.pane.prompt.take_back_queued = self._take_back_queued
        self.pane.prompt.may_send = self._may_send
        self.pane.status_line.show_state("Starting")
        self.call_after_refresh(self._finish_start)

    def _finish_start(self) -> None:
        gc.enable()  # edgechat.cli.chat disables garbage collection to speed up the first frame
        self._on_first_frame()

    def on_screen_resume(self) -> None:
        self.app.clear_notifications()  # toasts of the screen above would cover the input
        self.pane.footer.redraw()

    def on_screen_suspend(self) -> None:
        self.pane.footer.redraw()

    def leave(self) -> None:
        """Save the unsent text before the application closes."""
        self.pane.composer.save()
        self.pane.status_line.show_state("Closing")

    # Input

    def _may_send(self, text: str) -> bool:
        """Return whether to send `text`: all mentioned files exist, or the user confirms by sending it again."""
        from edgechat.chat import command_parser, mentions
        from edgechat.humanize import shorten

        names = mentions.find_missing_files(text) if "@" in text and not command_parser.is_command(text) else []
        if not names or text == self._text_with_missing_files:
            self._text_with_missing_files = ""
            return True
        self._text_with_missing_files = text
        key = self.pane.footer.key_label("prompt.send")
        n_more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self.pane.ask(f"No file {shorten(names[0], _MAX_NAME_CHARS)}{n_more}; press {key} again to send it as text")
        return False

    @on(PromptInput.Submitted)
    def _on_sent(self, message: PromptInput.Submitted) -> None:
        from edgechat.chat import command_parser

        try:
            invocation = command_parser.parse(message.text)
        except UsageError as error:
            self.pane.show_failure(str(error), is_mistake=True)
            self.pane.composer.append_text(message.text)
            return
        if self._typing_timer is not None:
            self._typing_timer.stop()
        if invocation is None:
            self.pane.submit(message.text, message.state)
        else:
            self.pane.composer.save()
            self.actions.run(invocation[0].name, invocation[1], message.text)
            self.pane.measure_context()  # without the command that was in the input

    @on(PromptInput.Changed)
    def _on_typed(self) -> None:
        if self._typing_timer is not None:
            self._typing_timer.stop()
        self.pane.footer.redraw()
        self._typing_timer = self.set_timer(TYPING_PAUSE_S, self._on_typing_paused)

    def _on_typing_paused(self) -> None:
        if not self._worker.is_closing:
            self.pane.measure_context()
            self.pane.composer.save()

    @on(PromptInput.HistoryRequested)
    def _on_history_requested(self, message: PromptInput.HistoryRequested) -> None:
        self._read_history(self._pick_from_history if message.search else lambda: self.pane.prompt.recall(0))

    def _take_back_queued(self) -> bool:
        """Move the last queued message to the input, to be edited; return False if there is none."""
        is_moved = self.pane.composer.take_back(-1)
        if is_moved:
            self.pane.composer.save()
            self.pane.status_line.redraw()
        return is_moved

    def _read_history(self, on_read: Callable[[], object]) -> None:
        def read_texts(session: Session) -> None:
            texts = list(session.store.recent_inputs(_MAX_PAST_MESSAGES))
            self.app.call_from_thread(store_texts, texts)

        def store_texts(texts: list[str]) -> None:
            self.pane.prompt.past_messages = texts
            on_read()

        self._worker.run_when_idle(read_texts)

    def _pick_from_history(self) -> None:
        from edgechat.tui.screens.picker import pick

        texts = self.pane.prompt.past_messages or []
        options = [(str(n), " ".join(text.split())[:_MAX_LABEL_CHARS]) for n, text in enumerate(texts)]
        if options:
            pick(self.app, "Your earlier messages", options, lambda index: self.pane.prompt.recall(int(index)))

    # Commands

    def on_command_finished(self, message: CommandFinished) -> None:
        self.actions.apply_outcome(message.outcome)

    def on_view_requested(self, message: ViewRequested) -> None:
        if message.view == "conversations":
            message.stop()
            self.toggle_sidebar()

    def on_second_reply_progressed(self, message: SecondReplyProgressed) -> None:
        self.actions.second.show_progress(message)

    def on_second_reply_ended(self, message: SecondReplyEnded) -> None:
        self.actions.second.show_end(message)

    # Keys

    def action_command(self, name: str) -> None:
        """Run the slash command `name` without an argument."""
        self.actions.run(name)

    def action_on_message(self, name: str) -> None:
        """Call the method `name` of `Actions` with the message under the cursor, or else with the last message."""
        self.actions.attempt(getattr(self.actions, name), self.pane.transcript.current_message)

    def action_stop(self) -> None:
        """Stop the reply; without a reply, cancel the edit or switch the focus.

        If the input is empty, the next queued message returns to it. A second press within a second is ignored, unless
        the first one only switched the focus.
        """
        pane = self.pane
        # If Esc has just closed the list of completions, another Esc is ignored, unless it stops a reply.
        escape_at = self._escape_at if pane.is_replying else max(self._escape_at, pane.prompt.popup_closed_at)
        if time.monotonic() - escape_at < _DOUBLE_PRESS_S:
            return
        if pane.is_generating:
            pane.composer.hold_queue()
        restored_queue = pane.composer.take_back()
        pane.status_line.redraw()
        if pane.is_replying or restored_queue or pane.composer.edited_id is not None:
            self._escape_at = time.monotonic()
        if pane.is_replying:
            self._worker.stop()
        elif pane.composer.edited_id is not None:
            pane.composer.cancel_edit()
            pane.status_line.redraw()
        elif not restored_queue:
            pane.transcript.focus() if pane.prompt.has_focus else pane.prompt.focus()

    @on(PromptInput.Interrupted)
    def action_interrupt(self) -> None:
        """Copy the selection, stop the reply or clear the input; if the input is empty, quit on the second press."""
        selected_text = self.get_selected_text()
        if selected_text:
            self.post_message(CopyRequested(selected_text, "Selection"))
        elif self.pane.is_replying:
            self.pane.composer.hold_queue()
            self._worker.stop()
        elif self.pane.prompt.has_focus and self.pane.prompt.text:
            self.pane.prompt.clear_undoably()
        elif self._confirmation.confirm("quit"):
            self.app.run_worker(self.app.action_quit())
        else:
            self.notify("Press the same key again to quit")

    def action_page(self, direction: int) -> None:
        self.pane.transcript.action_page(direction)

    def action_scroll_rows(self, direction: int) -> None:
        self.pane.transcript.scroll_rows(direction * _SCROLLED_ROWS)

    def action_redraw(self) -> None:
        """Remove the notes and errors from the conversation, and write the whole screen again."""
        self.pane.remove_notes()
        textual_private.redraw(self.app)

    def action_start(self) -> None:
        self.pane.transcript.action_top()

    def action_end(self) -> None:
        self.pane.transcript.action_bottom()

    # Transcript

    @on(Transcript.ViewChanged)
    def _on_view_changed(self) -> None:
        self.pane.status_line.redraw()

    @on(Transcript.CitationClicked)
    def _on_citation_clicked(self, message: Transcript.CitationClicked) -> None:
        self.actions.passages.open_citation(message.entry, message.index)

    @on(Transcript.HighlightRequested)
    @work(exit_on_error=False)
    async def _on_highlight_requested(self, message: Transcript.HighlightRequested) -> None:
        """Highlight a long code block in a background thread."""
        from edgechat.tui.code_highlighting import highlight_block

        await highlight_block(
            self.pane.transcript, message, self._get_palette, lambda text: self.notify(text, severity="error")
        )
