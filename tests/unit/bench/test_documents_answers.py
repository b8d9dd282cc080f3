"""Judgement of replies in the documents benchmark, and the document for times to the first token."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench.documents_answers import judge_reply, says_not_found, summarize_judgements
from edgechat.bench.documents_corpus import Question
from edgechat.bench.documents_first_token import write_document
from edgechat.documents.passages import Passage
from edgechat.documents.prompt_text import NOT_FOUND

QUESTION = Question(
    text="What is the maximum permitted load of the Elmford bridge?", wording="exact", source="report",
    document="reports/elmford-bridge.md", evidence=("The maximum permitted load is 30 tonnes.",), spellings=("30",),
)  # fmt: skip
ABSENT = Question(text="Who led the inspection of the Elmford bridge?", wording="exact", source="report")
PASSAGES = [
    Passage(number=1, collection="bench", document="reports/elmford-ferry.md", text="It carries 30 passengers."),
    Passage(
        number=2, collection="bench", document="reports/elmford-bridge.md",
        text="It is old. The maximum\npermitted load is 30 tonnes.",
    ),
]  # fmt: skip


def test_correct_reply_with_the_right_citation() -> None:
    judgement = judge_reply(QUESTION, "The maximum load is **30 tonnes** [2].", PASSAGES)
    assert judgement.is_correct
    assert judgement.is_retrieved
    assert judgement.is_cited
    assert judgement.is_cited_right
    assert not judgement.says_not_found
    assert judgement.n_suspicious == 0


def test_wrong_number_and_wrong_citation() -> None:
    judgement = judge_reply(QUESTION, "The maximum load is 45 tonnes [1].", PASSAGES)
    assert not judgement.is_correct
    assert judgement.is_cited
    assert not judgement.is_cited_right
    assert judgement.n_suspicious == 1


def test_citation_of_a_passage_that_does_not_exist_is_none() -> None:
    assert not judge_reply(QUESTION, "It is 30 tonnes [7].", PASSAGES).is_cited


def test_evidence_that_was_not_found() -> None:
    assert not judge_reply(QUESTION, NOT_FOUND, PASSAGES[:1]).is_retrieved


@pytest.mark.parametrize(
    "reply",
    [
        NOT_FOUND, "The documents do not mention who led it.", "I couldn't find the name.",
        "The date is not specified.",
        "There is no information about this.", "It isn't certain; the passages don\u2019t say.",
        "It is not explicitly stated.",
    ],
)  # fmt: skip
def test_reply_that_nothing_was_found(reply: str) -> None:
    assert says_not_found(reply)


@pytest.mark.parametrize("reply", ["", "Greta Ivanova led it [2].", "It was closed on 3 May, not in June.", "No."])
def test_other_reply_is_a_claim(reply: str) -> None:
    assert not says_not_found(reply)


def test_replies_are_counted() -> None:
    judgements = [
        judge_reply(QUESTION, "It is 30 tonnes [2].", PASSAGES), judge_reply(QUESTION, NOT_FOUND, PASSAGES),
        judge_reply(ABSENT, "Greta Ivanova [2].", PASSAGES), judge_reply(ABSENT, NOT_FOUND, PASSAGES),
    ]  # fmt: skip
    scores = summarize_judgements("tiny", judgements, 2.0)
    assert (scores.n_answerable, scores.n_absent) == (2, 2)
    assert (scores.n_correct, scores.n_not_found, scores.n_false_claims) == (1, 1, 1)
    assert (scores.n_retrieved, scores.n_cited, scores.n_cited_right, scores.n_suspicious) == (2, 1, 1, 1)


@pytest.mark.parametrize("n_tokens", [100, 6000])
def test_document_has_about_the_length(tmp_path: Path, n_tokens: int) -> None:
    write_document(tmp_path / "document.md", n_tokens, seed=1)
    assert 3 * n_tokens < len((tmp_path / "document.md").read_text(encoding="utf-8")) < 4.5 * n_tokens
