"""State of the next message: attachments, edit target, queue of messages to send, and the saved unsent text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.messages import OutgoingMessage

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.composer_bar import ComposerState
    from edgechat.tui.widgets.prompt import PromptInput, PromptState


class Composer:
    """Builds messages from the text in the input, and saves unsent text so that a crash does not lose it."""

    def __init__(self, prompt: PromptInput, worker: SessionWorker) -> None:
        self._prompt = prompt
        self._worker = worker
        self.conversation_id = ""
        """ID of the conversation for which unsent text is saved; "" if the conversation has no messages yet."""
        self.edited_id: str | None = None
        """ID of the message that the next Enter edits; None if Enter sends a new message."""
        self.attachments: list[Path] = []
        self.n_tokens_by_file: dict[Path, int] = {}
        """Lengths of attachments in tokens, as far as they were counted."""
        self._queue: list[OutgoingMessage] = []
        self._is_queue_held = False
        """True after the user stopped a reply: queued messages wait until the user sends the next message."""
        self._text_before_edit = ""

    # Sending

    def take_message(self, text: str, prompt_state: PromptState | None) -> OutgoingMessage:
        """Build a message from `text`, the attachments and the edit target; clear the attachments and the edit target.

        `prompt_state` is the content of the input, to restore if the message cannot be sent.
        """
        from edgechat.chat import mentions

        self._is_queue_held = False
        files = tuple(dict.fromkeys((*self.attachments, *mentions.find_attached_files(text))))
        outgoing_message = OutgoingMessage(text, files, self.edited_id, prompt_state)
        if self.edited_id is not None and self._text_before_edit:
            self._prompt.load(self._text_before_edit)
        self.edited_id, self.attachments, self._text_before_edit = None, [], ""
        return outgoing_message

    def enqueue(self, outgoing_message: OutgoingMessage) -> None:
        """Queue a message to be sent after the current reply."""
        self._queue.append(outgoing_message)

    def dequeue(self) -> OutgoingMessage | None:
        """Remove and return the oldest queued message; return None if the queue is empty or waits for the user."""
        return self._queue.pop(0) if self._queue and not self._is_queue_held else None

    def hold_queue(self) -> None:
        """Let the queued messages wait until the user sends the next message."""
        self._is_queue_held = bool(self._queue)

    def take_back(self, index: int = 0) -> bool:
        """Move a queued message (-1 for the last) to the input if the input is empty; return whether it was moved."""
        if not -1 <= index < len(self._queue) or not self._queue or self._prompt.text or self.edited_id is not None:
            return False
        self.restore(self._queue.pop(index))
        self._prompt.focus()
        return True

    def remove_queued(self, index: int) -> None:
        """Discard a queued message; do nothing if it has been sent in the meantime."""
        if index < len(self._queue):
            del self._queue[index]

    # Editing

    def start_edit(self, entry: MessageEntry) -> None:
        """Load the text of a message into the input, so that the next Enter edits this message."""
        draft = self._prompt.take_draft()
        if self.edited_id is None:
            self._text_before_edit = draft
        self.edited_id = entry.message.id
        self._prompt.load(entry.text)
        self._prompt.focus()

    def cancel_edit(self) -> None:
        """Cancel the edit, and restore the text that was in the input before it."""
        self.edited_id = None
        self._prompt.take_draft()
        self._prompt.load(self._text_before_edit)
        self._text_before_edit = ""

    def reset(self) -> None:
        """Discard the edit target and the attachments, because they belong to the previous conversation."""
        self.edited_id, self.attachments, self._text_before_edit = None, [], ""

    # Restoring

    def restore(self, outgoing_message: OutgoingMessage) -> None:
        """Restore an unsent message in the input, so that Enter sends it."""
        self.edited_id = outgoing_message.edited_id
        self.attachments = list(dict.fromkeys((*self.attachments, *outgoing_message.files)))
        if outgoing_message.prompt_state is not None and not self._prompt.text:
            self._prompt.restore(outgoing_message.prompt_state)
        else:
            self.append_text(outgoing_message.text)

    def append_text(self, text: str) -> None:
        """Append a paragraph to the input."""
        self._prompt.load("\n\n".join(t for t in (self._prompt.full_text, text) if t))

    def restore_queue(self) -> bool:
        """Move all queued messages back to the input; return whether there were any."""
        queue, self._queue, self._is_queue_held = self._queue, [], False
        for outgoing_message in queue:
            self.restore(outgoing_message)
        return bool(queue)

    def leave_conversation(self) -> None:
        """Save the input as unsent text of this conversation and clear it.

        If the conversation is ephemeral or has no messages, the text stays in the input instead.
        """
        if self._worker.writes_files and self.conversation_id and self._prompt.text:
            self._worker.save_unsent(self.conversation_id, self._input_text)
            self._prompt.take_draft()
            self._prompt.load("")

    def save(self) -> None:
        """Save the queued messages and the input as unsent text."""
        self._worker.save_unsent(self.conversation_id, self._unsent_text)

    def start_conversation(self, conversation_id: str) -> None:
        """Save unsent text under the ID of a conversation whose first message has just been sent."""
        self.conversation_id = conversation_id
        self._worker.save_unsent("", "")
        if self._unsent_text:
            self._worker.save_unsent(conversation_id, self._unsent_text)

    @property
    def _unsent_text(self) -> str:
        return "\n\n".join(t for t in (*(o.text for o in self._queue), self._input_text) if t)

    @property
    def _input_text(self) -> str:
        """The text in the input, after the text that was there before an edit."""
        return "\n\n".join(t for t in (self._text_before_edit, self._prompt.draft) if t)

    @property
    def status(self) -> list[str]:
        """Texts for the status line: a hint while a message is being edited, otherwise none."""
        return ["editing (Esc cancels)"] if self.edited_id is not None else []

    @property
    def is_empty(self) -> bool:
        """True if there are neither attachments nor queued messages."""
        return not self.attachments and not self._queue

    def read_state(self, n_ctx: int | None) -> ComposerState:
        """Return the attachments and the queue for the rows above the input; `n_ctx` is the context length."""
        from edgechat.tui.widgets.composer_bar import ComposerState

        texts = [outgoing_message.text for outgoing_message in self._queue]
        return ComposerState(self.attachments, self.n_tokens_by_file, texts, self._is_queue_held, n_ctx)
