"""Passages: text of documents in a prompt, with the numbers by which a reply cites it.

A set of passages is saved with the user message that it belongs to, as an attachment of the media type
`PASSAGES_MEDIA_TYPE`, so that a conversation keeps its meaning when the documents change or are removed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.errors import DocumentError
from edgechat.humanize import format_count

PASSAGES_MEDIA_TYPE: Final = "application/vnd.edgechat.passages+json"
# Maximum size of an encoded set: no longer text fits into a context.
_MAX_BYTES: Final = 32 << 20


class PassageScores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Scores of a passage in a search, each None if that part of the search did not find it or did not run."""

    bm25_rank: int | None = None
    """Rank in the keyword search, from 1."""
    similarity_rank: int | None = None
    """Rank in the search with embeddings, from 1."""
    similarity: float | None = None
    """Cosine of the embeddings of query and passage, from -1 to 1."""
    fused: float | None = None
    """Weighted reciprocal rank fusion of both ranks; only comparable in the same search."""
    relevance: float | None = None
    """Output of the reranker for query and passage."""


class Passage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Text of a document in a prompt."""

    number: int
    """Number by which the reply cites the passage, from 1."""
    collection: str
    document: str
    """Path of the document, relative to the folder that was added; the file name if a file was added."""
    text: str
    path: str = ""
    """Absolute path of the document when it was read."""
    heading: str = ""
    page: int | None = None
    last_page: int | None = None
    first_line: int | None = None
    last_line: int | None = None
    scores: PassageScores = PassageScores()

    @property
    def place(self) -> str:
        """Place of the passage for the user, such as "report.pdf, page 3" or "main.py, lines 10-20"."""
        parts = [self.document]
        if self.page is not None:
            parts.append(_format_range("page", self.page, self.last_page))
        elif self.first_line is not None:
            parts.append(_format_range("line", self.first_line, self.last_line))
        return ", ".join(parts)


class SearchedDocuments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a search has covered."""

    n_documents: int = 0
    n_chunks: int = 0
    n_embedded: int = 0
    """Number of chunks with embeddings of `embedding_model`."""
    embedding_model: str = ""
    """Name of the embedding model; "" if only keywords were searched."""
    reranker: str = ""

    def describe(self) -> str:
        """Describe what was searched and how, such as "12 documents (340 passages) by keywords"."""
        methods = "keywords and meaning" if self.embedding_model else "keywords"
        return (
            f"{format_count(self.n_documents, 'document')} ({format_count(self.n_chunks, 'passage')}) by {methods}"
            f"{', with a reranker' if self.reranker else ''}"
        )


class PassageSet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Passages of one question: whole documents, or what a search found in them, best first."""

    collections: tuple[str, ...]
    passages: tuple[Passage, ...]
    is_whole: bool = False
    """True if the passages are all text of the documents, in their order; the prompt then begins with them."""
    query: str = ""
    """Text that was searched; "" for whole documents."""
    searched: SearchedDocuments = SearchedDocuments()
    n_omitted: int = 0
    """Number of results of the search that were left out, because they did not fit in the context."""
    version: int = 1


def encode_passages(passages: PassageSet) -> bytes:
    """Encode a set of passages as JSON. The same set always gives the same bytes."""
    return msgspec.json.encode(passages, order="deterministic")


def decode_passages(data: bytes) -> PassageSet:
    """Decode a set of passages. Raises DocumentError for other data."""
    if len(data) > _MAX_BYTES:
        raise DocumentError(f"The saved passages have {len(data)} bytes, more than {_MAX_BYTES}. Ask again.")
    try:
        return msgspec.json.decode(data, type=PassageSet)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(f"The saved passages are damaged: {error}. Ask again.") from error


def _format_range(noun: str, first: int, last: int | None) -> str:
    return f"{noun} {first}" if last is None or last <= first else f"{noun}s {first}-{last}"
