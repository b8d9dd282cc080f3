"""Actions of commands and keys on the conversation; slow work runs in the session worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edgechat.chat import commands
from edgechat.errors import EdgechatError, UsageError
from edgechat.tui.confirm import Confirmation
from edgechat.tui.messages import CommandFinished, ConversationsChanged, CopyRequested, ViewRequested
from edgechat.tui.render.markdown_blocks import code_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgechat.chat.commands import Command, Destination, Outcome, View
    from edgechat.chat.messages import Conversation
    from edgechat.chat.session import Session
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.session_worker import SessionWorker

T = TypeVar("T")


class Actions:
    """Runs slash commands, and the keys that act on a message or on a listed conversation."""

    def __init__(self, pane: ConversationPane, worker: SessionWorker) -> None:
        self._pane = pane
        self._worker = worker
        self._confirmation = Confirmation()

    def attempt(self, action: Callable[[T], object], argument: T) -> None:
        """Call `action`; an EdgechatError becomes an error in the transcript."""
        try:
            action(argument)
        except EdgechatError as error:
            self._pane.add_error(str(error))

    # Commands

    def run(self, name: str, argument: str = "") -> None:
        """Run a slash command, or open its view."""
        command = commands.BY_NAME[name]
        self.attempt(lambda text: self._run(command, text), argument)

    def _run(self, command: Command, argument: str) -> None:
        if command.view is not None and command.opens_view(argument):
            self._open_view(command.view, argument)
        elif command.lane == "caller" and command.run is not None and self._worker.session is not None:
            self.carry_out(command.run(self._worker.session, argument))
        elif command.lane == "side":
            # Without a running reply, queue the command so that it runs after changes that are still queued.
            self._worker.run_command(command, argument, beside_reply=self._pane.is_busy)
        else:
            if command.lane == "reply":
                self._start_reply()
            else:
                self._refuse_while_generating()
            self._worker.run_command(command, argument)

    def carry_out(self, outcome: Outcome) -> None:
        """Carry out the effects of a command and show its text."""
        if outcome.attachment is not None:
            self._pane.composer.attached.append(outcome.attachment)
            self._pane.status_line.redraw()
        if outcome.destination is not None:
            self.go_to(outcome.destination)
            self._pane.prompt.focus()
        if outcome.model:
            self.use_model(outcome.model)
        if outcome.text:
            self._pane.add_note(outcome.text) if outcome.is_note else self._pane.notify(outcome.text)

    def _open_view(self, view: View, argument: str) -> None:
        if view == "editor":
            self.edit_message(self._pane.last_message)
        elif view == "copy":
            self._copy_last_reply(argument)
        elif view == "figures":
            self._pane.toggle_figures()
        else:
            self._pane.screen.post_message(ViewRequested(view, argument))

    def use_model(self, name: str) -> None:
        """Load another model for the next replies; a running reply is stopped."""
        if self._pane.is_generating:
            self._worker.stop()
        self._worker.load_model(name)

    # Conversations

    def go_to(self, destination: Destination) -> None:
        """Open a conversation, a message in it, or a new conversation; a running reply in another one is stopped."""
        view = self._pane.view
        is_current = view is not None and view.conversation.id == destination.conversation_id
        if is_current and destination.message_id is None:
            return
        if not is_current:
            self._pane.composer.restore_queue()
            self._pane.composer.leave_conversation()
            if self._pane.is_generating:
                self._worker.stop()
        self._worker.go_to(destination)

    def toggle_pin(self, conversation: Conversation) -> None:
        """Pin or unpin a conversation of the list."""
        is_pinned = not conversation.pinned

        def job(session: Session) -> None:
            if session.conversation.id == conversation.id:
                session.pin(on=is_pinned)
            else:
                session.store.update_conversation(conversation.id, pinned=is_pinned)
            self._pane.post_message(ConversationsChanged())

        self._run_on(conversation, job)

    def delete_conversation(self, conversation: Conversation) -> None:
        """Delete a conversation permanently; if it is open, a new one is started first."""

        def job(session: Session) -> None:
            session.store.delete_conversation(conversation.id)
            self._pane.post_message(ConversationsChanged())

        if self._pane.shows(conversation.id):
            self.go_to(commands.Destination())
            self._worker.queue(job)
        else:
            self._run_on(conversation, job)

    def _run_on(self, conversation: Conversation, job: Callable[[Session], object]) -> None:
        run = self._worker.queue if self._pane.shows(conversation.id) else self._worker.run_beside
        run(job)

    # Messages

    def step_alternative(self, step: int) -> None:
        """Switch to another alternative of the message under the cursor, or of the last one that has any."""
        transcript = self._pane.transcript
        current = transcript.current_message
        has_cursor = transcript.cursor is not None and current is not None
        entries = [current] if has_cursor else self._pane.messages[::-1]
        entry = next((e for e in entries if e is not None and e.alternative[1] > 1), None)
        if entry is None:
            return
        number, count = entry.alternative
        message_id, index = entry.message.id, (number - 1 + step) % count
        keeps_cursor = transcript.has_focus

        def job(session: Session) -> None:
            other_id = session.tree.alternatives(message_id)[index]
            session.select_alternative(other_id)
            self._worker.post_conversation(session, other_id if keeps_cursor else None)

        self._refuse_while_generating()
        self._worker.queue(job)

    def previous_alternative(self, _entry: MessageEntry | None) -> None:
        self.step_alternative(-1)

    def next_alternative(self, _entry: MessageEntry | None) -> None:
        self.step_alternative(1)

    def retry_message(self, entry: MessageEntry | None) -> None:
        """Generate an alternative to a reply, or another reply to a message."""
        if entry is not None:
            message_id = entry.message.id
            self._start_reply()
            self._worker.generate(lambda session: session.regenerate(message_id))

    def continue_message(self, entry: MessageEntry | None) -> None:
        """Continue a stopped reply."""
        if entry is not None:
            message_id = entry.message.id
            self._start_reply()
            self._worker.generate(lambda session: session.continue_reply(message_id))

    def edit_message(self, entry: MessageEntry | None) -> None:
        """Load a message of the user into the input to edit it; for a reply, the message before it."""
        if entry is not None and entry.kind == "assistant":
            messages = self._pane.messages
            entry = next((e for e in reversed(messages[: messages.index(entry)]) if e.kind == "user"), None)
        if entry is not None:
            self._refuse_while_busy()
            self._pane.composer.start_edit(entry)
            self._pane.status_line.redraw()

    def delete_message(self, entry: MessageEntry | None) -> None:
        """Delete a message and all messages below it, once the user has pressed the key twice."""
        if entry is None:
            return
        message_id = entry.message.id
        if self._confirmation.confirm(message_id):
            self._change(lambda session: session.delete(message_id), commands.DELETED)
        else:
            self._pane.notify("Press the same key again to delete this message and all messages below it")

    def branch(self, entry: MessageEntry | None) -> None:
        """Make the next message follow this reply; the messages below it stay on their branch."""
        if entry is not None and entry.kind == "user":
            raise UsageError("A branch starts after a reply. Press `e` to edit this message instead.")
        if entry is not None:
            message_id = entry.message.id
            self._change(lambda session: session.branch_from(message_id), "The next message follows this reply")
            self._pane.prompt.focus()

    def copy_message(self, entry: MessageEntry | None) -> None:
        """Copy the text of a message."""
        if entry is not None:
            self._pane.screen.post_message(CopyRequested(entry.text, "Message"))

    def copy_code(self, entry: MessageEntry | None) -> None:
        """Copy the last code block of a message."""
        text = commands.copied_text(entry.text if entry is not None else "", code_blocks, "code")
        self._pane.screen.post_message(CopyRequested(text, "Code"))

    def _copy_last_reply(self, argument: str) -> None:
        entry = next((e for e in reversed(self._pane.messages) if e.kind == "assistant"), None)
        if entry is None:
            raise UsageError("This conversation has no messages yet")
        text = commands.copied_text(entry.text, code_blocks, argument)
        self._pane.screen.post_message(CopyRequested(text, "Code" if argument else "Reply"))

    # Conditions of actions

    def _change(self, change: Callable[[Session], object], text: str) -> None:
        def job(session: Session) -> None:
            change(session)
            self._worker.post_conversation(session)
            self._pane.post_message(CommandFinished(commands.Outcome(text)))

        self._refuse_while_generating()
        self._worker.queue(job)

    def _start_reply(self) -> None:
        self._refuse_while_busy()
        self._pane.begin_reply()

    def _refuse_while_busy(self) -> None:
        self._refuse_while_generating()
        if self._pane.is_busy:
            raise UsageError("The model is loading. Try again when it is ready.")

    def _refuse_while_generating(self) -> None:
        if self._pane.is_generating:
            raise UsageError("A reply is being generated. Press Esc to stop it first.")
