"""Descriptions of passages for the user."""

from __future__ import annotations

import msgspec
import pytest

from edgechat.documents.citations import find_citations
from edgechat.documents.descriptions import describe_scores, describe_set, list_cited_places, list_problems
from edgechat.documents.passages import Passage, PassageScores, PassageSet, SearchedDocuments

PASSAGES = tuple(
    Passage(number=n, collection="c", document=f"{'ab'[n % 2]}.txt", text="x", first_line=n, last_line=n + 1)
    for n in (1, 2, 3)
)
FOUND = PassageSet(collections=("c",), passages=PASSAGES, query="q", searched=SearchedDocuments(n_documents=5))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "3 passages of 2 documents, searched by keywords"),
        ({"passages": PASSAGES[:1]}, "1 passage of 1 document, searched by keywords"),
        ({"is_whole": True}, "2 documents, read whole"),
        ({"passages": ()}, "Nothing found in 5 documents (0 passages) by keywords"),
        (
            {"passages": (), "n_omitted": 2},
            "2 passages found in 5 documents (0 passages) by keywords, but none fits in the context beside the message",
        ),
        (
            {"searched": SearchedDocuments(embedding_model="m", reranker="r")},
            "3 passages of 2 documents, searched by keywords and meaning, with a reranker",
        ),
    ],
)
def test_set_is_described_in_one_line(changes: dict[str, object], text: str) -> None:
    assert describe_set(msgspec.structs.replace(FOUND, **changes)) == text


def test_scores_name_only_the_searches_that_ran() -> None:
    assert describe_scores(PassageScores()) == ""
    assert describe_scores(PassageScores(bm25_rank=2)) == "number 2 by keywords"
    all_scores = PassageScores(bm25_rank=2, similarity_rank=1, similarity=0.456, relevance=0.9)
    assert describe_scores(all_scores) == "number 2 by keywords, number 1 by meaning, similarity 0.46, relevance 0.90"


def test_cited_places_are_listed_once_in_the_order_of_their_numbers() -> None:
    citations = find_citations("a [3]. b [1, 3] and [9].", PASSAGES)
    assert list_cited_places(citations) == ["[1] b.txt, lines 1-2", "[3] b.txt, lines 3-4"]
    assert list_problems(citations) == ["[9] no such passage: 9"]
