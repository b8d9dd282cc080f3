"""A conversation and the store it is kept in: whatever is done to the one is done to the other."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.chat.recorder import write_reply
from edgechat.chat.store import Store
from edgechat.chat.tree import MessageTree
from edgechat.errors import NotFoundError, StoreError


class StoredConversation:
    """A conversation with its tree. Methods write first, so that what they show is on disk; they raise StoreError."""

    def __init__(self, store: Store, metadata: Conversation) -> None:
        """`about` may be new; `read` must be called if it is not."""
        self.store = store
        self.about = metadata
        self.tree = MessageTree()
        self._unsaved: dict[str, Message] = {}
        self._title_before = ""
        self._deleted: list[tuple[str, str | None]] = []

    def reload(self) -> None:
        """Take all from the store, also what other processes wrote."""
        self.about = self.store.conversation(self.about.id)
        self.tree = MessageTree(self.store.messages(self.about.id), self.about.head_id)

    def update_metadata(self, **changes: object) -> None:
        """Change what the conversation has beside its messages; kept once it has any."""
        if len(self.tree):
            self.store.update_conversation(self.about.id, **changes)
        self.about = msgspec.structs.replace(self.about, **changes)

    # Messages

    def append(self, messages: list[Message], files: Mapping[str, bytes], title: str = "") -> None:
        """Add messages below their parents, with the bytes of their attachments; the last one becomes the head.

        `title` is what a conversation without one is called from now on.
        """
        self._title_before, before = self.about.title, self.about
        if title and not before.title:
            self.update_metadata(title=title)
        try:
            self.store.append(self.about, messages, files)
        except StoreError as error:
            self.about = before
            if isinstance(error, NotFoundError):  # another process deleted what this would come after
                with contextlib.suppress(StoreError):
                    self.reload()
            raise
        for message in messages:
            self.tree.add(message)

    def discard(self, messages: list[Message]) -> None:
        """Take the last appended messages back, as if they had not been said."""
        self.store.discard_messages([m.id for m in reversed(messages)])
        for message in reversed(messages):
            self.tree.remove(message.id)
        if self._title_before != self.about.title:
            self.update_metadata(title=self._title_before)

    def claim_reply(self, answer: Message) -> None:
        """Make an answer ours, to be gone on with; it becomes the head."""
        self.store.claim(answer.id)
        self.tree.select_branch(answer.id)
        self.tree.replace(answer)

    def finish_reply(self, answer_id: str, written: Message, *, saved: bool) -> None:
        """Take an answer as it was written; if another process took it over, ours became an alternative to it."""
        if written.id == answer_id:
            self.tree.replace(written)
        else:
            self.reload()
        if not saved:
            self._unsaved[written.id] = written

    def save_reply(self, message: Message) -> None:
        """Write an answer of ours as it is now; later, if that cannot be done now."""
        self.tree.replace(message)
        self._unsaved[message.id] = message
        with contextlib.suppress(StoreError):
            self.save_pending()

    def save_pending(self) -> None:
        """Write what could not be written when it was said. Raises StoreError if it still cannot."""
        for message in list(self._unsaved.values()):
            kept_id = write_reply(self.store, self.about, message)
            del self._unsaved[message.id]
            if kept_id != message.id:
                self.reload()

    # The path that is active

    def set_head(self, message_id: str) -> None:
        """Go on from this message: the next one becomes an alternative to what followed it."""
        self.store.set_head(self._path_ids(message_id))
        self.tree.set_head(message_id)

    def select_branch(self, message_id: str) -> None:
        """Go on with this alternative, and below it with what was active there last."""
        self.store.select_branch(self._path_ids(message_id))
        self.tree.select_branch(message_id)

    def _path_ids(self, message_id: str) -> list[str]:
        return [m.id for m in self.tree.path_to(message_id)]

    def delete(self, message_id: str) -> int:
        """Delete a message and all below it; returns how many. `undo_delete` brings them back."""
        self.store.delete_message(message_id)
        head_id = self.tree.head_id
        gone = self.tree.remove(message_id)
        self._deleted.append((message_id, head_id if head_id not in self.tree else None))
        return len(gone)

    def undo_delete(self) -> bool:
        """Bring back what was deleted last; False if there is nothing. Raises StoreError if it is gone for good."""
        if not self._deleted:
            return False
        message_id, head_id = self._deleted[-1]
        self.store.restore_message(message_id)
        self._deleted.pop()
        self.reload()
        if head_id is not None:
            self.set_head(head_id)
        return True
