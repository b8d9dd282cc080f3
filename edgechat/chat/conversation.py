"""Conversation in memory, synchronised with its copy in the store."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.chat.recorder import write_reply
from edgechat.chat.store import Store
from edgechat.chat.tree import MessageTree
from edgechat.errors import NotFoundError, StoreError, UsageError

P = ParamSpec("P")
T = TypeVar("T")


def _locked(
    method: Callable[Concatenate[StoredConversation, P], T],
) -> Callable[Concatenate[StoredConversation, P], T]:
    """Decorate a method to run while no other thread changes the conversation."""

    @functools.wraps(method)
    def call(self: StoredConversation, /, *arguments: P.args, **options: P.kwargs) -> T:
        with self.lock:
            return method(self, *arguments, **options)

    return call


class StoredConversation:
    """Metadata and message tree of a conversation, in memory and in the store.

    Every method writes to the store first, and changes the copy in memory only after a successful write. All methods
    may raise StoreError. They are thread-safe, because the reply of another model can grow beside a turn.
    """

    def __init__(self, store: Store, metadata: Conversation) -> None:
        """`metadata` may describe a new conversation. `reload` reads the messages of an existing conversation."""
        self.store = store
        self.lock = threading.RLock()
        """Lock of all changes; hold it to read several messages of the tree that must belong together."""
        self.metadata = metadata
        self.tree = MessageTree()
        self._unsaved_replies: dict[str, Message] = {}
        self.save_error = ""
        """Reason why the last reply is not saved; "" if it is saved."""
        self._previous_title = ""
        self._deletions: list[tuple[str, str | None]] = []
        self._growing_ids: set[str] = set()
        """IDs of replies that grow beside the active path. They cannot be changed until they end."""

    @_locked
    def reload(self) -> None:
        """Read metadata and messages from the store, including changes by other processes."""
        self.metadata = self.store.conversation(self.metadata.id)
        self.tree = MessageTree(self.store.messages(self.metadata.id), self.metadata.head_id)

    def update_metadata(self, **changes: object) -> None:
        """Change fields of the metadata in memory, and in the store unless the conversation has no messages yet."""
        with self.lock:
            if len(self.tree):
                self.store.update_conversation(self.metadata.id, **changes)
            self.metadata = msgspec.structs.replace(self.metadata, **changes)

    # Messages

    @_locked
    def append(self, messages: list[Message], files: Mapping[str, bytes], title: str = "") -> None:
        """Add messages below their parents; the last message becomes the head.

        `files` has the bytes of attachments by SHA-256 hash. A conversation without a title gets `title`. Raises
        UsageError below a reply that grows beside the active path.
        """
        if messages:
            self._check_not_growing(messages[0].parent_id)
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

    @_locked
    def discard(self, messages: list[Message]) -> None:
        """Undo the last `append`, which added `messages`, and restore the previous title.

        A message below which another reply was added meanwhile remains.
        """
        ids = {m.id for m in messages}
        messages = [m for m in messages if all(below.id in ids for below in self.tree.subtree(m.id))]
        self.store.discard_messages([m.id for m in reversed(messages)])
        for message in reversed(messages):
            self.tree.remove(message.id)
        if len(messages) == len(ids) and self._previous_title != self.metadata.title:
            self.update_metadata(title=self._previous_title)

    @_locked
    def insert_reply(self, reply: Message) -> None:
        """Add a complete reply, which becomes the head. An alternative that was stopped before its text is removed."""
        self.append([reply], {})
        for message_id in self.tree.alternatives(reply.id):
            message = self.tree[message_id]
            if message.role == "assistant" and message.is_interrupted and message_id not in self._growing_ids:
                self._remove_empty(message)

    @_locked
    def claim_reply(self, reply: Message) -> None:
        """Claim an existing reply, so that only this process can continue it, and make it the head.

        Raises UsageError if the reply grows beside the active path.
        """
        self._check_not_growing(reply.id)
        self.store.claim(reply.id)
        self.tree.select_branch(reply.id)
        self.tree.replace(reply)

    @_locked
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
        if write_error or not self._unsaved_replies:
            self.save_error = write_error

    @_locked
    def save_reply(self, reply: Message) -> None:
        """Replace a reply in memory and in the store. After a failed write, the next `save_pending` tries again."""
        self.tree.replace(reply)
        self._unsaved_replies[reply.id] = reply
        with contextlib.suppress(StoreError):
            self.save_pending()

    @_locked
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

    # Replies beside the active path

    @_locked
    def append_beside(self, reply: Message) -> None:
        """Add an empty reply that will grow while the head remains; without another reply, it becomes the head."""
        head_id = self.tree.head_id
        self.append([reply], {})
        if head_id is not None and head_id != reply.parent_id:
            self.set_head(head_id)
        self._growing_ids.add(reply.id)

    @_locked
    def update_beside(self, reply: Message) -> None:
        """Apply the current state of a growing reply in memory; its recorder writes it to the store."""
        if reply.id in self.tree:  # another process may have deleted it
            self.tree.replace(reply)

    @_locked
    def finish_beside(self, reply_id: str, final_reply: Message, write_error: str) -> bool:
        """Apply the final state of a reply beside the active path, as `finish_reply`.

        Returns False if the reply was removed, because it ended before its first word.
        """
        self._growing_ids.discard(reply_id)
        if reply_id in self.tree:
            self.finish_reply(reply_id, final_reply, write_error)
        is_removed = False
        if final_reply.id in self.tree and final_reply.is_interrupted:
            with contextlib.suppress(StoreError):
                is_removed = self._remove_empty(final_reply)
        return not is_removed

    def _remove_empty(self, reply: Message) -> bool:
        """Remove a reply without text and reasoning permanently; return False for other replies."""
        if reply.text or reply.reasoning:
            return False
        self.store.discard_messages([reply.id])
        self.tree.remove(reply.id)
        return True

    def _check_not_growing(self, message_id: str | None) -> None:
        if message_id in self._growing_ids:
            raise UsageError(
                "This reply is still being generated. Wait until it is complete, or stop it with Esc or Ctrl-C."
            )

    # The active path

    @_locked
    def set_head(self, message_id: str) -> None:
        """End the active path at a message, so that the next message becomes an alternative to its children."""
        self.store.set_head(self._list_path_ids(message_id))
        self.tree.set_head(message_id)

    @_locked
    def select_branch(self, message_id: str) -> None:
        """Switch the active path to a message's branch, and extend it to the most recently active leaf below it."""
        self.store.select_branch(self._list_path_ids(message_id))
        self.tree.select_branch(message_id)

    def _list_path_ids(self, message_id: str) -> list[str]:
        return [m.id for m in self.tree.path_to(message_id)]

    @_locked
    def delete(self, message_id: str) -> int:
        """Delete a message and its descendants; return the number of deleted messages. `undo_delete` restores them.

        Raises UsageError if one of them grows beside the active path.
        """
        for message in self.tree.subtree(message_id):
            self._check_not_growing(message.id)
        self.store.delete_message(message_id)
        head_id = self.tree.head_id
        deleted_messages = self.tree.remove(message_id)
        self._deletions.append((message_id, head_id if head_id not in self.tree else None))
        return len(deleted_messages)

    @_locked
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
