"""Reranking over HTTP with a tiny reranker, beside a chat model and an embedding model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Cli
from tests.models import write_tiny_bert
from tests.serve.client import ServerProcess, user

DOCUMENTS = ["the world", "hello", "a b c"]


def rerank(server: ServerProcess, path: str = "/v1/rerank", **body: Any) -> Any:
    status, answer, _ = server.request(path, {"query": "hello world", "documents": DOCUMENTS} | body)
    assert status == 200, answer
    return answer


def test_documents_are_sorted_by_relevance(tiny_server: ServerProcess) -> None:
    answer = rerank(tiny_server)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert {result["index"] for result in answer["results"]} == {0, 1, 2}
    assert (answer["model"], answer["object"]) == ("reranker", "list")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 3 * 4 + 2 + 1 + 3
    for path in ("/rerank", "/v1/reranking", "/reranking", "/v2/rerank"):
        assert rerank(tiny_server, path)["results"] == answer["results"]


def test_forms_of_documents_and_results(tiny_server: ServerProcess) -> None:
    objects = rerank(tiny_server, documents=[{"text": text} for text in DOCUMENTS], return_documents=True, top_n=1)
    (best,) = objects["results"]
    assert best["document"] == {"text": DOCUMENTS[best["index"]]}
    assert best["index"] == rerank(tiny_server, top_n=99)["results"][0]["index"]
    status, results, _ = tiny_server.request(
        "/rerank", {"query": "hello world", "texts": DOCUMENTS, "return_text": True}
    )
    assert (status, results[0]["text"]) == (200, best["document"]["text"])
    assert rerank(tiny_server, model="jina-reranker-v2")["model"] == "reranker"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"documents": []}, "documents"), ({"documents": None}, "documents"), ({"documents": 5}, "documents"),
        ({"documents": [1, 2]}, "documents"), ({"documents": [{"title": "x"}]}, "documents"),
        ({"documents": ["a"] * 1025}, "1025 documents"), ({"query": None}, "query"), ({"top_n": 0}, "top_n"),
        ({"documents": ["a", "hello " * 200]}, "documents[1]: The query and the document have"),
        ({"model": "tiny"}, "tiny is not a reranker"), ({"model": "tiny-bert"}, "tiny-bert is not a reranker"),
    ],
)  # fmt: skip
def test_invalid_request_is_reported(tiny_server: ServerProcess, body: dict[str, Any], message: str) -> None:
    status, answer, _ = tiny_server.request("/v1/rerank", {"query": "hello", "documents": ["a"]} | body)
    assert status == 400, answer
    assert message in answer["error"]["message"]


def test_reranker_does_only_rerank(tiny_server: ServerProcess, server: ServerProcess, cli: Cli, tmp_path: Path) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": user("Hi")}), ("/v1/embeddings", {"input": "a"}),
        ("/api/embed", {"input": "a"}), ("/api/chat", {"messages": user("Hi")}),
    ):  # fmt: skip
        status, answer, _ = tiny_server.request(path, body | {"model": "reranker"})
        assert status == 400, answer
    assert tiny_server.request("/v1/embeddings", {"input": "a", "model": "ada"})[1]["model"] == "tiny-bert"
    assert tiny_server.request("/v1/models/reranker")[1]["meta"]["is_reranker"]
    assert tiny_server.request("/api/show", {"model": "reranker"})[1]["capabilities"] == ["reranker"]
    status, answer, _ = server.request("/v1/rerank", {"query": "a", "documents": ["a"]})
    assert (status, "No reranker is served" in answer["error"]["message"]) == (400, True)
    done = cli("ask", "-m", str(write_tiny_bert(tmp_path / "reranker.gguf", is_reranker=True)), "hello")
    assert "is a reranker and cannot chat" in done.stderr
    assert not tiny_server.has_printed("chat template")  # which such models need not have


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
BODY = st.fixed_dictionaries({}, optional={
    "query": st.text() | JSON, "documents": st.lists(st.text(), max_size=4) | JSON, "top_n": st.integers(-1, 5) | JSON,
    "texts": st.none() | st.lists(st.text(), max_size=3) | JSON, "return_documents": st.booleans() | JSON,
    "model": st.sampled_from(("reranker", "tiny-bert", "x", None)) | JSON, "raw_scores": st.booleans() | JSON,
})  # fmt: skip


def test_random_bodies_cause_no_server_error(tiny_server: ServerProcess) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(BODY)
    def send(body: dict[str, Any]) -> None:
        status, answer, _ = tiny_server.request("/v1/rerank", body)
        assert status < 500, answer

    send()
    assert "Internal error" not in "".join(tiny_server.errors)
