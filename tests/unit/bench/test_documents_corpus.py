"""The synthetic corpus of the documents benchmark: planted facts, questions, and values in replies."""

from __future__ import annotations

import html
import random
from pathlib import Path

import pytest

from edgechat.bench.documents_corpus import MAX_DOCUMENTS, MIN_DOCUMENTS, make_corpus
from edgechat.bench.documents_values import ValueMaker, contains_value
from edgechat.errors import UsageError


def test_corpus_depends_only_on_its_numbers() -> None:
    corpora = [make_corpus(n_documents=60, n_questions=100, seed=seed) for seed in (1, 1, 2)]
    assert corpora[0] == corpora[1] != corpora[2]


@pytest.mark.parametrize("n_documents", [MIN_DOCUMENTS, 100, 240, MAX_DOCUMENTS])
def test_evidence_is_in_its_document_and_absent_facts_are_nowhere(n_documents: int) -> None:
    corpus = make_corpus(n_documents=n_documents, n_questions=400, seed=n_documents)
    assert len(corpus.documents) == n_documents
    for question in corpus.questions:
        if question.is_answerable:
            text = html.unescape(corpus.documents[question.document])
            assert all(evidence in text for evidence in question.evidence)
            assert contains_value(text, question.spellings)
        else:
            assert not question.evidence
            assert not question.spellings


def test_question_has_one_answer() -> None:
    corpus = make_corpus(n_documents=600, n_questions=5000, seed=3)
    assert len({question.text for question in corpus.questions}) == len(corpus.questions)


def test_questions_are_of_all_kinds() -> None:
    questions = make_corpus(n_documents=240, n_questions=400, seed=1).questions
    assert len(questions) == 400
    assert sum(not question.is_answerable for question in questions) == 80
    for source in ("report", "code", "table"):
        for wording in ("exact", "reworded"):
            matching = [q for q in questions if (q.source, q.wording, q.is_answerable) == (source, wording, True)]
            assert len(matching) >= 50


def test_reworded_question_shares_few_words_with_the_evidence() -> None:
    questions = make_corpus(n_documents=240, n_questions=2000, seed=1).questions
    for question in questions:
        if question.source == "report" and question.wording == "reworded" and question.is_answerable:
            words = {w for w in question.text.casefold().replace("?", "").split() if len(w) > 4}
            evidence = set(question.evidence[0].casefold().replace(".", "").split())
            assert len(words & evidence) <= 1, question


def test_documents_are_written_to_a_folder(tmp_path: Path) -> None:
    corpus = make_corpus(n_documents=20, n_questions=10, seed=1)
    corpus.write(tmp_path)
    files = {str(path.relative_to(tmp_path).as_posix()): path for path in tmp_path.rglob("*") if path.is_file()}
    assert files.keys() == corpus.documents.keys()
    assert sum(path.stat().st_size for path in files.values()) == corpus.n_bytes


@pytest.mark.parametrize("n_documents", [0, MIN_DOCUMENTS - 1, MAX_DOCUMENTS + 1])
def test_impossible_size_is_an_error(n_documents: int) -> None:
    with pytest.raises(UsageError, match=str(MAX_DOCUMENTS)):
        make_corpus(n_documents=n_documents, n_questions=1, seed=1)


def test_unknown_kind_of_value_is_an_error() -> None:
    from edgechat.bench.documents_corpus import _read_templates

    with pytest.raises(UsageError, match="'speed' is not a kind of value"):
        ValueMaker(_read_templates().lists, random.Random(0)).make("speed")


@pytest.mark.parametrize(
    ("reply", "spellings"),
    [
        ("The load is **30** tonnes [2].", ("30",)), ("It costs 415,000 euros.", ("415000",)),
        ("It costs 415000 euros.", ("415,000",)), ("It costs 415 000 €.".replace(" ", "\u202f"), ("415,000",)),
        ("On March 14th, 2019.", ("14 March 2019", "March 14 2019")), ("the 14th of march 2019", ("14 March 2019",)),
        ("Call `4711`.", ("4711",)), ("MARA Lindqvist", ("Mara Lindqvist",)), ("6.5 bar.", ("6.5",)), ("7.", ("7",)),
    ],
)  # fmt: skip
def test_value_in_a_reply_is_recognized(reply: str, spellings: tuple[str, ...]) -> None:
    assert contains_value(reply, spellings)


@pytest.mark.parametrize(
    ("reply", "spelling"), [("130 tonnes", "30"), ("30.5", "30"), ("1.30", "30"), ("3,000", "3"), ("", "7")]
)
def test_part_of_another_value_is_not_the_value(reply: str, spelling: str) -> None:
    assert not contains_value(reply, (spelling,))
