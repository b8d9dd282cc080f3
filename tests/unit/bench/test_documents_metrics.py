"""Retrieval metrics of the documents benchmark, and questions made from the chunks of a folder."""

from __future__ import annotations

import pytest

from edgechat.bench.documents_folder import SourceChunk, make_folder_questions
from edgechat.bench.documents_metrics import compute_scores, find_rank, summarize_method


def test_rank_is_that_of_the_first_right_result() -> None:
    assert find_rank(["a", "b", "c"], {"c", "b"}) == 2
    assert find_rank(["a"], {"b"}) is None
    assert find_rank([], {"b"}) is None


def test_scores_of_known_ranks() -> None:
    scores = compute_scores([1, 2, 5, 6, 11, None])
    assert scores.n_questions == 6
    assert scores.recall == pytest.approx({1: 1 / 6, 5: 3 / 6, 10: 4 / 6})
    assert scores.mrr == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 11) / 6)


def test_no_questions_have_no_recall() -> None:
    assert compute_scores([]).recall == {1: 0, 5: 0, 10: 0}


def test_scores_by_kind() -> None:
    scores = summarize_method("bm25", [1, None, 3], ["table", "code", "table"], query_ms=2.0)
    assert list(scores.by_kind) == ["code", "table"]
    assert scores.by_kind["table"].recall == {1: 0.5, 5: 1.0, 10: 1.0}
    assert scores.by_kind["code"].mrr == 0


def make_chunks() -> list[SourceChunk]:
    common = "This sentence is in every file and should therefore never become a question."
    return [
        SourceChunk(
            key=f"{document}{i}", document=document, heading=f"Manual {document} > Part {i} details",
            text=f"{common} Users of {document} can delete the files of section {i} after the update.\n\n| a | b |",
        )
        for document in ("alpha", "beta", "gamma")
        for i in range(4)
    ]  # fmt: skip


def test_questions_of_a_folder_are_known_items() -> None:
    chunks = make_chunks()
    questions = make_folder_questions(chunks, 18, seed=1)
    assert questions == make_folder_questions(chunks, 18, seed=1) != make_folder_questions(chunks, 18, seed=2)
    texts = {chunk.key: chunk.text for chunk in chunks}
    headings = {chunk.key: chunk.heading for chunk in chunks}
    for question in questions:
        (key,) = question.keys
        words = question.text.split()
        if question.wording == "heading":
            assert words == headings[key].replace(">", "").split()
        else:
            assert len(words) >= 4
            assert "every" not in words
        if question.wording == "sentence":
            assert set(words) <= set(texts[key].replace(".", "").split())
    assert [q.wording for q in questions[:3]] == ["sentence", "reworded", "heading"]


def test_reworded_question_has_other_words() -> None:
    questions = [q.text for q in make_folder_questions(make_chunks(), 30, seed=1) if q.wording == "reworded"]
    words = set(" ".join(questions).split())
    assert not words & {"delete", "files", "Users", "update"}
    assert words & {"remove", "documents", "people", "refresh"}


def test_each_document_has_a_question_before_any_has_two() -> None:
    chunks = make_chunks()
    documents = {chunk.key: chunk.document for chunk in chunks}
    first = [q for q in make_folder_questions(chunks, 9, seed=5) if q.wording == "sentence"]
    assert {documents[key] for q in first for key in q.keys} == {"alpha", "beta", "gamma"}


def test_repeated_texts_and_headings_make_no_questions() -> None:
    chunk = SourceChunk(
        key="1", document="a", heading="The same heading", text="The same long sentence stands in both of the files."
    )
    other = SourceChunk(key="2", document="b", heading=chunk.heading, text=chunk.text)
    assert make_folder_questions([chunk, other], 10, seed=1) == []
    assert len(make_folder_questions([chunk], 10, seed=1)) == 3
