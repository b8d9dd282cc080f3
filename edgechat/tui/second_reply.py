"""Replies of a second model in the terminal UI: each runs in a thread of its own and grows beside the present reply."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from edgechat.errors import UsageError
from edgechat.tui.messages import NoteAdded, SecondReplyEnded, SecondReplyProgressed
from edgechat.tui.workers import format_error, is_mistake

if TYPE_CHECKING:
    from textual.timer import Timer

    from edgechat.chat.commands import Command
    from edgechat.chat.messages import Message
    from edgechat.chat.session import Session
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.session_worker import SessionWorker

# Interval, in seconds, at which the text of a growing reply is read and shown.
GROWTH_INTERVAL_S: Final = 0.25


class SecondReplyActions:
    """Starts replies of second models, and shows them in the transcript. Runs in the event loop's thread."""

    def __init__(self, pane: ConversationPane, worker: SessionWorker) -> None:
        self._pane = pane
        self._worker = worker
        self._timer: Timer | None = None
        self._conversation_id = ""
        self._reply: Message | None = None
        """Last known state of the reply; None until it has begun."""

    def start(self, command: Command, argument: str, line: str = "") -> None:
        """Run a command whose outcome generates a reply beside the current one. Raises UsageError.

        `line` is the typed command, which is restored in the input if it fails.
        """
        pane, session = self._pane, self._worker.session
        if session is None or (pane.is_busy and not pane.is_generating):
            raise UsageError("The model is loading. Try again when it is ready.")
        if pane.is_generating and not pane.is_streaming:
            raise UsageError("The reply has not begun yet. Try again in a moment.")
        if pane.second_status:
            raise UsageError("Another model is replying already. Press Esc to stop it, or wait for its end.")
        pane.footer.show_notice("")
        self._reply, self._conversation_id = None, session.conversation.id
        self._show_status(f"{argument}: starting")
        self._timer = pane.set_interval(GROWTH_INTERVAL_S, self.show_growth)
        thread = threading.Thread(
            target=self._run, args=(session, command, argument, line), name="second reply", daemon=True
        )
        thread.start()

    def _run(self, session: Session, command: Command, argument: str, line: str) -> None:
        """Generate the reply, and post its progress and its end. Runs in a thread."""
        from edgechat.chat import events
        from edgechat.tui.session_worker import start_command_reply

        end = SecondReplyEnded("")
        try:
            for event in start_command_reply(command, session, argument):
                if isinstance(event, events.SecondReplyEnded):
                    end = SecondReplyEnded(event.notice)
                elif isinstance(event, events.TurnStarted):
                    self._pane.post_message(SecondReplyProgressed(f"{argument}: replies, too"))
                elif notice := events.format_notice(event):
                    self._pane.post_message(NoteAdded(f"{argument}: {notice}"))
                elif status := events.format_progress(event):
                    self._pane.post_message(SecondReplyProgressed(f"{argument}: {status}"))
        except Exception as error:  # noqa: BLE001  (any error is shown, and the chat continues)
            end = SecondReplyEnded(format_error(error), True, line, is_mistake(error, line))
        if not self._worker.is_closing:
            self._pane.post_message(end)

    def show_progress(self, message: SecondReplyProgressed) -> None:
        self._show_status(message.status)
        self.show_growth()

    def show_growth(self) -> None:
        """Show the current text of the reply in the status line, and in the transcript if it is on the active path."""
        session = self._worker.session
        reply = session.second.growing_reply if session is not None else None
        if session is None or reply is None or not self._pane.second_status:
            return
        self._reply = reply
        if reply.text or reply.reasoning:
            n_words = len(reply.reasoning.split()) + len(reply.text.split())
            self._show_status(f"{reply.model.removesuffix('.gguf')}: {n_words} words")
        self._number_entries(session)
        entry = self._find_entry(reply.id)
        if entry is not None:
            show_grown_text(entry, reply)
            self._pane.transcript.update_entry(entry)

    def show_end(self, message: SecondReplyEnded) -> None:
        """Show the complete reply, and a notice or an error."""
        if self._timer is not None:
            self._timer.stop()
        reply, self._reply, self._timer = self._reply, None, None
        self._show_status("")
        session = self._worker.session
        if session is not None:
            entry = self._find_entry(reply.id) if reply is not None else None
            if reply is not None and entry is not None and reply.id in session.tree:
                finish_grown_text(entry, session.tree[reply.id])
                self._pane.transcript.set_entries(self._pane.transcript.entries, follow=False)
            self._number_entries(session)
            shown_ids = [entry.message.id for entry in self._pane.messages]
            if not self._pane.is_generating and [m.id for m in session.tree.path] != shown_ids:
                self._worker.queue(self._worker.post_conversation)
        if message.is_error:
            self._pane.show_failure(message.text, message.line, is_mistake=message.is_mistake)
        elif message.text and self._pane.shows(self._conversation_id):
            self._pane.add_note(message.text)
        if not self._pane.is_busy:
            self._pane.measure_context()

    def show_reply(self, reply_id: str) -> None:
        """Make a reply the end of the active path, after the end of the reply that is being generated there."""
        shown_ids = {entry.message.id for entry in self._pane.messages}
        if reply_id in shown_ids:
            return
        if self._pane.is_generating:
            self._pane.notify("The chat shows this reply when the present one is complete; Esc stops both")

        def select(session: Session) -> None:
            if reply_id in session.tree:
                session.select_alternative(reply_id)
                self._worker.post_conversation(session)

        self._worker.queue(select)

    def _show_status(self, status: str) -> None:
        if status != self._pane.second_status:
            self._pane.second_status = status
            self._pane.status_line.redraw()

    def _find_entry(self, reply_id: str) -> MessageEntry | None:
        return next((entry for entry in self._pane.messages if entry.message.id == reply_id), None)

    def _number_entries(self, session: Session) -> None:
        """Update the numbers of the alternatives in the transcript."""
        tree, view = session.tree, self._pane.view
        numbers: dict[str, tuple[int, int]] = {}
        for entry in self._pane.messages:
            if entry.message.id in tree:
                ids = tree.alternatives(entry.message.id)
                numbers[entry.message.id] = ids.index(entry.message.id) + 1, len(ids)
        changed = [e for e in self._pane.messages if e.number(numbers.get(e.message.id, e.alternative))]
        if changed:
            self._pane.transcript.set_entries(self._pane.transcript.entries, follow=False)
        if view is not None:
            path = [(message, numbers.get(message.id, alternative)) for message, alternative in view.path]
            self._pane.view = view._replace(path=path)


def show_grown_text(entry: MessageEntry, reply: Message) -> None:
    """Show the current text of a growing reply in its transcript entry."""
    if not entry.is_streaming:
        entry.start_streaming()
    if reply.text.startswith(entry.text) and reply.reasoning.startswith(entry.reasoning):
        entry.append(reply.text[len(entry.text) :], reply.reasoning[len(entry.reasoning) :])
    else:
        entry.text, entry.reasoning = reply.text, reply.reasoning
        entry.invalidate()


def finish_grown_text(entry: MessageEntry, reply: Message) -> None:
    """Show the complete text of a reply in its transcript entry, which `show_grown_text` has filled so far."""
    show_grown_text(entry, reply)
    entry.finish(reply)
