"""Passages: places, encoding, and what damaged data does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.passages import (
    Passage,
    PassageScores,
    PassageSet,
    SearchedDocuments,
    decode_passages,
    encode_passages,
)
from edgechat.errors import DocumentError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.none() | st.integers(1, 10**6)
PASSAGES = st.builds(
    Passage, number=st.integers(1, 10**6), collection=TEXTS, document=TEXTS, text=TEXTS, path=TEXTS, heading=TEXTS,
    page=NUMBERS, last_page=NUMBERS, first_line=NUMBERS, last_line=NUMBERS,
    scores=st.builds(PassageScores, bm25_rank=NUMBERS, similarity=st.none() | st.floats(-1, 1)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "a.txt"),
        ({"page": 3}, "a.txt, page 3"),
        ({"page": 3, "last_page": 5}, "a.txt, pages 3-5"),
        ({"page": 3, "first_line": 9}, "a.txt, page 3"),
        ({"first_line": 7, "last_line": 7}, "a.txt, line 7"),
        ({"first_line": 7, "last_line": 20}, "a.txt, lines 7-20"),
    ],
)
def test_place(fields: Any, place: str) -> None:
    assert Passage(number=1, collection="c", document="a.txt", text="", **fields).place == place


@given(st.lists(PASSAGES, max_size=4), st.booleans(), TEXTS)
def test_decoding_returns_what_was_encoded(passages: list[Passage], is_whole: bool, query: str) -> None:
    passage_set = PassageSet(collections=("c",), passages=tuple(passages), is_whole=is_whole, query=query)
    data = encode_passages(passage_set)
    assert decode_passages(data) == passage_set
    assert encode_passages(decode_passages(data)) == data


@given(
    st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"collections":[],"passages":[{}]}', b"null", b"\xff"])
)
def test_other_data_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        decode_passages(data)


def test_description_of_a_search() -> None:
    keywords = SearchedDocuments(n_documents=1, n_chunks=12)
    assert keywords.describe() == "1 document (12 passages) by keywords"
    all_parts = SearchedDocuments(n_documents=2, n_chunks=1, embedding_model="minilm", reranker="r")
    assert all_parts.describe() == "2 documents (1 passage) by keywords and meaning, with a reranker"
