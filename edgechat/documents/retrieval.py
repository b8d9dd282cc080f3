"""Passages of collections for a prompt: all text if it fits, or the best passages for a question."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from edgechat.documents.collection import Collection
from edgechat.documents.embedding import TextEmbedder, TextReranker
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import Passage, PassageScores, PassageSet, SearchedDocuments
from edgechat.documents.search import FoundChunk, can_use_embeddings, search
from edgechat.documents.text import Chunk

# Number of results of a search, of which as many are used as fit into the budget.
_MAX_RESULTS: Final = 48
# Tokens of the number, the fence and the line breaks of a passage in the prompt, apart from its place and text.
_PASSAGE_OVERHEAD_TOKENS: Final = 12
# A token stands for at most this many bytes of text on average, even of text with long runs of spaces. Larger
# collections do not fit, and need not be tokenised.
_MAX_BYTES_PER_TOKEN: Final = 16
# Number of characters that are tokenised together: few requests, and an early end for text that does not fit.
_COUNTED_CHARS: Final = 65_536


def find_passages(
    library: DocumentLibrary,
    names: Sequence[str],
    query: str,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    first_number: int = 1,
    embedder: TextEmbedder | None = None,
    reranker: TextReranker | None = None,
) -> PassageSet:
    """Return the best passages of the collections for a question that fit into `max_tokens`, best first.

    Chunks that follow each other in a document become one passage, with the rank of the best of them. The numbers of
    the passages start at `first_number`. Raises DocumentError and the errors of the models.
    """
    with _open_all(library, names) as collections:
        found = search(collections, query, embedder=embedder, reranker=reranker, n_results=_MAX_RESULTS)
        chosen = _choose(found, count_tokens, max_tokens)
        searched = _describe_searched(collections, embedder, reranker)
    passages = tuple(
        _make_passage(run, number) for number, run in enumerate(_merge_neighbours(chosen), start=first_number)
    )
    return PassageSet(collections=tuple(names), passages=passages, query=query, searched=searched)


def read_whole(
    library: DocumentLibrary,
    names: Sequence[str],
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    first_number: int = 1,
) -> PassageSet | None:
    """Return all text of the collections as passages; None if it does not fit into `max_tokens`.

    Documents are in the order in which they were added, so that a new document changes only the end of the prompt.
    Raises DocumentError.
    """
    with _open_all(library, names) as collections:
        infos = [collection.describe() for collection in collections]
        if sum(info.n_text_bytes for info in infos) > max_tokens * _MAX_BYTES_PER_TOKEN:
            return None
        passages: list[Passage] = []
        counter = _TokenCounter(count_tokens)
        for collection in collections:
            for stored in collection.iterate_chunks():
                found = FoundChunk(
                    chunk=stored.chunk, collection=collection.name, document=stored.document, path=stored.path,
                    scores=PassageScores(), document_id=stored.document_id, ordinal=stored.ordinal,
                )  # fmt: skip
                passage = _make_passage([found], first_number + len(passages))
                passages.append(passage)
                if counter.add(passage) > max_tokens:
                    return None
        if counter.finish() > max_tokens:
            return None
        searched = _describe_searched(collections, None, None)
    return PassageSet(collections=tuple(names), passages=tuple(passages), is_whole=True, searched=searched)


class _TokenCounter:
    """Counts the tokens of passages, of several at a time."""

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens
        self._texts: list[str] = []
        self._n_chars = 0
        self._n_tokens = 0

    def add(self, passage: Passage) -> int:
        """Add a passage, and return the number of tokens that were counted so far."""
        self._texts.append(f"{passage.place}\n{passage.text}\n")
        self._n_chars += len(self._texts[-1])
        self._n_tokens += _PASSAGE_OVERHEAD_TOKENS
        return self.finish() if self._n_chars >= _COUNTED_CHARS else self._n_tokens

    def finish(self) -> int:
        """Return the number of tokens of all passages."""
        if self._texts:
            self._n_tokens += self._count_tokens("".join(self._texts))
            self._texts, self._n_chars = [], 0
        return self._n_tokens


@contextlib.contextmanager
def _open_all(library: DocumentLibrary, names: Iterable[str]) -> Iterator[list[Collection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(library.open(name)) for name in dict.fromkeys(names)]


def _choose(found: Sequence[FoundChunk], count_tokens: Callable[[str], int], max_tokens: int) -> list[FoundChunk]:
    """Return the results that fit into `max_tokens`, best first. A result that does not fit is skipped."""
    chosen: list[FoundChunk] = []
    n_tokens = 0
    for result in found:
        passage = _make_passage([result], 1)
        n_passage = count_tokens(f"{passage.place}\n{passage.text}\n") + _PASSAGE_OVERHEAD_TOKENS
        if n_tokens + n_passage <= max_tokens:
            chosen.append(result)
            n_tokens += n_passage
    return chosen


def _merge_neighbours(chosen: Sequence[FoundChunk]) -> list[list[FoundChunk]]:
    """Group chunks that follow each other in a document; the groups are in the order of their best chunks."""
    by_place = {(chunk.collection, chunk.document_id, chunk.ordinal): chunk for chunk in chosen}
    groups, grouped = [], set()
    for chunk in chosen:
        if id(chunk) in grouped:
            continue
        first = chunk.ordinal
        while (chunk.collection, chunk.document_id, first - 1) in by_place:
            first -= 1
        group: list[FoundChunk] = []
        while (neighbour := by_place.get((chunk.collection, chunk.document_id, first + len(group)))) is not None:
            group.append(neighbour)
            grouped.add(id(neighbour))
        groups.append(group)
    return groups


def _make_passage(group: Sequence[FoundChunk], number: int) -> Passage:
    """Join consecutive chunks to a passage with the scores of the best one."""
    chunks, first = [found.chunk for found in group], group[0]
    best = min(group, key=lambda found: (-(found.scores.relevance or 0), -(found.scores.fused or 0)))
    return Passage(
        number=number, collection=first.collection, document=first.document, path=first.path,
        text="\n".join(chunk.text.strip("\n") for chunk in chunks), heading=chunks[0].heading,
        page=_first(chunk.page for chunk in chunks), last_page=_last(chunks, "page"),
        first_line=_first(chunk.first_line for chunk in chunks), last_line=_last(chunks, "line"),
        scores=best.scores,
    )  # fmt: skip


def _first(numbers: Iterable[int | None]) -> int | None:
    return next((number for number in numbers if number is not None), None)


def _last(chunks: Sequence[Chunk], unit: str) -> int | None:
    """Return the last page or line of chunks."""
    pairs = [
        (chunk.page, chunk.last_page) if unit == "page" else (chunk.first_line, chunk.last_line) for chunk in chunks
    ]
    return _first(last if last is not None else first for first, last in reversed(pairs))


def _describe_searched(
    collections: Sequence[Collection], embedder: TextEmbedder | None, reranker: TextReranker | None
) -> SearchedDocuments:
    infos = [collection.describe() for collection in collections]
    embedded = [
        info for info, collection in zip(infos, collections, strict=True)
        if can_use_embeddings(collection, embedder) and info.n_embedded
    ]  # fmt: skip
    return SearchedDocuments(
        n_documents=sum(info.n_documents for info in infos),
        n_chunks=sum(info.n_chunks for info in infos),
        n_embedded=sum(info.n_embedded for info in embedded),
        embedding_model=embedder.model_name if embedder is not None and embedded else "",
        reranker=reranker.name if reranker is not None else "",
    )
