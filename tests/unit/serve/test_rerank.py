"""Results of reranking requests in the forms of several APIs."""

from __future__ import annotations

import pytest

from edgechat.serve.rerank import RerankRequest, make_results

DOCUMENTS = ["a", "b", "c"]
SCORES = [-1.0, 2.0, -1.0]


def test_results_are_sorted_and_limited() -> None:
    body = RerankRequest(query="q", documents=["a", "b", "c"], top_n=2, return_documents=True)
    first, second = make_results(body, DOCUMENTS, SCORES, are_probabilities=False)
    assert first == {"index": 1, "relevance_score": pytest.approx(0.880797, abs=1e-6), "document": {"text": "b"}}
    assert (second["index"], second["relevance_score"]) == (0, pytest.approx(0.268941, abs=1e-6))


def test_probabilities_and_raw_scores_are_unchanged() -> None:
    for body, are_probabilities in (
        (RerankRequest(query="q", documents=["a"], raw_scores=True), False),
        (RerankRequest(query="q", documents=["a"]), True),
    ):
        assert make_results(body, ["a"], [0.25], are_probabilities=are_probabilities) == [
            {"index": 0, "relevance_score": 0.25}
        ]


def test_form_of_tei() -> None:
    body = RerankRequest(query="q", texts=["a"], return_text=True, raw_scores=True)
    assert make_results(body, ["a"], [3.0], are_probabilities=False) == [{"index": 0, "score": 3.0, "text": "a"}]


@pytest.mark.parametrize("logit", [1e6, -1e6, 0.0])
def test_extreme_logits_become_values_from_0_to_1(logit: float) -> None:
    body = RerankRequest(query="q", documents=["a"])
    (result,) = make_results(body, ["a"], [logit], are_probabilities=False)
    assert 0 <= result["relevance_score"] <= 1
