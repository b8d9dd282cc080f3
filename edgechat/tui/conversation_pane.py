"""The open conversation: transcript, status line and input, updated from the session worker's messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from textual.containers import Vertical

from edgechat.terminal import escape_controls
from edgechat.tui import messages as posted
from edgechat.tui.composer import Composer
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.status_line import StatusContext, StatusLine
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.prompt import PromptState


class ConversationPane(Vertical):
    """Shows the conversation and counts pending loads and replies; its handlers run on the screen's thread."""

    def __init__(
        self, worker: SessionWorker, palette: Callable[[], Palette], key_overrides: Callable[[], Mapping[str, str]],
        download_status: Callable[[], str], *, figures: bool,
    ) -> None:  # fmt: skip
        """Call the three functions for current values; `figures` shows the speed of each reply."""
        super().__init__()
        self._worker = worker
        self._palette = palette
        self._download_status = download_status
        self.transcript = Transcript(palette, id="transcript")
        self.status_line = StatusLine(self._status_context)
        self.prompt = PromptInput(key_overrides, id="prompt")
        self.composer = Composer(self.prompt, worker)
        self.view: posted.ConversationView | None = None
        """None until the session was made."""
        self.shows_figures = figures
        self.is_generating = False
        self._n_pending = 1  # the model that the chat starts with
        self._speed = ""
        self._growing: MessageEntry | None = None
        """The reply that is being generated."""

    def compose(self) -> ComposeResult:
        yield self.transcript
        yield self.status_line
        yield self.prompt

    @property
    def is_busy(self) -> bool:
        """True while a load or a reply is pending."""
        return self._n_pending > 0

    @property
    def messages(self) -> list[MessageEntry]:
        """Entries of the transcript that are messages."""
        return [message for entry in self.transcript.entries if (message := entry.as_message) is not None]

    @property
    def last_message(self) -> MessageEntry | None:
        entries = reversed(self.transcript.entries)
        return next((message for entry in entries if (message := entry.as_message) is not None), None)

    def shows(self, conversation_id: str) -> bool:
        """Return True if this conversation is open."""
        return self.view is not None and self.view.conversation.id == conversation_id

    def _status_context(self) -> StatusContext:
        session = self._worker.session
        loaded = session.loaded if session is not None else None
        return StatusContext(
            shows_message_keys=self.transcript.has_focus and not self.is_busy,
            unsent=self.composer.status,
            shows_end=self.transcript.follows_end,
            n_ctx=loaded.n_ctx if loaded is not None else None,
            model_name=session.model_path.stem if session is not None and loaded is not None else "",
            download=self._download_status(),
        )

    # Notes and errors

    def add_note(self, text: str) -> None:
        """Append a note to the transcript."""
        self._append("note", text)

    def add_error(self, text: str) -> None:
        """Append an error to the transcript."""
        self._append("error", text)

    def _append(self, kind: Literal["note", "error"], text: str) -> None:
        from edgechat.tui.render.entries import TranscriptEntry

        self.transcript.follows_end = True  # show the result that the user is waiting for
        self.transcript.append(TranscriptEntry(kind, escape_controls(text)))

    def on_note_added(self, message: posted.NoteAdded) -> None:
        self.add_note(message.text)

    # Changes of the conversation

    def on_conversation_changed(self, message: posted.ConversationChanged) -> None:
        is_other = not self.shows(message.view.conversation.id)
        if is_other:
            self.composer.reset()
            self.status_line.context_tokens = 0
            if message.unsent_text and not self.prompt.text:
                self.prompt.load(message.unsent_text)
        self._show(message.view, follow=is_other)
        if message.message_id is not None:
            self._scroll_to_message(message.message_id)
        if not self.is_busy:
            self.status_line.show_state("Ready", "")
            self.measure_context()
        if is_other:
            self._worker.run_idle(lambda session: session.warm_cache())

    def on_title_changed(self, message: posted.TitleChanged) -> None:
        if self.view is not None and self.shows(message.conversation.id):
            self.view = self.view._replace(conversation=message.conversation)
            self.post_message(posted.ConversationsChanged())

    def toggle_figures(self) -> None:
        """Show or hide the speed of each reply; one that is being generated follows when it ends."""
        self.shows_figures = not self.shows_figures
        if self.view is not None:
            self._show(self.view, follow=False)

    def _show(self, view: posted.ConversationView, *, follow: bool) -> None:
        """Show the active path; entries that stay on it are reused, with their layout."""
        from edgechat.tui.render.reconcile import reconcile

        is_first, is_other = self.view is None, not self.shows(view.conversation.id)
        self.view = view
        self.composer.conversation_id = view.conversation.id if view.path else ""
        # Notes added before the first conversation stay visible below it; notes of another conversation are removed.
        before = self.transcript.entries if not is_other else []
        entries = reconcile(before, view.path, self._palette().glyphs, shows_stats=self.shows_figures)
        self.transcript.set_entries([*entries, *(self.transcript.entries if is_first else [])], follow=follow)
        self.post_message(posted.ConversationsChanged())

    def _scroll_to_message(self, message_id: str) -> None:
        for index, entry in enumerate(self.transcript.entries):
            message = entry.as_message
            if message is not None and message.message.id == message_id:
                self.transcript.follows_end = False
                self.transcript.focus()
                self.transcript.move_cursor_to(index)

    # Sending

    def submit(self, text: str, prompt_state: PromptState | None = None) -> None:
        """Send a message, or the edit of one; while a load or a reply is pending, queue it."""
        outgoing = self.composer.take(text, prompt_state)
        if self.is_busy:
            self.composer.enqueue(outgoing)
            self.status_line.redraw()
        else:
            self._send(outgoing)
        self.composer.save()

    def _send(self, outgoing: posted.OutgoingMessage) -> None:
        self.transcript.follows_end = True
        if self.prompt.past_messages is not None:
            self.prompt.past_messages.insert(0, outgoing.text)
        self.begin_reply()
        self._worker.send(outgoing)

    def begin_reply(self) -> None:
        """Count a reply that is about to be requested as pending."""
        self._n_pending += 1
        self.is_generating = True
        if self._worker.session is not None:
            self._worker.session.clear_stop()
        self.status_line.show_state("Reading")

    def measure_context(self) -> None:
        """Measure the context with the input as the next message, unless something is pending."""
        if not self.is_busy:
            self._worker.measure_context(self.prompt.full_text.strip(), list(self.composer.attached))

    def on_context_measured(self, message: posted.ContextMeasured) -> None:
        if self.is_busy or self.prompt.full_text.strip() != message.text:
            return
        if message.context_tokens:
            self.status_line.context_tokens = message.context_tokens
        self.status_line.show_state("Ready", message.warning or self._speed)

    # Loads and replies

    def on_status_changed(self, message: posted.StatusChanged) -> None:
        self.status_line.show_state(message.text)

    def on_load_started(self, _message: posted.LoadStarted) -> None:
        self._n_pending += 1

    def on_model_ready(self, message: posted.ModelReady) -> None:
        for warning in message.warnings:
            self.add_note(warning)
        self._end_operation()
        self._worker.run_idle(lambda session: session.warm_cache())

    def on_reply_started(self, message: posted.ReplyStarted) -> None:
        if self.view is not None and not self.view.path:
            self.composer.start_conversation(message.view.conversation.id)
        self.is_generating = True
        self._show(message.view, follow=True)
        last = self.last_message
        self._growing = last if last is not None and last.message.id == message.reply_id else None
        if self._growing is not None:
            self._growing.start_streaming()
        self.status_line.start_reply()

    def on_text_arrived(self, message: posted.TextArrived) -> None:
        self._worker.is_painted.set()
        if self._growing is None or not (message.text or message.reasoning or message.n_tokens):
            return
        self._growing.append(message.text, message.reasoning)
        if message.text or not self._growing.text:
            self.transcript.entry_changed(self._growing)
        self.status_line.count_tokens(message.n_tokens, is_reasoning=not self._growing.text)

    def on_reply_ended(self, message: posted.ReplyEnded) -> None:
        turn = message.turn
        self.status_line.context_tokens = turn.context_tokens or self.status_line.context_tokens
        self._finish_growing(message.view)
        stats = turn.reply.stats
        self.is_generating = False
        self._end_operation(f"{stats.decode_tps:.0f} tokens/s" if stats is not None and stats.decode_tps else "")

    def _finish_growing(self, view: posted.ConversationView) -> None:
        growing, self._growing = self._growing, None
        if growing is not None:
            saved = next((m for m, _ in reversed(view.path) if m.id == growing.message.id), growing.message)
            growing.finish(saved)
        self._show(view, follow=False)

    def on_session_failed(self, message: posted.SessionFailed) -> None:
        if message.view is not None and (message.ends_operation or self._growing is None):
            self._finish_growing(message.view)
        self.add_error(message.text)
        if message.taken_back is not None:
            self.composer.restore(message.taken_back)
        if message.ends_operation:
            self.is_generating = False
            self._end_operation()

    def _end_operation(self, speed: str = "") -> None:
        """Count one pending load or reply as done; after the last one, send the next queued message."""
        self._n_pending = max(0, self._n_pending - 1)
        if self.is_busy:
            return
        is_loaded = self._worker.is_loaded
        self._speed = speed
        self.status_line.show_state("Ready" if is_loaded else "no model", speed)
        outgoing = self.composer.dequeue() if is_loaded else None
        if outgoing is not None:
            self._send(outgoing)
        else:
            self.measure_context()
