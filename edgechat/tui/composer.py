"""The next message: its text in the input, its attachments, the message it edits, and the queue of messages to send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.messages import OutgoingMessage

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.session_worker import SessionWorker
    from edgechat.tui.widgets.prompt import PromptInput, PromptState


class Composer:
    """State of the message that the user writes, around one input; saves unsent text so that no crash loses it."""

    def __init__(self, prompt: PromptInput, worker: SessionWorker) -> None:
        self._prompt = prompt
        self._worker = worker
        self.conversation_id = ""
        """Conversation that unsent text is saved for; "" for one without messages."""
        self.edited_id: str | None = None
        """The message that the next Enter edits."""
        self.attached: list[Path] = []
        self._queue: list[OutgoingMessage] = []
        self._text_before_edit = ""

    # Sending

    def take(self, text: str, prompt_state: PromptState | None) -> OutgoingMessage:
        """Make a message of `text`, attachments and edit target, and reset them; `prompt_state` is the input."""
        from edgechat.chat import mentions

        missing = mentions.missing_files(text)
        if missing:
            self._prompt.notify(f"No file @{missing[0]}: sent as text")
        files = tuple(dict.fromkeys((*self.attached, *mentions.attached_files(text))))
        outgoing = OutgoingMessage(text, files, self.edited_id, prompt_state)
        if self.edited_id is not None and self._text_before_edit:
            self._prompt.load(self._text_before_edit)
        self.edited_id, self.attached, self._text_before_edit = None, [], ""
        return outgoing

    def enqueue(self, outgoing: OutgoingMessage) -> None:
        """Send a message after the current reply."""
        self._queue.append(outgoing)

    def dequeue(self) -> OutgoingMessage | None:
        """Remove and return the oldest queued message."""
        return self._queue.pop(0) if self._queue else None

    # Editing

    def start_edit(self, entry: MessageEntry) -> None:
        """Load a message into the input, so that the next Enter edits it."""
        if self.edited_id is None:
            self._text_before_edit = self._prompt.full_text
        self.edited_id = entry.message.id
        self._prompt.load(entry.text)
        self._prompt.focus()

    def cancel_edit(self) -> None:
        """Restore the text that was in the input before the edit."""
        self.edited_id = None
        self._prompt.load(self._text_before_edit)
        self._text_before_edit = ""

    def reset(self) -> None:
        """Drop edit target and attachments, which belong to the previous conversation."""
        self.edited_id, self.attached = None, []

    # Restoring

    def restore(self, outgoing: OutgoingMessage) -> None:
        """Put a message that could not be sent back, so that Enter sends it again."""
        self.edited_id = outgoing.edited_id
        self.attached = list(dict.fromkeys((*self.attached, *outgoing.files)))
        if outgoing.prompt_state is not None and not self._prompt.text:
            self._prompt.restore(outgoing.prompt_state)
        else:
            self.append_text(outgoing.text)

    def append_text(self, text: str) -> None:
        """Append a paragraph to the input."""
        self._prompt.load("\n\n".join(t for t in (self._prompt.full_text, text) if t))

    def restore_queue(self) -> bool:
        """Move queued messages back to the input; returns False if there are none."""
        queue, self._queue = self._queue, []
        for outgoing in queue:
            self.restore(outgoing)
        return bool(queue)

    def leave_conversation(self) -> None:
        """Save the input for this conversation and empty it; an ephemeral conversation leaves the text in the input."""
        if self._worker.writes_files and self.conversation_id and self._prompt.text:
            self._worker.save_unsent(self.conversation_id, self._prompt.full_text)
            self._prompt.load("")

    def save(self) -> None:
        """Save queued messages and the input."""
        self._worker.save_unsent(self.conversation_id, self._unsent_text)

    def start_conversation(self, conversation_id: str) -> None:
        """Save unsent text under the id of a conversation that just got its first message."""
        self.conversation_id = conversation_id
        self._worker.save_unsent("", "")
        if self._unsent_text:
            self._worker.save_unsent(conversation_id, self._unsent_text)

    @property
    def _unsent_text(self) -> str:
        return "\n\n".join(t for t in (*(o.text for o in self._queue), self._prompt.full_text) if t)

    @property
    def status(self) -> list[str]:
        """Edit target, queue and attachments, for the status line."""
        from edgechat.chat.messages import first_line

        parts = ["editing (Esc cancels)"] if self.edited_id is not None else []
        if self._queue:
            parts.append(f"next: {first_line(self._queue[0].text, 20)}")
        if self.attached:
            parts.append(f"{len(self.attached)} attached")
        return parts
