"""Recorder of a growing reply: saves the reply in a background thread, so that generation never waits for the disk."""

from __future__ import annotations

import threading
from typing import Final

import msgspec

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.store import Store
from edgechat.errors import NotFoundError, StoreError

# Interval between writes. A crash loses at most two seconds of a reply: this interval plus the time of one write.
CHECKPOINT_INTERVAL_S: Final = 1.5
CHECKPOINT_TOKENS: Final = 64


class ReplyRecorder:
    """Saves one growing reply in a background thread; `add` only updates the reply in memory.

    A failed write is repeated at the next checkpoint. If another process has continued or deleted the reply, this
    process saves its own text as an alternative with a new ID.
    """

    def __init__(self, store: Store, conversation: Conversation, reply: Message) -> None:
        """Start the background thread. `reply` must be stored in `conversation` and claimed by this process."""
        self._store = store
        self._conversation = conversation
        self._reply = reply
        self._unsaved_tokens = 0
        self._condition = threading.Condition()
        self._is_finished = False
        self.write_error = ""
        """Error of the last write; "" if the last write succeeded."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def reply(self) -> Message:
        """Current state of the reply."""
        return self._reply

    def add(self, text: str, reasoning: str, n_tokens: int) -> None:
        """Append generated text and reasoning to the reply."""
        with self._condition:
            reply = self._reply
            self._reply = msgspec.structs.replace(
                reply,
                text=reply.text + text,
                reasoning=reply.reasoning + reasoning,
                n_tokens=(reply.n_tokens or 0) + n_tokens,
            )
            previous_tokens, self._unsaved_tokens = self._unsaved_tokens, self._unsaved_tokens + max(1, n_tokens)
            if not previous_tokens or self._unsaved_tokens >= CHECKPOINT_TOKENS:
                self._condition.notify()

    def finish(self, **changes: object) -> Message:
        """Apply `changes`, save the reply and return its final state. Sets `write_error` if saving fails."""
        with self._condition:
            self._is_finished = True
            self._reply = msgspec.structs.replace(self._reply, **changes)
            self._condition.notify()
        self.write_error = "saving was interrupted"  # this error remains if a KeyboardInterrupt ends the next two calls
        self._thread.join()
        self._write()
        return self._reply

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._unsaved_tokens or self._is_finished)
                self._condition.wait_for(
                    lambda: self._unsaved_tokens >= CHECKPOINT_TOKENS or self._is_finished, CHECKPOINT_INTERVAL_S
                )
                if self._is_finished:
                    return
                self._unsaved_tokens = 0
            self._write()

    def _write(self) -> None:
        reply = self._reply
        try:
            saved_id = write_reply(self._store, self._conversation, reply)
        except StoreError as error:
            self.write_error = str(error)
            return
        self.write_error = ""
        with self._condition:
            self._reply = msgspec.structs.replace(self._reply, id=saved_id)


def write_reply(store: Store, conversation: Conversation, reply: Message) -> str:
    """Write the current state of a reply and return its ID.

    If another process has continued or deleted the reply, this function saves the reply as an alternative with a new
    ID: below the same parent, or as a root if the parent was deleted. Raises StoreError, and NotFoundError if the
    conversation was deleted.
    """
    if store.checkpoint(reply):
        return reply.id
    alternative = msgspec.structs.replace(reply, id=new_id(), active_child_id=None)
    try:
        store.append(conversation, [alternative])
    except NotFoundError:
        try:
            store.conversation(conversation.id)
        except NotFoundError:
            raise NotFoundError("Another edgechat process has deleted this conversation. Start a new one.") from None
        store.append(conversation, [msgspec.structs.replace(alternative, parent_id=None)])
    return alternative.id
