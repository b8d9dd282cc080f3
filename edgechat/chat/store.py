"""Interface of a conversation store. `edgechat.store` implements this interface with SQLite."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec

from edgechat.chat.messages import Conversation, Message

SearchOrder = Literal["newest", "rank"]


class ConversationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Entry in the list of conversations: metadata and the number of messages."""

    conversation: Conversation
    n_messages: int


class ConversationTitle(msgspec.Struct, frozen=True, kw_only=True):
    """Title and date of a conversation. Reading only these is much faster than reading all metadata."""

    id: str
    title: str
    updated_at_ms: int


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """Message or title that matches a search query."""

    conversation_id: str
    title: str
    message_id: str | None
    """ID of the matching message; None if the title matches."""
    role: str
    created_at_ms: int
    updated_at_ms: int
    """Time of the last change of the conversation in milliseconds since 1970."""
    snippet: str
    marks: list[tuple[int, int]]
    """Ranges of `snippet` that match words of the query, as [start, end)."""
    score: float
    """Relevance of the match: higher is better. Scores of different searches cannot be compared."""


class FirstMessage(msgspec.Struct, frozen=True, kw_only=True):
    """User message with which a conversation, or another version of it, begins."""

    conversation_id: str
    message_id: str
    text: str


def parse_query(query: str) -> list[str]:
    """Split a query into words. A phrase in double quotes is one word; all other characters have no special meaning."""
    matches = re.findall(r'"([^"]+)"|([^\s"]+)', query)
    return [word for word in (phrase or plain_word for phrase, plain_word in matches) if word.strip()]


class Store(Protocol):
    """Interface of a thread-safe store of conversations. Reads include the latest writes of other processes.

    Every method is atomic. All methods may raise StoreError, and NotFoundError for a missing conversation or message.
    """

    @property
    def read_only_reason(self) -> str:
        """Reason why the store is read-only, such as a read-only disk or a newer database version; "" if writable."""

    @property
    def is_persistent(self) -> bool:
        """True for a store on disk; False for a store in memory, whose data must never be written to disk."""

    @property
    def notices(self) -> list[str]:
        """Messages for the user, for example about the recovery of a damaged database, or about damaged values."""

    def take_notices(self) -> list[str]:
        """Return the notices, and remove them from the store."""

    def append(
        self, conversation: Conversation, messages: Sequence[Message], files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Add messages below their parents; the last message becomes the head. Adds the conversation if it is new.

        `files` has the bytes of attachments by SHA-256 hash. Returns after the data is synced to disk.
        """

    def checkpoint(self, message: Message) -> bool:
        """Write the current state of a claimed reply; sync the data to disk only if the reply is finished.

        Return whether the reply was written; False if another process has deleted or claimed the reply.
        """

    def claim(self, message_id: str) -> None:
        """Claim a reply for this process, so that `checkpoint` can update the reply. Raises NotFoundError."""

    def discard_messages(self, message_ids: Sequence[str]) -> None:
        """Delete messages permanently. `message_ids` lists children before their parents."""

    def select_branch(self, path: Sequence[str]) -> None:
        """Switch the active path to `path` (message IDs from a root), extended to the most recently active leaf."""

    def set_head(self, path: Sequence[str]) -> None:
        """Make the last message of `path` (message IDs from a root) the head, even if the message has children."""

    def delete_message(self, message_id: str) -> None:
        """Delete a message and its descendants. `restore_message` can restore them for a limited time."""

    def restore_message(self, message_id: str) -> None:
        """Restore a message and its descendants after `delete_message`. Raises StoreError if they have been purged."""

    def update_conversation(self, conversation_id: str, **changes: object) -> None:
        """Change the title, model, settings, tags, folder, or pinned or archived state of a conversation.

        Raises NotFoundError.
        """

    def delete_conversation(self, conversation_id: str) -> None:
        """Delete a conversation permanently."""

    def conversation(self, conversation_id: str) -> Conversation:
        """Return the metadata of a conversation. Raises NotFoundError."""

    def resolve_id(self, prefix: str) -> str:
        """Return the conversation ID that starts with `prefix`.

        Raises NotFoundError if no ID matches, and UsageError if `prefix` is empty or several IDs match.
        """

    def latest_id(self) -> str | None:
        """Return the ID of the conversation that changed last; None if the store is empty."""

    def messages(self, conversation_id: str) -> list[Message]:
        """Return all messages of a conversation: parents before children, alternatives in the order of creation."""

    def list_conversations(
        self, *, archived: bool | None = False, tag: str = "", folder: str = "", limit: int = 50, offset: int = 0
    ) -> Sequence[ConversationSummary]:
        """Return pinned conversations, then other conversations, each sorted by last change, newest first.

        `archived` selects archived (True), unarchived (False) or all (None) conversations. `tag` and `folder` select
        conversations with this tag and in this folder; "" selects all.
        """

    def list_titles(self, limit: int) -> Sequence[ConversationTitle]:
        """Return the titles of unarchived conversations in the order of `list_conversations`."""

    def search(
        self, query: str, *, order: SearchOrder = "newest", limit: int = 20, offset: int = 0
    ) -> Sequence[SearchHit]:
        """Return messages and titles that contain all words of `query`; "quoted words" must occur as a phrase."""

    def find_first_messages(self, words: Sequence[str], *, limit: int, max_chars: int) -> Sequence[FirstMessage]:
        """Return up to `limit` first messages that contain all `words`, newest first; no messages without words.

        Words have at least three characters. Messages of more than `max_chars` characters are left out. Only the newest
        messages with these words are searched.
        """

    def recent_inputs(self, limit: int) -> Sequence[str]:
        """Return up to `limit` user messages from all conversations, newest first, without duplicates."""

    def read_attachment(self, sha256: str) -> bytes:
        """Return the bytes of the attachment with this SHA-256 hash. Raises StoreError if it is missing or damaged."""

    def decode_tps(self, model: str) -> float | None:
        """Return the median decode speed of the model's last replies in tokens/s; None if there are no replies."""

    def close(self) -> None:
        """Close the store. Further calls have no effect."""
