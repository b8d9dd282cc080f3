"""What a conversation needs of the place where it is kept. `edgechat.store` implements it on SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from edgechat.chat.messages import Conversation, Message

Order = Literal["newest", "rank"]


class ConversationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in a list."""

    conversation: Conversation
    n_messages: int


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """A place where a search found something."""

    conversation_id: str
    title: str
    message_id: str | None
    """None if the title matched."""
    role: str
    created_at_ms: int
    snippet: str
    marks: list[tuple[int, int]]
    """Where in `snippet` the words of the query are, as [start, end)."""
    score: float
    """Higher is better; comparable within one search."""


class Store(Protocol):
    """Keeps conversations. Every method either takes effect as a whole or raises StoreError.

    That is NotFoundError, if what it is about is not there.
    Safe to call from any thread. What another process wrote is seen by the next read.
    """

    @property
    def read_only_reason(self) -> str:
        """Why nothing can be written (a read-only disk, a database of a newer version); "" if it can."""

    @property
    def is_persistent(self) -> bool:
        """False if all is in memory alone, and nothing of it may be written anywhere."""

    @property
    def notices(self) -> list[str]:
        """What happened at opening that a person should know, such as a recovery."""

    def append(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Add messages below their parents; the last one becomes the head. Adds the conversation if it is new.

        `files` are the bytes of their attachments, by hash. All is on disk, not only in the system's cache, when
        this returns.
        """

    def checkpoint(self, message: Message) -> bool:
        """Write what an answer of ours has become; not waiting for the disk unless it is finished.

        False, and nothing is written, if the answer is not ours any more: deleted, or continued elsewhere.
        """

    def claim(self, message_id: str) -> None:
        """Make an answer ours, to be continued with `checkpoint`. Raises StoreError if it is gone."""

    def discard_messages(self, message_ids: Sequence[str]) -> None:
        """Take messages back for good, children first, as if they had not been said."""

    def select_branch(self, path: Sequence[str]) -> None:
        """Go on from `path[-1]`, whose path from a root this is: the head is where it was last below it."""

    def set_head(self, path: Sequence[str]) -> None:
        """Make `path[-1]` the head, whatever is below it; the next message becomes an alternative there."""

    def delete_message(self, message_id: str) -> None:
        """Delete a message and all below it, so that `unhide` can bring it back for a while."""

    def restore_message(self, message_id: str) -> None:
        """Bring back what `hide` of the same message took away. Raises StoreError if it is gone for good."""

    def update_conversation(self, conversation_id: str, **changes: object) -> None:
        """Write some of title, model, settings, pinned, archived, tags and folder. Raises NotFoundError."""

    def delete_conversation(self, conversation_id: str) -> None:
        """Remove a conversation for good."""

    def conversation(self, conversation_id: str) -> Conversation:
        """Raises NotFoundError if there is none."""

    def resolve_id(self, prefix: str) -> str:
        """The only conversation whose id starts with `prefix`. Raises StoreError if there is none, or several."""

    def latest_id(self) -> str | None:
        """Id of the conversation that was changed last."""

    def messages(self, conversation_id: str) -> list[Message]:
        """All messages, parents before children, alternatives in the order they were made."""

    def list_conversations(
        self, *, archived: bool | None = False, tag: str = "", folder: str = "", limit: int = 50, offset: int = 0
    ) -> Sequence[ConversationSummary]:
        """Conversations: pinned first, then the last changed; `archived` None lists both kinds."""

    def search(self, query: str, *, order: Order = "newest", limit: int = 20, offset: int = 0) -> Sequence[SearchHit]:
        """Where all words of `query` are ("quoted words" as they stand), in titles and messages."""

    def recent_inputs(self, limit: int) -> Sequence[str]:
        """What people said last, in any conversation, the newest first, each text once."""

    def read_attachment(self, sha256: str) -> bytes:
        """Bytes by their hash. Raises StoreError if they are not here."""

    def decode_tps(self, model: str) -> float | None:
        """Tokens per second of this model's last answers on this machine; None before the first."""

    def close(self) -> None:
        """Let go of the database. A second call does nothing."""
