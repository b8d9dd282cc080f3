"""The messages of one conversation as a tree in memory: pure, and the same as the store has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from edgechat.chat.messages import Message
from edgechat.errors import UsageError


class MessageTree:
    """Messages by id; children in the order they were added; one of them is the head."""

    def __init__(self, messages: Iterable[Message] = (), head_id: str | None = None) -> None:
        """`messages` come parents first."""
        self._messages: dict[str, Message] = {}
        self._children: dict[str | None, list[str]] = {None: []}
        for message in messages:
            self._insert(message)
        # What was read in two steps may not fit together, if another process deleted something in between.
        known = head_id is None or head_id in self
        self.head_id = head_id if known else next(reversed(self._messages), None)

    def __len__(self) -> int:
        """Number of messages, on all branches."""
        return len(self._messages)

    def __contains__(self, message_id: object) -> bool:
        """True if the message is here."""
        return message_id in self._messages

    def __getitem__(self, message_id: str) -> Message:
        """Raises UsageError if there is no such message."""
        try:
            return self._messages[message_id]
        except KeyError:
            raise UsageError(f"this conversation has no message {message_id}") from None

    def _insert(self, message: Message) -> None:
        self._messages[message.id] = message
        self._children[message.id] = []
        self._children[message.parent_id].append(message.id)

    def add(self, message: Message) -> None:
        """Add a message below its parent, and make it the head."""
        if message.parent_id is not None:
            self[message.parent_id]
        self._insert(message)
        self._remember(message.parent_id, message.id)
        self.head_id = message.id

    def replace(self, message: Message) -> None:
        """Put a message in the place of the one with the same id and parent."""
        active = self[message.id].active_child_id
        self._messages[message.id] = msgspec.structs.replace(message, active_child_id=active)

    def path_to(self, message_id: str) -> list[Message]:
        """From a root to this message."""
        path = [self[message_id]]
        while (parent_id := path[-1].parent_id) is not None:
            path.append(self[parent_id])
        return path[::-1]

    @property
    def path(self) -> list[Message]:
        """What is said, as it stands: from a root to the head."""
        return self.path_to(self.head_id) if self.head_id is not None else []

    @property
    def head(self) -> Message | None:
        """The last message; None while nothing was said."""
        return self[self.head_id] if self.head_id is not None else None

    def select_branch(self, message_id: str) -> None:
        """Go on from this alternative: the head is where it was last below this message."""
        for message in self.path_to(message_id):
            self._remember(message.parent_id, message.id)
        self.head_id = self._leaf(message_id)

    def set_head(self, message_id: str) -> None:
        """Make this message the head, whatever is below it."""
        self.select_branch(message_id)
        self.head_id = message_id

    def _leaf(self, message_id: str) -> str:
        while (below := self[message_id].active_child_id) is not None:
            message_id = below
        return message_id

    def _remember(self, parent_id: str | None, child_id: str | None) -> None:
        if parent_id is not None:
            self._messages[parent_id] = msgspec.structs.replace(self[parent_id], active_child_id=child_id)

    def alternatives(self, message_id: str) -> list[str]:
        """The alternatives to this message, itself included, oldest first."""
        return list(self._children[self[message_id].parent_id])

    def subtree(self, message_id: str) -> Iterator[Message]:
        """This message and all below it, parents first."""
        waiting = [message_id]
        while waiting:
            message = self[waiting.pop()]
            yield message
            waiting += reversed(self._children[message.id])

    def remove(self, message_id: str) -> list[Message]:
        """Take this message and all below it out; returns them, parents first.

        If the head was among them, it is where it was last below the newest sibling left, or else the parent.
        """
        gone = list(self.subtree(message_id))
        parent_id = gone[0].parent_id
        self._children[parent_id].remove(message_id)
        for message in gone:
            del self._messages[message.id], self._children[message.id]
        left = self._children[parent_id]
        newest = left[-1] if left else None
        if parent_id is not None and self[parent_id].active_child_id == message_id:
            self._remember(parent_id, newest)
        if self.head_id is not None and self.head_id not in self:
            self.head_id = self._leaf(newest) if newest is not None else parent_id
        return gone
