"""Implementation of slash commands, and of keys that act on conversations and messages.

Slow work runs in the session worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from edgechat.chat import command_arguments, commands
from edgechat.chat.store import parse_query
from edgechat.errors import EdgechatError, UsageError
from edgechat.tui import code_files
from edgechat.tui.confirm import KeyConfirmation
from edgechat.tui.conversation_actions import ConversationActions
from edgechat.tui.messages import CommandFinished, CopyRequested, ViewRequested
from edgechat.tui.passage_actions import PassageActions
from edgechat.tui.render.markdown_blocks import MarkdownBlock, find_code_blocks, list_code_blocks
from edgechat.tui.second_reply import SecondReplyActions
from edgechat.tui.workers import is_mistake

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgechat.chat.commands import Command, Destination, Outcome, View
    from edgechat.chat.session import Session
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.palette_entries import PaletteChoice
    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.session_worker import SessionWorker

T = TypeVar("T")


class Actions:
    """Implements slash commands, and keys that act on a message or on a conversation in the sidebar."""

    def __init__(self, pane: ConversationPane, worker: SessionWorker) -> None:
        self._pane = pane
        self._worker = worker
        self._confirmation = KeyConfirmation()
        self.conversations = ConversationActions(pane, worker)
        self.passages = PassageActions(pane)
        self.second = SecondReplyActions(pane, worker)

    def attempt(self, action: Callable[[T], object], argument: T, line: str = "") -> None:
        """Call `action(argument)`; if it raises an EdgechatError, show the error.

        `line` is the typed command, which is restored in the input after an error; "" if no command was typed.
        """
        try:
            action(argument)
        except EdgechatError as error:
            self._pane.show_failure(str(error), line, is_mistake=is_mistake(error, line))

    # Commands

    def run(self, name: str, argument: str = "", line: str = "") -> None:
        """Run a slash command, or open the list or screen that belongs to it.

        `line` is the command as the user typed it; "" if it was not typed. If the command fails and the input is empty,
        the command is restored in the input for correction.
        """
        line = line or (f"/{name} {argument}" if argument else "")
        command = commands.COMMANDS_BY_NAME[name]
        self.attempt(lambda text: self._run_command(command, text, line), argument, line)

    def _run_command(self, command: Command, argument: str, line: str) -> None:
        if command.view is not None and command.opens_view(argument):
            self._open_view(command.view, argument)
        elif command.run_mode == "caller" and command.run is not None and self._worker.session is not None:
            self.apply_outcome(command.run(self._worker.session, argument), line)
        elif command.run_mode == "beside":
            self.second.start(command, argument, line)
        elif command.run_mode == "side":
            # While a load or a reply is pending, the command runs at once; otherwise it is queued after all earlier
            # changes.
            self._worker.run_command(command, argument, line, during_reply=self._pane.is_busy)
        else:
            if command.run_mode == "reply":
                self._start_reply()
            elif not command.stops_reply:
                self._refuse_while_generating()
            elif self._pane.is_generating:
                self._pane.composer.hold_queue()
                self._worker.stop()
            self._worker.run_command(command, argument, line)

    def apply_outcome(self, outcome: Outcome, line: str = "") -> None:
        """Carry out the actions in the outcome of the command `line`, and show the outcome's text."""
        if outcome.attachment is not None:
            self._pane.composer.attachments.append(outcome.attachment)
            self._pane.show_attachments()
        if outcome.detach is not None:
            self._pane.detach(outcome.detach)
        if outcome.destination is not None:
            self.go_to(outcome.destination)
            self._pane.prompt.focus()
        if outcome.model:
            self.use_model(outcome.model, line)
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

    def use_model(self, name: str, line: str = "") -> None:
        """Load another model for the next replies, and stop the reply that is being generated.

        While a second model replies, the load is refused, because it would stop two replies. `line` is the typed
        command, which is restored in the input if the load fails.
        """
        if self._pane.second_status:
            text = "Another model is replying, too. Press Esc to stop it, or wait for its end."
            self._pane.show_failure(text, line, is_mistake=True)
            return
        if self._pane.is_generating:
            self._worker.stop()
        self._worker.load_model(name, line)

    def choose(self, choice: PaletteChoice) -> None:
        """Run or open an entry of the command palette; only type a command that needs an argument into the input."""
        entry = choice.entry
        if entry.kind == "conversation":
            self.go_to(commands.Destination(entry.id))
            self._pane.prompt.focus()
        elif entry.kind == "message":
            conversation_id, _, message_id = entry.id.partition("/")
            self.go_to(commands.Destination(conversation_id, message_id, tuple(parse_query(choice.query))))
        elif entry.kind == "model":
            self.use_model(entry.id)
        elif entry.kind == "setting":
            self._pane.screen.post_message(ViewRequested("settings", entry.id))
        elif entry.kind == "command":
            if commands.COMMANDS_BY_NAME[entry.id].needs_argument:
                self._pane.prompt.type_text(f"/{entry.id} ")
                self._pane.prompt.focus()
            else:
                self.run(entry.id)
        else:
            self.run(entry.kind, entry.id)

    # Conversations

    def go_to(self, destination: Destination) -> None:
        """Open a conversation, go to a message in it, or start a new conversation.

        Switching to a different conversation stops the reply that is being generated.
        """
        view = self._pane.view
        is_current = view is not None and view.conversation.id == destination.conversation_id
        self._pane.transcript.mark_words(destination.message_id or "", destination.words)
        if is_current and destination.message_id is None:
            return
        if not is_current:
            self._pane.composer.restore_queue()
            self._pane.composer.leave_conversation()
            if self._pane.is_generating:
                self._worker.stop()
        self._worker.go_to(destination)

    # Messages

    def step_alternative(self, step: int) -> None:
        """Switch to the next (`step` 1) or previous (`step` -1) alternative of a message.

        The message is the one under the cursor or, without a cursor, the last message that has alternatives.
        """
        transcript = self._pane.transcript
        current_entry = transcript.current_message
        has_cursor = transcript.cursor is not None and current_entry is not None
        candidates = [current_entry] if has_cursor else self._pane.messages[::-1]
        entry = next((e for e in candidates if e is not None and e.alternative[1] > 1), None)
        if entry is None:
            return
        number, count = entry.alternative
        message_id, index = entry.message.id, (number - 1 + step) % count
        keeps_cursor = transcript.has_focus

        def select_alternative(session: Session) -> None:
            alternative_id = session.tree.alternatives(message_id)[index]
            session.select_alternative(alternative_id)
            self._worker.post_conversation(session, alternative_id if keeps_cursor else None)

        self._refuse_while_generating()
        self._worker.queue(select_alternative)

    def previous_alternative(self, _entry: MessageEntry | None) -> None:
        self.step_alternative(-1)

    def next_alternative(self, _entry: MessageEntry | None) -> None:
        self.step_alternative(1)

    def retry_message(self, entry: MessageEntry | None) -> None:
        """Generate an alternative to a reply; for a user message, generate another reply to it."""
        if entry is not None and self._confirm_reply("retry", entry, "to generate another reply; this one is kept"):
            message_id = entry.message.id
            self._start_reply()
            self._worker.generate(lambda session: session.regenerate(message_id))

    def continue_message(self, entry: MessageEntry | None) -> None:
        """Continue a stopped reply."""
        if entry is not None and self._confirm_reply("continue", entry, "to continue this reply"):
            message_id = entry.message.id
            self._start_reply()
            self._worker.generate(lambda session: session.continue_reply(message_id))

    def _confirm_reply(self, action: str, entry: MessageEntry, effect: str) -> bool:
        """Return whether to generate a reply: the message has no reply yet, or the user pressed the key twice."""
        self._refuse_while_busy()
        messages = self._pane.messages
        has_reply = entry.kind == "assistant" or entry is not messages[-1]
        return not has_reply or self._confirm(action, entry, effect)

    def _confirm(self, action: str, entry: MessageEntry, effect: str, key_name: str = "") -> bool:
        """Return whether the user pressed the key of `action` twice; after the first time, ask for the second.

        `message.KEY_NAME` is the ID of the key's binding; an empty `key_name` stands for the name of the action.
        """
        footer = self._pane.footer
        if self._confirmation.confirm(f"{action} {entry.message.id}", footer.n_keys):
            footer.show_notice("")
            return True
        self._pane.ask(f"Press {footer.key_label(f'message.{key_name or action}')} again {effect}")
        return False

    def edit_message(self, entry: MessageEntry | None) -> None:
        """Load a user message into the input for editing; for a reply, load the user message before it."""
        if entry is not None and entry.kind == "assistant":
            messages = self._pane.messages
            entry = next((e for e in reversed(messages[: messages.index(entry)]) if e.kind == "user"), None)
        if entry is not None:
            self._refuse_while_busy()
            self._pane.composer.start_edit(entry)
            self._pane.status_line.redraw()

    def delete_message(self, entry: MessageEntry | None) -> None:
        """Delete a message and all messages below it; the first call only asks the user to press the key again."""
        if entry is None:
            return
        message_id = entry.message.id
        if entry is not self._pane.last_message:
            effect = "to delete this message and all messages below it"
        elif entry.kind == "assistant":
            pair_key = self._pane.footer.key_label("message.delete_pair")
            effect = f"to delete this reply, or {pair_key} to delete your message, too"
        else:
            effect = "to delete this message"
        if self._confirm("delete", entry, effect):
            self._delete(message_id)

    def delete_pair(self, entry: MessageEntry | None) -> None:
        """Delete the user message of `entry` and all messages below it, after the confirmation of `delete_message`."""
        messages = self._pane.messages
        above = messages[: messages.index(entry) + 1] if entry is not None else []
        user_entry = next((e for e in reversed(above) if e.kind == "user"), None)
        if entry is None or user_entry is None:
            return
        has_more = messages.index(user_entry) < len(messages) - 2
        effect = "to delete your message and all messages below it" if has_more else "to delete your message, too"
        if self._confirm("delete", entry, effect, key_name="delete_pair"):
            self._delete(user_entry.message.id)

    def _delete(self, message_id: str) -> None:
        text = f"Message deleted. {self._pane.footer.key_label('message.undo')} or /undo restores it"
        self._change_conversation(lambda session: session.delete(message_id), text)

    def branch(self, entry: MessageEntry | None) -> None:
        """Start a branch below a reply: the next message follows this reply; existing messages stay on their branch."""
        if entry is not None and entry.kind == "user":
            raise UsageError("A branch starts after a reply. Press `e` to edit this message instead.")
        if entry is not None:
            message_id = entry.message.id
            self._change_conversation(
                lambda session: session.branch_from(message_id), "The next message will follow this reply"
            )
            self._pane.prompt.focus()

    def copy_message(self, entry: MessageEntry | None) -> None:
        if entry is not None:
            self._pane.screen.post_message(CopyRequested(entry.text, "Message"))

    def copy_code(self, entry: MessageEntry | None) -> None:
        """Copy a code block of a message; if there are several, the user chooses one by number. Raises UsageError."""

        def copy(block: MarkdownBlock) -> None:
            self._pane.screen.post_message(CopyRequested(block.source, f"Code block {block.code_number}"))

        self._choose_code(entry, "copy", copy)

    def save_code(self, entry: MessageEntry | None) -> None:
        """Save a code block of a message in the working directory. Raises UsageError."""

        def save(block: MarkdownBlock) -> None:
            file = code_files.save_code(block.source, block.language, block.code_number)
            self._pane.notify(f"Code block {block.code_number} saved to {file}")

        self._choose_code(entry, "save", save)

    def _choose_code(
        self, entry: MessageEntry | None, verb: Literal["copy", "save"], use: Callable[[MarkdownBlock], None]
    ) -> None:
        """Call `use` with the only code block of a message, or with the one whose number the user types next."""
        blocks = list_code_blocks(entry.text if entry is not None else "")
        if not blocks:
            raise UsageError(f"This message has no code block to {verb}")
        if len(blocks) == 1:
            use(blocks[0])
            return

        def use_number(number: int | None) -> None:
            if number is None or 1 <= number <= len(blocks):
                self.attempt(use, blocks[-1 if number is None else number - 1])
            else:
                self._pane.notify(f"This message has {len(blocks)} code blocks")

        self._pane.transcript.await_number(use_number)
        self._pane.notify(
            f"Press 1 to {min(9, len(blocks))} to {verb} a code block, or the same key again for the last one"
        )

    def _copy_last_reply(self, argument: str) -> None:
        entry = next((e for e in reversed(self._pane.messages) if e.kind == "assistant"), None)
        if entry is None:
            raise UsageError("This conversation has no messages yet")
        text, label = command_arguments.select_text_to_copy(entry.text, find_code_blocks, argument)
        self._pane.screen.post_message(CopyRequested(text, label))

    def open_passages(self, entry: MessageEntry | None) -> None:
        """Open the passages of documents that a message cites or contains. Raises UsageError if there are none."""
        self.passages.open(entry)

    # Helpers

    def _change_conversation(self, change: Callable[[Session], object], text: str) -> None:
        """Queue a change to the open conversation; afterwards, show the conversation and the notification `text`."""

        def change_and_post(session: Session) -> None:
            change(session)
            self._worker.post_conversation(session)
            self._pane.post_message(CommandFinished(commands.Outcome(text)))

        self._refuse_while_generating()
        self._worker.queue(change_and_post)

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
