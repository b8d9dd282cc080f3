"""Conversation in memory, synchronised with its copy in the store."""

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
    """Metadata and message tree of a conversation, in memory and in the store.

    Every method writes to the store first, and changes the copy in memory only after a successful write. All methods
    may raise StoreError.
    """

    def __init__(self, store: Store, metadata: Conversation) -> None:
        """`metadata` may describe a new conversation. `reload` reads the messages of an existing conversation."""
        self.store = store
        self.metadata = metadata
        self.tree = MessageTree()
        self._unsaved_replies: dict[str, Message] = {}
        self.save_error = ""
        """Reason why the last reply is not saved; "" if it is saved."""
        self._previous_title = ""
        self._deletions: list[tuple[str, str | None]] = []

    def reload(self) -> None:
        """Read metadata and messages from the store, including changes by other processes."""
        self.metadata = self.store.conversation(self.metadata.id)
        self.tree = MessageTree(self.store.messages(self.metadata.id), self.metadata.head_id)

    def update_metadata(self, **changes: object) -> None:
        """Change fields of the metadata in memory, and in the store unless the conversation has no messages yet."""
        if len(self.tree):
            self.store.update_conversation(self.metadata.id, **changes)
        self.metadata = msgspec.structs.replace(self.metadata, **changes)

    # Messages

    def append(self, messages: list[Message], files: Mapping[str, bytes], title: str = "") -> None:
        """Add messages below their parents; the last message becomes the head.

        `files` has the bytes of attachments by SHA-256 hash. A conversation without a title gets `title`.
        """
        self._previous_title, previous_metadata = self.metadata.title, self.metadata
        if title and not previous_metadata.title:
            self.update_metadata(title=title)
        try:
            self.store.append(self.metadata, messages, files)
        except StoreError as error:
            self.metadata = previous_metadata
            if isinstance(error, NotFoundError):  # another process deleted the parent
                with contextlib.suppress(StoreError):
                    self.reload()
            raise
        for message in messages:
            self.tree.add(message)

    def discard(self, messages: list[Message]) -> None:
        """Undo the last `append`, which added `messages`, and restore the previous title."""
        self.store.discard_messages([m.id for m in reversed(messages)])
        for message in reversed(messages):
            self.tree.remove(message.id)
        if self._previous_title != self.metadata.title:
            self.update_metadata(title=self._previous_title)

    def insert_reply(self, reply: Message) -> None:
        """Add a complete reply, which becomes the head. An alternative that was stopped before its text is removed."""
        self.append([reply], {})
        for message_id in self.tree.alternatives(reply.id):
            message = self.tree[message_id]
            if message.role == "assistant" and message.is_interrupted and not message.text and not message.reasoning:
                self.store.discard_messages([message_id])
                self.tree.remove(message_id)

    def claim_reply(self, reply: Message) -> None:
        """Claim an existing reply, so that only this process can continue it, and make it the head."""
        self.store.claim(reply.id)
        self.tree.select_branch(reply.id)
        self.tree.replace(reply)

    def finish_reply(self, reply_id: str, final_reply: Message, write_error: str) -> None:
        """Apply the final state of a generated reply. After a write error, the next `save_pending` writes the reply.

        The ID of `final_reply` differs from `reply_id` if another process has claimed the reply.
        """
        if final_reply.id == reply_id:
            self.tree.replace(final_reply)
        else:
            with contextlib.suppress(NotFoundError):  # another process has just deleted the conversation
                self.reload()
        if write_error:
            self._unsaved_replies[final_reply.id] = final_reply
        self.save_error = write_error

    def save_reply(self, reply: Message) -> None:
        """Replace a reply in memory and in the store. After a failed write, the next `save_pending` tries again."""
        self.tree.replace(reply)
        self._unsaved_replies[reply.id] = reply
        with contextlib.suppress(StoreError):
            self.save_pending()

    def save_pending(self) -> None:
        """Write the replies whose last write failed, unless the conversation was deleted.

        Raises StoreError if writing fails again.
        """
        for reply in list(self._unsaved_replies.values()):
            try:
                saved_id = write_reply(self.store, self.metadata, reply)
                self.save_error = ""
            except NotFoundError:
                saved_id = reply.id
            del self._unsaved_replies[reply.id]
            if saved_id != reply.id:
                self.reload()

    # The active path

    def set_head(self, message_id: str) -> None:
        """End the active path at a message, so that the next message becomes an alternative to its children."""
        self.store.set_head(self._list_path_ids(message_id))
        self.tree.set_head(message_id)

    def select_branch(self, message_id: str) -> None:
        """Switch the active path to a message's branch, and extend it to the most recently active leaf below it."""
        self.store.select_branch(self._list_path_ids(message_id))
        self.tree.select_branch(message_id)

    def _list_path_ids(self, message_id: str) -> list[str]:
        return [m.id for m in self.tree.path_to(message_id)]

    def delete(self, message_id: str) -> int:
        """Delete a message and its descendants; return the number of deleted messages. `undo_delete` restores them."""
        self.store.delete_message(message_id)
        head_id = self.tree.head_id
        deleted_messages = self.tree.remove(message_id)
        self._deletions.append((message_id, head_id if head_id not in self.tree else None))
        return len(deleted_messages)

    def undo_delete(self) -> bool:
        """Restore the messages of the last `delete`. Return whether there was a deletion to undo.

        Raises StoreError if the messages have been purged from the store.
        """
        if not self._deletions:
            return False
        message_id, head_id = self._deletions[-1]
        self.store.restore_message(message_id)
        self._deletions.pop()
        self.reload()
        if head_id is not None:
            self.set_head(head_id)
        return True
