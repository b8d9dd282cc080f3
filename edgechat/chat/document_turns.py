"""Documents in the turns of a session: adds passages to new messages, before the turns that reply to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.chat import events
from edgechat.chat.mentions import remove_mentions
from edgechat.chat.messages import Attachment, Message
from edgechat.chat.reply_source import ReplySource
from edgechat.chat.store import Store
from edgechat.chat.turn_runner import Turn
from edgechat.config import Settings
from edgechat.errors import ContextOverflowError, DocumentError

if TYPE_CHECKING:
    from edgechat.chat.document_search import DocumentBudget, DocumentSearch, MessagePassages
    from edgechat.documents.embedding import TextEmbedder

# A question with at most this many words apart from stop words may be about the topic of the question before it.
_MAX_FOLLOW_UP_TERMS: Final = 3
_MAX_PREVIOUS_CHARS: Final = 500


class DocumentTurns:
    """Adds passages of the documents of a conversation to its messages. Call `close` at the end."""

    def __init__(
        self, get_source: Callable[[], ReplySource], store: Store, read_speed: Callable[[], float | None]
    ) -> None:
        """`get_source` returns the source of the next reply, and `read_speed` its measured decode speed."""
        self._get_source = get_source
        self._read_speed = read_speed
        self._store = store
        self._search: DocumentSearch | None = None
        self._prediction: tuple[object, MessagePassages | None] | None = None
        """Result of the last `predict`, with all that it depends on."""

    @property
    def search(self) -> DocumentSearch:
        """The search in the collections. The first use imports its modules."""
        if self._search is None:
            from edgechat.chat.document_search import DocumentSearch

            self._search = DocumentSearch(self._count_tokens)
        return self._search

    def close(self) -> None:
        """Leave the engines of the search models."""
        if self._search is not None:
            self._search.models.close()

    def add_sources(
        self, sources: Sequence[Path], settings: Settings, is_cancelled: Callable[[], bool]
    ) -> Generator[events.SessionEvent, None, tuple[str, ...]]:
        """Create or update a collection for each folder or document; return the names of the collections.

        Raises DocumentError, and RequestCancelledError if `is_cancelled` returns True.
        """
        from edgechat.chat.document_sources import add_sources

        def open_embedder() -> TextEmbedder | None:
            return self.search.models.open_embedder(settings)

        return (
            yield from add_sources(
                self.search.library, sources, is_cancelled, open_embedder, can_create=self._store.is_persistent
            )
        )

    def can_attach(self, n_tokens: int) -> bool:
        """Return whether a document of `n_tokens` tokens fits in the context as an attachment, with space for turns."""
        from edgechat.chat.document_search import choose_budget

        return n_tokens <= choose_budget(self._get_source().n_ctx, 0, None, None).max_whole_tokens

    def run(
        self, turn: Turn, path: Sequence[Message], settings: Settings,
        run_turn: Callable[[Turn], Iterator[events.SessionEvent]],
    ) -> Iterator[events.SessionEvent]:  # fmt: skip
        """Add passages to the new message of `turn`, which follows the messages of `path`, and run the turn.

        If whole documents turn out not to fit, because the context cannot grow, the turn is undone and repeated with
        the passages that a search finds. Raises DocumentError and the errors of the turn.
        """
        if not settings.docs:
            yield from run_turn(turn)
            return
        for allows_whole in (True, False):
            turn_with_passages = yield from self._add_passages(turn, path, settings, allows_whole=allows_whole)
            search_event = turn_with_passages.search_event
            try:
                yield from run_turn(turn_with_passages)
            except ContextOverflowError:
                if search_event is None or not search_event.passages.is_whole:
                    raise
            else:
                return

    def _add_passages(
        self, turn: Turn, path: Sequence[Message], settings: Settings, *, allows_whole: bool
    ) -> Generator[events.SessionEvent, None, Turn]:
        message = turn.message
        if message is None:
            return turn
        question = self._make_query(message.text, path)
        found = yield from self.search.search(
            question, path, self._store.read_attachment, settings, self._choose_budget(message, turn, settings),
            allows_whole=allows_whole,
        )  # fmt: skip
        message = msgspec.structs.replace(message, attachments=(*message.attachments, found.attachment))
        return turn._replace(
            message=message, files={**turn.files, found.attachment.sha256: found.content}, search_event=found.event
        )

    def _make_query(self, text: str, path: Sequence[Message]) -> str:
        """Return the query for a message: its text and, for a short question, the question before it.

        A question such as "And how heavy is it?" names its topic in an earlier message only.
        """
        from edgechat.chat.message_passages import find_readable_passages
        from edgechat.documents.keyword_search import find_words

        query = remove_mentions(text).strip() or text
        previous = next((m for m in reversed(path) if m.role == "user"), None)
        if previous is None or "?" not in query or len(find_words(query)) > _MAX_FOLLOW_UP_TERMS:
            return query
        [passages] = find_readable_passages([previous], self._store.read_attachment)
        previous_query = (passages.query if passages is not None else "") or remove_mentions(previous.text).strip()
        return f"{previous_query[-_MAX_PREVIOUS_CHARS:]}\n{query}"

    def predict(self, path: Sequence[Message], settings: Settings) -> tuple[tuple[Attachment, ...], dict[str, bytes]]:
        """Return the whole documents that the message after `path` will have, as an attachment with its content.

        Both are empty if documents will be searched.
        """
        if not settings.docs:
            return (), {}
        with contextlib.suppress(DocumentError):  # the next message reports the error
            infos = [self.search.library.describe(name) for name in settings.docs]
            state = [(info.name, info.updated_at_ms, info.n_chunks, info.n_text_bytes) for info in infos]
            key = (
                state,
                path[-1].id if path else "",
                self._get_source().tokenizer,
                settings.system_prompt,
                settings.max_tokens,
            )
            if self._prediction is None or self._prediction[0] != key:
                budget = self._choose_budget(Message(id="", role="user"), Turn([]), settings)
                found = self.search.find_whole(settings.docs, path, self._store.read_attachment, budget)
                self._prediction = key, found
            if (found := self._prediction[1]) is not None:
                return (found.attachment,), {found.attachment.sha256: found.content}
        return (), {}

    def _choose_budget(self, message: Message, turn: Turn, settings: Settings) -> DocumentBudget:
        from edgechat.chat.attachments import prepend_attachments
        from edgechat.chat.document_search import choose_budget

        def read(sha256: str) -> bytes:
            return turn.files[sha256] if sha256 in turn.files else self._store.read_attachment(sha256)

        text = prepend_attachments(message.text, message.attachments, read)
        n_tokens = self._count_tokens(f"{settings.system_prompt}\n{text}")
        return choose_budget(self._get_source().n_ctx, n_tokens, settings.max_tokens, self._read_speed())

    def _count_tokens(self, text: str) -> int:
        return self._get_source().count_tokens(text)
