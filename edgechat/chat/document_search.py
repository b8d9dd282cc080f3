"""Passages of documents for the messages of a session: whole documents if they fit in the context, else a search."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from edgechat import paths
from edgechat.chat import events, message_passages
from edgechat.chat.messages import Attachment, Message
from edgechat.documents import prompt_text
from edgechat.documents.descriptions import describe_unknown_collection
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import PassageSet
from edgechat.documents.search_models import SearchModels
from edgechat.errors import DocumentError, EngineError
from edgechat.prefix.shared_prefix import make_folder_name, make_pinned_owner

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.documents.collection import CollectionInfo
    from edgechat.documents.embedding import TextEmbedder, TextReranker

# Fraction of the context that is reserved for the reply, as in `window`.
_REPLY_FRACTION: Final = 1 / 8
# Tokens of the chat template around the messages of a prompt.
_TEMPLATE_TOKENS: Final = 64
# Whole documents fill at most this fraction of the context, so that a conversation of several turns fits, too.
_MAX_WHOLE_FRACTION: Final = 5 / 6
# Whole documents that are read for the first time should not delay the reply for longer than two minutes. Prefill is at
# least about four times as fast as decoding; without a measured speed, the limit of tokens applies.
_MAX_READING_S: Final = 120
_MIN_PREFILL_RATIO: Final = 4
_MIN_READING_TOKENS: Final = 4096
_DEFAULT_READING_TOKENS: Final = 16_384
# Retrieved passages: a quarter of the context, and not more than small models can use.
_MAX_RETRIEVED_FRACTION: Final = 1 / 4
_MAX_RETRIEVED_TOKENS: Final = 3072


class DocumentBudget(NamedTuple):
    """Maximum numbers of tokens of the documents in a prompt."""

    max_whole_tokens: int
    """Tokens of whole documents."""
    max_retrieved_tokens: int
    """Tokens of the passages that a search finds."""
    max_new_tokens: int
    """Tokens of whole documents that have not been read yet."""


class MessagePassages(NamedTuple):
    """Passages for a message: the attachment that saves them, its content, and the event that describes them."""

    passages: PassageSet
    attachment: Attachment
    content: bytes
    event: events.DocumentsSearched


def choose_budget(
    n_ctx: int, n_message_tokens: int, max_tokens: int | None, decode_tps: float | None
) -> DocumentBudget:
    """Return the budget of documents in a context of `n_ctx` tokens.

    `n_message_tokens` is the length of the message and the system prompt, `max_tokens` the maximum length of the reply,
    and `decode_tps` the measured speed of the model; None if it is unknown.
    """
    n_reserved = max(1, min(max_tokens or n_ctx, int(n_ctx * _REPLY_FRACTION)))
    available = max(0, n_ctx - n_reserved - n_message_tokens - _TEMPLATE_TOKENS)
    reading = _DEFAULT_READING_TOKENS
    if decode_tps is not None:
        reading = max(_MIN_READING_TOKENS, int(decode_tps * _MIN_PREFILL_RATIO * _MAX_READING_S))
    return DocumentBudget(
        min(available, int(n_ctx * _MAX_WHOLE_FRACTION)),
        min(available, int(n_ctx * _MAX_RETRIEVED_FRACTION), _MAX_RETRIEVED_TOKENS),
        reading,
    )


def check_names(library: DocumentLibrary, names: Iterable[str]) -> None:
    """Raise DocumentError, with the names of the existing collections, if one of `names` does not exist."""
    existing_names = library.names()
    missing_name = next((name for name in names if name not in existing_names), None)
    if missing_name is not None:
        raise DocumentError(
            f"{describe_unknown_collection(missing_name, existing_names)} Choose others with "
            "--docs NAME, or with /docs NAME in the chat (none: /docs off), or add one with `edgechat docs add`."
        )


class DocumentSearch:
    """Searches the collections of a session."""

    def __init__(self, count_tokens: Callable[[str], int], library: DocumentLibrary | None = None) -> None:
        """`count_tokens` returns the length of a text in tokens of the loaded model."""
        self.library = library or DocumentLibrary(paths.documents_dir())
        self._count_tokens = count_tokens
        self.models = SearchModels()
        """Embedding model and reranker, which the search loads when it needs them."""
        self._is_hint_due = True

    def search(
        self, question: str, path: Sequence[Message], read_attachment: Callable[[str], bytes], settings: Settings,
        budget: DocumentBudget, *, allows_whole: bool = True,
    ) -> Generator[events.SessionEvent, None, MessagePassages]:  # fmt: skip
        """Find the passages for a message with the text `question` that follows the messages of `path`.

        Without `allows_whole`, the documents are searched even if they would fit. Raises DocumentError.
        """
        names = settings.docs
        check_names(self.library, names)
        infos = [self.library.describe(name) for name in names]
        n_documents = sum(info.n_documents for info in infos)
        yield events.DocumentSearchStarted(n_documents=n_documents)
        if allows_whole:
            whole = self.find_whole(names, path, read_attachment, budget)
            if whole is not None:
                return whole
        found_set = self._find_passages(question, settings, budget, infos)
        earlier_sets = message_passages.find_readable_passages(path, read_attachment)
        numbered_set = message_passages.choose_numbers(found_set, earlier_sets)
        n_tokens = self._count_tokens(prompt_text.format_retrieved(numbered_set.passages, numbered_set.n_omitted))
        hint = "" if numbered_set.searched.embedding_model else self._take_hint(infos)
        return _describe(numbered_set, n_tokens, hint=hint)

    def find_whole(
        self, names: Sequence[str], path: Sequence[Message], read_attachment: Callable[[str], bytes],
        budget: DocumentBudget,
    ) -> MessagePassages | None:  # fmt: skip
        """Return all text of the collections for the message after `path` if it fits in `budget`.

        Returns None if it does not fit, or if there is no text. Raises DocumentError.
        """
        from edgechat.documents import retrieval

        whole_set = retrieval.read_whole(
            self.library, names, count_tokens=self._count_tokens, max_tokens=budget.max_whole_tokens, first_number=1
        )
        if whole_set is None or not whole_set.passages:
            return None
        earlier_sets = message_passages.find_readable_passages(path, read_attachment)
        whole_set = message_passages.choose_numbers(whole_set, earlier_sets)
        is_new = whole_set.passages not in [s.passages for s in earlier_sets if s is not None]
        n_tokens = self._count_tokens(prompt_text.format_whole(whole_set.passages))
        if n_tokens > budget.max_whole_tokens or (
            is_new and n_tokens > budget.max_new_tokens and not _is_cached(whole_set)
        ):
            return None
        return _describe(whole_set, n_tokens, is_new=is_new)

    def _find_passages(
        self, question: str, settings: Settings, budget: DocumentBudget, infos: Sequence[CollectionInfo]
    ) -> PassageSet:
        """Search with the installed models; if they fail, search by keywords."""
        from edgechat.documents import retrieval

        has_embeddings = any(info.n_embedded for info in infos)
        embedder = self.models.open_embedder(settings) if has_embeddings else None
        reranker = self.models.open_reranker(settings)

        def find(embedder: TextEmbedder | None, reranker: TextReranker | None) -> PassageSet:
            return retrieval.find_passages(
                self.library, settings.docs, question, count_tokens=self._count_tokens,
                max_tokens=budget.max_retrieved_tokens, first_number=1, embedder=embedder, reranker=reranker,
            )  # fmt: skip

        try:
            return find(embedder, reranker)
        except EngineError as error:
            self.models.problem = f"the search by meaning failed: {error}"
            return find(None, None)

    def _take_hint(self, infos: Sequence[CollectionInfo]) -> str:
        """Return a sentence why only keywords were searched, the first time; "" afterwards."""
        if not self._is_hint_due:
            return ""
        self._is_hint_due = False
        return self.models.explain_keyword_search(infos)


def _is_cached(passages: PassageSet) -> bool:
    """Return whether the prompt cache on disk has tokens of these collections, of any model."""
    folder_name = make_folder_name(make_pinned_owner(passages.collections))
    with contextlib.suppress(OSError):
        return any(paths.prefix_dir().glob(f"*/{folder_name}/*"))
    return False


def _describe(passages: PassageSet, n_tokens: int, *, is_new: bool = True, hint: str = "") -> MessagePassages:
    attachment, content = message_passages.make_attachment(passages)
    event = events.DocumentsSearched(passages=passages, n_tokens=n_tokens, is_new=is_new, hint=hint)
    return MessagePassages(passages, attachment, content, event)
