"""Keeps an answer in the store while it grows, without ever making it wait."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

import msgspec

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.store import Store
from edgechat.errors import NotFoundError, StoreError

# At most two seconds may be missing after a crash: one and a half, and time for the write itself.
CHECKPOINT_INTERVAL_S: Final = 1.5
CHECKPOINT_TOKENS: Final = 64


class ReplyRecorder:
    """One answer being written. A thread of its own writes; `add` only takes a note.

    A write that fails is tried again with the next one. If the answer turns out not to be ours any more (another
    process continued or deleted it), it goes on as an alternative beside it.
    """

    def __init__(self, store: Store, conversation: Conversation, answer: Message) -> None:
        """`answer` is in the store already, in `conversation`, and ours."""
        self._store = store
        self._conversation = conversation
        self._answer = answer
        self._unsaved_tokens = 0
        self._changed = threading.Condition()
        self._ended = False
        self.write_error = ""
        """Why the last write failed; "" if it did not."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def reply(self) -> Message:
        """The answer so far."""
        return self._answer

    def add(self, text: str, reasoning: str, n_tokens: int) -> None:
        """More of the answer."""
        with self._changed:
            answer = self._answer
            self._answer = msgspec.structs.replace(
                answer,
                text=answer.text + text,
                reasoning=answer.reasoning + reasoning,
                n_tokens=(answer.n_tokens or 0) + n_tokens,
            )
            before, self._unsaved_tokens = self._unsaved_tokens, self._unsaved_tokens + max(1, n_tokens)
            if not before or self._unsaved_tokens >= CHECKPOINT_TOKENS:
                self._changed.notify()

    def finish(self, **changes: object) -> Message:
        """Write the answer with its last `changes`; returns it as it is kept. Look at `problem` afterwards."""
        with self._changed:
            self._ended = True
            self._answer = msgspec.structs.replace(self._answer, **changes)
            self._changed.notify()
        self.write_error = "it was interrupted"  # what follows may be, too
        self._thread.join()
        self._write()
        return self._answer

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsaved_tokens or self._ended)
                self._changed.wait_for(
                    lambda: self._unsaved_tokens >= CHECKPOINT_TOKENS or self._ended, CHECKPOINT_INTERVAL_S
                )
                if self._ended:
                    return
                self._unsaved_tokens = 0
            self._write()

    def _write(self) -> None:
        answer = self._answer
        try:
            kept_id = write_reply(self._store, self._conversation, answer)
        except StoreError as error:
            self.write_error = str(error)
            return
        self.write_error = ""
        with self._changed:
            self._answer = msgspec.structs.replace(self._answer, id=kept_id)


def write_reply(store: Store, conversation: Conversation, answer: Message) -> str:
    """Write what an answer has become, beside the one of that id if that is not ours any more; returns its id.

    Raises StoreError.
    """
    if store.checkpoint(answer):
        return answer.id
    beside = msgspec.structs.replace(answer, id=new_id(), active_child_id=None)
    try:
        store.append(conversation, [beside])
    except NotFoundError:  # what it answers was deleted; perhaps the whole conversation, and that counts for this too
        with contextlib.suppress(NotFoundError):
            store.conversation(conversation.id)
            store.append(conversation, [msgspec.structs.replace(beside, parent_id=None)])
    return beside.id
