"""Descriptions of passages and collections for the user: what was searched or read, and which places are cited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from edgechat.humanize import format_count, shorten

if TYPE_CHECKING:
    from edgechat.documents.citations import Citation
    from edgechat.documents.passages import Passage, PassageScores, PassageSet

_MAX_NAME_CHARS: Final = 60


def describe_set(passages: PassageSet) -> str:
    """Describe the passages of a message in a line, such as "4 passages of 2 documents, searched by keywords"."""
    n_documents = len({(p.collection, p.document) for p in passages.passages})
    if passages.is_whole:
        return f"{format_count(n_documents, 'document')}, read whole"
    if not passages.passages and passages.n_omitted:
        return describe_omitted(passages)
    if not passages.passages:
        return f"Nothing found in {passages.searched.describe()}"
    methods = "keywords and meaning" if passages.searched.embedding_model else "keywords"
    reranker = ", with a reranker" if passages.searched.reranker else ""
    counts = f"{format_count(len(passages.passages), 'passage')} of {format_count(n_documents, 'document')}"
    return f"{counts}, searched by {methods}{reranker}"


def describe_omitted(passages: PassageSet) -> str:
    """Describe a search whose results all did not fit, such as "4 passages found in 2 documents …, but none fits"."""
    counts = format_count(passages.n_omitted, "passage")
    return f"{counts} found in {passages.searched.describe()}, but none fits in the context beside the message"


def describe_unknown_collection(name: str, existing_names: Sequence[str]) -> str:
    """Return sentences that there is no collection `name`, and which ones there are."""
    collections = "There are no collections yet."
    if existing_names:
        collections = f"The collections are: {', '.join(existing_names)}."
    return f"There is no collection of documents called {shorten(name, _MAX_NAME_CHARS)!r}. {collections}"


def describe_scores(scores: PassageScores) -> str:
    """Describe why a search found a passage; "" if the passage was not searched, but its document read whole."""
    parts = []
    if scores.bm25_rank is not None:
        parts.append(f"number {scores.bm25_rank} by keywords")
    if scores.similarity_rank is not None:
        parts.append(f"number {scores.similarity_rank} by meaning")
    if scores.similarity is not None:
        parts.append(f"similarity {scores.similarity:.2f}")
    if scores.relevance is not None:
        parts.append(f"relevance {scores.relevance:.2f}")
    return ", ".join(parts)


def list_cited_places(citations: Iterable[Citation]) -> list[str]:
    """Return a line such as "[3] report.pdf, page 2" for each cited passage, in the order of the numbers."""
    return [format_place(passage) for passage in list_cited_passages(citations)]


def list_cited_passages(citations: Iterable[Citation]) -> list[Passage]:
    """Return the cited passages in the order of their numbers, each once."""
    passages = {passage.number: passage for citation in citations for passage in citation.passages}
    return [passages[number] for number in sorted(passages)]


def format_place(passage: Passage) -> str:
    """Return the number and the place of a passage in a line, such as "[3] report.pdf, page 2"."""
    return f"[{passage.number}] {' '.join(passage.place.split())}"


def list_problems(citations: Sequence[Citation]) -> list[str]:
    """Return a line for each citation that the user should check, such as "[3] not in the passage: 42 %"."""
    lines = (f"[{', '.join(map(str, c.numbers))}] {c.problem}" for c in citations if c.problem)
    return list(dict.fromkeys(lines))
