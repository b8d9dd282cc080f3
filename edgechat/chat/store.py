"""Interface of a conversation store. `edgechat.store` implements it with SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from edgechat.chat.messages import Conversation, Message

Order = Literal["newest", "rank"]


class ConversationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An entry in the list of conversations."""

    conversation: Conversation
    n_messages: int


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """A message or title that matches a search query."""

    conversation_id: str
    title: str
    message_id: str | None
    """None if the title matched."""
    role: str
    created_at_ms: int
    snippet: str
    marks: list[tuple[int, int]]
    """Ranges of `snippet` that match words of the query, as [start, end)."""
    score: float
    """Higher is better; comparable within one search."""


class Store(Protocol):
    """Stores conversations. Thread-safe; reads see the last writes of other processes.

    Every method takes effect as a whole or raises StoreError: NotFoundError for a missing conversation or message.
    """

    @property
    def read_only_reason(self) -> str:
        """Why the store cannot write, such as a read-only disk or a database of a newer version; "" if it can."""

    @property
    def is_persistent(self) -> bool:
        """False for a store in memory, whose data must not be written to any disk."""

    @property
    def notices(self) -> list[str]:
        """Events while opening that the user must know, such as the recovery of a damaged database."""

    def append(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Add messages below their parents, and the conversation if it is new; the last message becomes the head.

        `files` has the bytes of their attachments by hash. Returns after the data is synced to disk.
        """

    def checkpoint(self, message: Message) -> bool:
        """Write the current state of a claimed reply; sync it to disk only when it is finished.

        Return False, without writing, if the reply has been deleted or claimed by another process.
        """

    def claim(self, message_id: str) -> None:
        """Claim a reply for this process, which continues it with `checkpoint`. Raises NotFoundError."""

    def discard_messages(self, message_ids: Sequence[str]) -> None:
        """Remove messages permanently; `message_ids` has children before their parents."""

    def select_branch(self, path: Sequence[str]) -> None:
        """Activate the path of ids from a root to `path[-1]`, and below it the branch that was active last."""

    def set_head(self, path: Sequence[str]) -> None:
        """Make `path[-1]` the head even if it has children; `path` has the ids from a root."""

    def delete_message(self, message_id: str) -> None:
        """Delete a message and its descendants; `restore_message` can undo this for some time."""

    def restore_message(self, message_id: str) -> None:
        """Undo `delete_message` of the same message. Raises StoreError if it has been purged."""

    def update_conversation(self, conversation_id: str, **changes: object) -> None:
        """Change title, model, settings, pinned, archived, tags or folder. Raises NotFoundError."""

    def delete_conversation(self, conversation_id: str) -> None:
        """Delete a conversation permanently."""

    def conversation(self, conversation_id: str) -> Conversation:
        """Return the metadata of a conversation. Raises NotFoundError."""

    def resolve_id(self, prefix: str) -> str:
        """Return the only conversation id that starts with `prefix`. Raises StoreError for none or several."""

    def latest_id(self) -> str | None:
        """Return the id of the conversation that changed last."""

    def messages(self, conversation_id: str) -> list[Message]:
        """Return all messages, parents before children, alternatives in the order of their creation."""

    def list_conversations(
        self, *, archived: bool | None = False, tag: str = "", folder: str = "", limit: int = 50, offset: int = 0
    ) -> Sequence[ConversationSummary]:
        """Return conversations: pinned ones first, then the last changed ones. `archived` None includes both kinds."""

    def search(self, query: str, *, order: Order = "newest", limit: int = 20, offset: int = 0) -> Sequence[SearchHit]:
        """Return titles and messages that contain all words of `query`; "quoted words" must occur as a phrase."""

    def recent_inputs(self, limit: int) -> Sequence[str]:
        """Return the last messages of the user in all conversations, newest first, without duplicates."""

    def read_attachment(self, sha256: str) -> bytes:
        """Return the bytes of an attachment by hash. Raises StoreError if they are missing."""

    def decode_tps(self, model: str) -> float | None:
        """Return the decode speed of this model's last replies in tokens/s; None before the first."""

    def close(self) -> None:
        """Close the store. A second call does nothing."""
