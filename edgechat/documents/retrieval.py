"""Passages of collections for a prompt: all text if it fits, or the best passages for a question."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from edgechat.documents import prompt_text
from edgechat.documents.collection import Collection
from edgechat.documents.embedding import TextEmbedder, TextReranker
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import Passage, PassageScores, PassageSet, SearchedDocuments
from edgechat.documents.search import FoundChunk, can_use_embeddings, leave_out_weak, search
from edgechat.documents.text import Chunk

# Number of results of a search, of which as many are used as fit into the budget.
_MAX_RESULTS: Final = 48
# Tokens of the number, the fence and the line breaks of a passage in the prompt, apart from its place and text.
_PASSAGE_OVERHEAD_TOKENS: Final = 12
# A result that does not fit is cut to at least this many characters; shorter text seldom answers anything.
_MIN_CUT_CHARS: Final = 40
# Number of the passage in the text whose tokens are counted: as many digits as numbers in a long conversation have.
_COUNTED_NUMBER: Final = 999
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
    the passages start at `first_number`. If the best result alone does not fit, it is cut. Raises DocumentError and the
    errors of the models.
    """
    with _open_all(library, names) as collections:
        results = leave_out_weak(
            search(collections, query, embedder=embedder, reranker=reranker, n_results=_MAX_RESULTS)
        )
        chosen = _choose(results, count_tokens, max_tokens)
        searched = _describe_searched(collections, embedder, reranker)
    passages = tuple(
        _make_passage(run, number) for number, run in enumerate(_merge_neighbours(chosen), start=first_number)
    )
    return PassageSet(
        collections=tuple(names), passages=passages, query=query, searched=searched,
        n_omitted=len(results) - len(chosen),
    )  # fmt: skip


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


def _choose(results: Sequence[FoundChunk], count_tokens: Callable[[str], int], max_tokens: int) -> list[FoundChunk]:
    """Return the results that fit into `max_tokens`, best first.

    If the best one does not fit, it is cut, and the only one. Others that do not fit are skipped.
    """
    chosen: list[FoundChunk] = []
    n_tokens = 0
    for i, result in enumerate(results):
        passage = _make_passage([result], 1)
        n_passage = count_tokens(f"{passage.place}\n{passage.text}\n") + _PASSAGE_OVERHEAD_TOKENS
        if n_tokens + n_passage <= max_tokens:
            chosen.append(result)
            n_tokens += n_passage
        elif i == 0 and (beginning := _cut(result, count_tokens, max_tokens)) is not None:
            return [beginning]
    return chosen


def _cut(result: FoundChunk, count_tokens: Callable[[str], int], max_tokens: int) -> FoundChunk | None:
    """Return the beginning of a result that fits into `max_tokens` with the instructions; None if hardly any text fits.

    The text ends with a line or a word, if one ends in the second half of what fits.
    """
    text = result.chunk.text

    def fits(n_chars: int) -> bool:
        passage = _make_passage([_replace_text(result, text[:n_chars])], _COUNTED_NUMBER)
        return count_tokens(prompt_text.format_retrieved([passage])) <= max_tokens

    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    if low < len(text):
        ends = [text.rfind("\n", 0, low + 1), *(match.start() for match in re.finditer(r"\s", text[: low + 1]))]
        line_end, word_end = ends[0], ends[-1]
        low = next((end for end in (line_end, word_end) if 2 * end >= low), low)
    text = text[:low].rstrip()
    return _replace_text(result, text) if len(text) >= _MIN_CUT_CHARS else None


def _replace_text(result: FoundChunk, text: str) -> FoundChunk:
    """Return a result with the beginning `text` of its text, and the lines of that beginning."""
    chunk = result.chunk
    last_line = chunk.last_line if chunk.first_line is None else chunk.first_line + text.rstrip().count("\n")
    return msgspec.structs.replace(result, chunk=msgspec.structs.replace(chunk, text=text, last_line=last_line))


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
    best = max(group, key=_get_rank)
    return Passage(
        number=number, collection=first.collection, document=first.document, path=first.path,
        text="\n".join(chunk.text.strip("\n") for chunk in chunks), heading=chunks[0].heading,
        page=_first(chunk.page for chunk in chunks), last_page=_last(chunks, "page"),
        first_line=_first(chunk.first_line for chunk in chunks), last_line=_last(chunks, "line"),
        scores=best.scores,
    )  # fmt: skip


def _get_rank(result: FoundChunk) -> tuple[float, float]:
    """Return the relevance and the fused score; chunks that were not reranked come after all others."""
    relevance = result.scores.relevance
    return -math.inf if relevance is None else relevance, result.scores.fused or 0


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
