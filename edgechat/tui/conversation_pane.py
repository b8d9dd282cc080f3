"""Widget for the open conversation, updated by messages of the session worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal

from edgechat.terminal import escape_controls
from edgechat.tui import messages as ui_messages
from edgechat.tui.conversation_frame import ConversationFrame

if TYPE_CHECKING:
    from textual.timer import Timer

    from edgechat.tui.render.entries import MessageEntry, TranscriptEntry
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.composer_bar import ComposerBar
    from edgechat.tui.widgets.prompt import PromptState


# Interval, in seconds, at which collected text is shown even if no further token arrives.
_HELD_TEXT_INTERVAL_S: Final = 0.25
# Numbers of the messages of a new conversation among their alternatives, and numbers of alternatives.
_FIRST_REPLY: Final = [(1, 1), (1, 1)]


class ConversationPane(ConversationFrame):
    """Shows the conversation, sends messages and shows replies. All methods run in the event loop's thread."""

    def __init__(
        self, worker: SessionWorker, get_palette: Callable[[], Palette],
        get_key_overrides: Callable[[], Mapping[str, str]], get_download_status: Callable[[], str],
        *, figures: bool, footer: bool,
    ) -> None:  # fmt: skip
        """If `figures`, show the speed of each reply. For the other arguments, see `ConversationFrame`."""
        super().__init__(worker, get_palette, get_key_overrides, get_download_status, footer=footer)
        self.shows_figures = figures
        self._speed = ""
        self._has_named_keys = False
        """True after a notice has named the keys that show other replies."""
        self._streaming_entry: MessageEntry | None = None
        """Entry of the reply that is being generated."""
        self._held_text_timer: Timer | None = None
        self._n_measurements = 0
        """Number of requests to measure the context; only the result of the latest request is shown."""

    @property
    def messages(self) -> list[MessageEntry]:
        """Transcript entries that are messages, in order."""
        return [message for entry in self.transcript.entries if (message := entry.as_message) is not None]

    @property
    def is_streaming(self) -> bool:
        """True once the reply that is being generated is in the transcript."""
        return self._streaming_entry is not None

    @property
    def last_message(self) -> MessageEntry | None:
        entries = reversed(self.transcript.entries)
        return next((message for entry in entries if (message := entry.as_message) is not None), None)

    # Notes and errors

    def add_note(self, text: str) -> None:
        """Append a note to the transcript."""
        self._append("note", text)

    def add_error(self, text: str) -> None:
        """Append an error to the transcript, unless it is the last entry already; hide the notice in the footer."""
        self.footer.show_notice("")
        last = self.transcript.entries[-1:]
        if last and last[0].kind == "error" and last[0].text == escape_controls(text):
            self.transcript.action_bottom()
        else:
            self._append("error", text)

    def show_failure(self, text: str, line: str = "", *, is_mistake: bool = False) -> None:
        """Show the error of the command `line`; if the input is empty, restore the command there for correction.

        A mistake of the user is shown in the footer, if the whole text fits there; other errors are appended to the
        transcript.
        """
        if is_mistake and self.footer.has_room_for(text):
            self.show_notice(text, "error")
        else:
            self.add_error(text)
        if line and not self.prompt.text:
            self.prompt.load(line)

    def _append(self, kind: Literal["note", "error"], text: str) -> None:
        from edgechat.tui.render.entries import TranscriptEntry

        self.transcript.follows_end = True  # show the result that the user is waiting for
        self.transcript.append(TranscriptEntry(kind, escape_controls(text)))

    def remove_notes(self) -> None:
        """Remove all notes and errors from the transcript, and the notice in the footer."""
        entries = [entry for entry in self.transcript.entries if entry.as_message is not None]
        self.transcript.set_entries(entries, follow=False)
        self.footer.show_notice("")

    def _remove_errors_below(self, message_id: str) -> None:
        """Remove the errors below a reply that is continued, because they say why it ended."""
        above_id = ""
        entries: list[TranscriptEntry] = []
        for entry in self.transcript.entries:
            message = entry.as_message
            above_id = message.message.id if message is not None else above_id
            if entry.kind != "error" or above_id != message_id:
                entries.append(entry)
        if len(entries) < len(self.transcript.entries):
            self.transcript.set_entries(entries, follow=True)

    def on_note_added(self, message: ui_messages.NoteAdded) -> None:
        self.add_note(message.text)

    # Changes to the conversation

    def on_conversation_changed(self, message: ui_messages.ConversationChanged) -> None:
        is_switch = not self.shows(message.view.conversation.id)
        self.hide_offer()
        if is_switch:
            self.composer.reset()
            self.status_line.context_tokens, self._speed = 0, ""
            if message.unsent_text and not self.prompt.text:
                self.prompt.load(message.unsent_text)
        old_ids = {entry.message.id for entry in self.messages}
        self._show(message.view, follow=is_switch)
        new_ids = [m.id for m, _ in message.view.path if m.id not in old_ids]
        if message.message_id is not None:
            self._scroll_to_message(message.message_id)
        elif not is_switch and new_ids and self.transcript.has_focus:
            self._scroll_to_message(new_ids[0])
        if not self.is_busy:
            self.status_line.show_state("Ready", "")
            self.measure_context()
        if is_switch:
            self.worker.run_when_idle(lambda session: session.warm_cache())

    def on_title_changed(self, message: ui_messages.TitleChanged) -> None:
        if self.view is not None and self.shows(message.conversation.id):
            self.view = self.view._replace(conversation=message.conversation)
            self.status_line.redraw()
            self.post_message(ui_messages.ConversationsChanged())

    def toggle_figures(self) -> None:
        """Show or hide the speed of each reply; the speed of an unfinished reply is shown when it ends."""
        self.shows_figures = not self.shows_figures
        if self.view is not None:
            self._show(self.view, follow=False)

    def _show(self, view: ui_messages.ConversationView, *, follow: bool) -> None:
        """Show the active path of `view`; messages that are already on the screen keep their entries and layout."""
        from edgechat.tui.render.reconcile import reconcile_entries

        is_first, is_switch = self.view is None, not self.shows(view.conversation.id)
        self.view = view
        self.composer.conversation_id = view.conversation.id if view.path else ""
        # Notes added before the first conversation stay visible below it; notes of another conversation are removed.
        old_entries = self.transcript.entries if not is_switch else []
        glyphs, figures = self.get_palette().glyphs, self.shows_figures
        entries = reconcile_entries(old_entries, view.path, glyphs, show_stats=figures, passages=view.passages)
        self.transcript.set_entries([*entries, *(self.transcript.entries if is_first else [])], follow=follow)
        self.post_message(ui_messages.ConversationsChanged())
        self.show_frame()

    def _scroll_to_message(self, message_id: str) -> None:
        for index, entry in enumerate(self.transcript.entries):
            message = entry.as_message
            if message is not None and message.message.id == message_id:
                self.transcript.focus()
                self.transcript.move_cursor_to(index)

    # Sending

    def submit(self, text: str, prompt_state: PromptState | None = None) -> None:
        """Send a new or edited message, or queue it while a load or a reply is pending."""
        outgoing_message = self.composer.take_message(text, prompt_state)
        if self.is_busy:
            self.composer.enqueue(outgoing_message)
            self.status_line.redraw()
        else:
            self._send(outgoing_message)
        self.composer.save()

    def _send(self, outgoing_message: ui_messages.OutgoingMessage) -> None:
        self.transcript.follows_end = True
        if self.prompt.past_messages is not None:
            self.prompt.past_messages.insert(0, outgoing_message.text)
        self.begin_reply()
        self.worker.send(outgoing_message)

    def begin_reply(self) -> None:
        """Count a reply as pending, and update the status line. Call it before the reply is requested.

        A notice in the footer is removed: it is about the time before, and hides the key that stops the reply.
        """
        self.footer.show_notice("")
        self.n_pending += 1
        self.is_generating = True
        session = self.worker.session
        if session is not None:
            session.clear_stop()
        # What a server does before the first word is not known here.
        is_remote = session is not None and session.source.is_remote
        self.status_line.show_state("Waiting for the server" if is_remote else "Reading")

    def measure_context(self) -> None:
        """Count the context tokens that the prompt would use if the input were sent now.

        Does nothing while a load or a reply is pending.
        """
        if not self.is_busy:
            self._n_measurements += 1
            self.worker.measure_context(self._n_measurements, self._next_message, list(self.composer.attachments))

    @property
    def _next_message(self) -> str:
        """Text that Enter would send to the model now; "" if the input contains a command."""
        text = self.prompt.full_text.strip()
        if text.startswith("/"):
            from edgechat.chat import command_parser

            return "" if command_parser.is_command(self.prompt.full_text.rstrip()) else text
        return text

    def on_context_measured(self, message: ui_messages.ContextMeasured) -> None:
        is_outdated = message.number != self._n_measurements or message.text != self._next_message
        if self.is_busy or is_outdated:
            return
        self.composer.n_tokens_by_file = message.n_tokens_by_file
        if message.context_tokens or not message.warning:
            self.status_line.context_tokens = message.context_tokens
        self.status_line.show_state("Ready", message.warning or self._speed)

    # Attachments and the queue

    def show_attachments(self) -> None:
        """Show the attachments, and measure the context with them."""
        self.status_line.redraw()
        self.measure_context()

    def detach(self, name: str) -> None:
        """Remove the attachment called `name`, or the last one if `name` is empty. Raises UsageError."""
        from edgechat.chat.commands import remove_attachment

        self.notify(remove_attachment(self.composer.attachments, name))
        self.show_attachments()

    def on_composer_bar_detach_requested(self, message: ComposerBar.DetachRequested) -> None:
        if message.index < len(self.composer.attachments):
            file = self.composer.attachments.pop(message.index)
            self.notify(f"{file.name} will not be sent")
            self.show_attachments()

    def on_prompt_input_erased_at_start(self) -> None:
        if self.composer.attachments:
            self.detach("")

    def on_composer_bar_queued_selected(self, message: ComposerBar.QueuedSelected) -> None:
        if message.removes:
            self.composer.remove_queued(message.index)
        elif not self.composer.take_back(message.index):
            self.notify("To edit a queued message, first send or delete the text in the input")
        self.composer.save()
        self.status_line.redraw()

    # Loads and replies

    def on_status_changed(self, message: ui_messages.StatusChanged) -> None:
        self.status_line.show_state(message.text)

    def on_load_started(self, _message: ui_messages.LoadStarted) -> None:
        self.n_pending += 1

    def on_model_ready(self, message: ui_messages.ModelReady) -> None:
        for warning in message.warnings:
            self.add_note(warning)
        self._end_operation()
        self.worker.run_when_idle(lambda session: session.warm_cache())

    def on_reply_started(self, message: ui_messages.ReplyStarted) -> None:
        if self.view is not None and not self.view.path:
            self.composer.start_conversation(message.view.conversation.id)
        self.hide_offer()
        self.footer.end_information()
        self._remove_errors_below(message.reply_id)
        if [alternative for _, alternative in message.view.path] == _FIRST_REPLY:
            self.worker.find_earlier_reply()
        self.worker.paint_pace.start_reply()
        self.is_generating, self.is_reasoning = True, False
        self._show(message.view, follow=True)
        last = self.last_message
        self._streaming_entry = last if last is not None and last.message.id == message.reply_id else None
        if self._streaming_entry is not None:
            self._streaming_entry.start_streaming()
        self.status_line.start_reply()
        if self._held_text_timer is not None:  # the second reply of an escalation
            self._held_text_timer.stop()
        self._held_text_timer = self.set_interval(_HELD_TEXT_INTERVAL_S, self.worker.post_held_text)

    def on_earlier_reply_found(self, message: ui_messages.EarlierReplyFound) -> None:
        if self.shows(message.conversation_id) and len(self.messages) == len(_FIRST_REPLY):
            self.show_offer(message.text)

    def on_text_arrived(self, message: ui_messages.TextArrived) -> None:
        self.worker.paint_pace.note_text()
        entry = self._streaming_entry
        if entry is None or not (message.text or message.reasoning or message.n_tokens):
            return
        entry.append(message.text, message.reasoning)
        if message.text or not entry.text:
            self.transcript.update_entry(entry)
        self.is_reasoning = bool(message.thinking)
        activity = ", ".join(filter(None, (message.thinking or "Generating", message.pick)))
        self.status_line.count_tokens(message.n_tokens, activity, message.drafts)

    def on_reply_ended(self, message: ui_messages.ReplyEnded) -> None:
        turn = message.turn
        self.status_line.context_tokens = turn.context_tokens or self.status_line.context_tokens
        self._finish_streaming(message.view)
        stats = turn.reply.stats
        self.is_generating = False
        entry = self.last_message
        if entry is not None and entry.alternative[1] > 1 and not self._has_named_keys:
            self._has_named_keys = True
            number, count = entry.alternative
            self.notify(f"Reply {number} of {count}; {self.format_alternative_keys()}")
        from edgechat.chat.messages import format_speed  # imported here, so that the first frame is not delayed

        self._end_operation(format_speed(stats) if stats is not None and stats.decode_tps else "")

    def _finish_streaming(self, view: ui_messages.ConversationView) -> None:
        if self._held_text_timer is not None:
            self._held_text_timer.stop()
        entry, self._streaming_entry = self._streaming_entry, None
        if entry is not None:
            saved_message = next((m for m, _ in reversed(view.path) if m.id == entry.message.id), entry.message)
            entry.finish(saved_message)
        self._show(view, follow=False)

    def on_session_failed(self, message: ui_messages.SessionFailed) -> None:
        if message.view is not None and (message.ends_operation or self._streaming_entry is None):
            self._finish_streaming(message.view)
        self.show_failure(message.text, message.line, is_mistake=message.is_mistake)
        if message.failed_message is not None:
            self.composer.restore(message.failed_message)
        if message.ends_operation:
            self.is_generating = False
            self._end_operation()
            session = self.worker.session
            if session is not None and session.model_error is not None:
                self.screen.post_message(ui_messages.ViewRequested("models", ""))

    def _end_operation(self, speed: str = "") -> None:
        """Decrease the number of pending loads and replies; at zero, send the next queued message."""
        self.n_pending = max(0, self.n_pending - 1)
        if self.is_busy:
            return
        is_loaded = self.worker.is_loaded
        self._speed = speed
        self.status_line.show_state("Ready" if is_loaded else "No model", speed)
        outgoing_message = self.composer.dequeue() if is_loaded else None
        if outgoing_message is not None:
            self._send(outgoing_message)
        else:
            self.measure_context()
