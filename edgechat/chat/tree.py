"""Message tree of one conversation in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from edgechat.chat.messages import Message
from edgechat.errors import UsageError


class MessageTree:
    """Tree of messages, with children in insertion order. The active path leads from a root to the head."""

    def __init__(self, messages: Iterable[Message] = (), head_id: str | None = None) -> None:
        """`messages` lists parents before children. `head_id` is the ID of the last message of the active path."""
        self._messages: dict[str, Message] = {}
        self._children: dict[str | None, list[str]] = {None: []}
        for message in messages:
            self._insert(message)
        # The store reads the messages and the head separately. If another process changes the conversation in between,
        # the head may not be one of the messages.
        is_head_valid = head_id is None or head_id in self
        self.head_id = head_id if is_head_valid else next(reversed(self._messages), None)

    def __len__(self) -> int:
        """Return the number of messages on all branches."""
        return len(self._messages)

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._messages

    def __getitem__(self, message_id: str) -> Message:
        """Return a message by ID. Raises UsageError if the conversation has no such message."""
        try:
            return self._messages[message_id]
        except KeyError:
            raise UsageError(f"This conversation has no message {message_id}") from None

    def message_or_head(self, message_id: str | None) -> Message:
        """Return the message `message_id`, or the head for None. Raises UsageError if the message does not exist."""
        if message_id is not None:
            return self[message_id]
        if self.head_id is None:
            raise UsageError("This conversation has no messages yet")
        return self[self.head_id]

    def _insert(self, message: Message) -> None:
        self._messages[message.id] = message
        self._children[message.id] = []
        self._children[message.parent_id].append(message.id)

    def add(self, message: Message) -> None:
        """Add a message below its parent, and make the new message the head."""
        if message.parent_id is not None:
            self[message.parent_id]
        self._insert(message)
        self._set_active_child(message.parent_id, message.id)
        self.head_id = message.id

    def replace(self, message: Message) -> None:
        """Replace the message with the same ID; its children and its active child do not change."""
        active_child_id = self[message.id].active_child_id
        self._messages[message.id] = msgspec.structs.replace(message, active_child_id=active_child_id)

    def path_to(self, message_id: str) -> list[Message]:
        """Return the messages from a root to the message `message_id`."""
        path = [self[message_id]]
        while (parent_id := path[-1].parent_id) is not None:
            path.append(self[parent_id])
        return path[::-1]

    @property
    def path(self) -> list[Message]:
        """Messages of the active path, from a root to the head."""
        return self.path_to(self.head_id) if self.head_id is not None else []

    @property
    def head(self) -> Message | None:
        """Last message of the active path; None for an empty conversation."""
        return self[self.head_id] if self.head_id is not None else None

    def select_branch(self, message_id: str) -> None:
        """Switch the active path to a message's branch, and extend it to the most recently active leaf below it."""
        for message in self.path_to(message_id):
            self._set_active_child(message.parent_id, message.id)
        self.head_id = self._find_active_leaf(message_id)

    def set_head(self, message_id: str) -> None:
        """End the active path at a message, even if the message has children."""
        self.select_branch(message_id)
        self.head_id = message_id

    def _find_active_leaf(self, message_id: str) -> str:
        while (child_id := self[message_id].active_child_id) is not None:
            message_id = child_id
        return message_id

    def _set_active_child(self, parent_id: str | None, child_id: str | None) -> None:
        if parent_id is not None:
            self._messages[parent_id] = msgspec.structs.replace(self[parent_id], active_child_id=child_id)

    def alternatives(self, message_id: str) -> list[str]:
        """Return the IDs of all messages with the same parent as `message_id`, oldest first."""
        return list(self._children[self[message_id].parent_id])

    def subtree(self, message_id: str) -> Iterator[Message]:
        """Yield a message and its descendants, parents before children."""
        stack = [message_id]
        while stack:
            message = self[stack.pop()]
            yield message
            stack += reversed(self._children[message.id])

    def remove(self, message_id: str) -> list[Message]:
        """Remove a message and its descendants; return the removed messages, parents before children.

        If the head is removed, the active path switches to the newest remaining alternative of the message, or ends at
        its parent.
        """
        removed_messages = list(self.subtree(message_id))
        parent_id = removed_messages[0].parent_id
        self._children[parent_id].remove(message_id)
        for message in removed_messages:
            del self._messages[message.id], self._children[message.id]
        remaining_ids = self._children[parent_id]
        newest_id = remaining_ids[-1] if remaining_ids else None
        if parent_id is not None and self[parent_id].active_child_id == message_id:
            self._set_active_child(parent_id, newest_id)
        if self.head_id is not None and self.head_id not in self:
            self.head_id = self._find_active_leaf(newest_id) if newest_id is not None else parent_id
        return removed_messages
