"""Passages of the messages on the active path, read from the store in the thread of the session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from edgechat.documents.passages import PASSAGES_MEDIA_TYPE
from edgechat.errors import DocumentError, StoreError

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.chat.store import Store
    from edgechat.documents.citations import Citation, CitationFinder
    from edgechat.documents.passages import PassageSet

# Number of decoded sets that are cached; a conversation rarely has more questions with other passages.
_MAX_SETS: Final = 64


class ConversationPassages:
    """Sets of passages by message ID, and the citations of their passages."""

    def __init__(self, sets: Mapping[str, PassageSet]) -> None:
        self.sets = sets
        self._finder: CitationFinder | None = None

    def find_citations(self, text: str) -> list[Citation]:
        """Return the citations in the text of a reply."""
        if not self.sets or "[" not in text:
            return []
        if self._finder is None:
            from edgechat.documents.citations import CitationFinder

            self._finder = CitationFinder(p for passage_set in self.sets.values() for p in passage_set.passages)
        return self._finder.find(text)


NO_PASSAGES: Final = ConversationPassages({})


class _PassageReader:
    """Reads the passages of paths; the same path returns the same object, so that layouts can be reused."""

    def __init__(self) -> None:
        self._sets: dict[str, PassageSet] = {}
        self._last_key: tuple[tuple[str, str], ...] = ()
        self._last = NO_PASSAGES

    def read(self, store: Store, path: Iterable[Message]) -> ConversationPassages:
        """Return the passages of the messages of a path; leave out attachments that are missing or damaged."""
        key = tuple(
            (message.id, attachment.sha256)
            for message in path
            for attachment in message.attachments
            if attachment.media_type == PASSAGES_MEDIA_TYPE
        )
        if not key:
            return NO_PASSAGES
        if key != self._last_key:
            sets = {message_id: self._read_set(store, sha256) for message_id, sha256 in key}
            self._last = ConversationPassages({i: passages for i, passages in sets.items() if passages is not None})
            self._last_key = key
        return self._last

    def _read_set(self, store: Store, sha256: str) -> PassageSet | None:
        from edgechat.documents.passages import decode_passages

        if sha256 not in self._sets:
            try:
                self._sets[sha256] = decode_passages(store.read_attachment(sha256))
            except (StoreError, DocumentError):
                return None
            while len(self._sets) > _MAX_SETS:
                del self._sets[next(iter(self._sets))]
        return self._sets[sha256]


read_passages: Final = _PassageReader().read
"""Return the passages of the messages of a path; its arguments are a store and the messages."""
