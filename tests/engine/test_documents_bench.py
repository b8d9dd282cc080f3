"""The documents benchmark with tiny models: replies about documents, and times to the first token."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench.documents import DocumentsWorkload, run
from edgechat.documents.vector_scan import load_library
from edgechat.errors import UsageError
from tests.models import write_parrot, write_tiny_bert

pytestmark = pytest.mark.slow


def test_replies_about_documents_are_measured(
    tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    progress: list[str] = []
    model = write_parrot(tmp_path / "parrot.gguf", "Hi", n_ctx=16384)
    workload = DocumentsWorkload(n_documents=24, n_questions=40, model=model, n_answers=3, n_prompt_tokens=400, seed=1)
    report = run(workload, on_progress=progress.append)
    answers, first_tokens = report.answers, report.first_tokens
    assert answers is not None
    assert first_tokens is not None
    assert answers.n_answerable + answers.n_absent == 3
    assert answers.n_retrieved > 0
    [last] = [text for text in progress if text.startswith("Answering: question 3 of 3, correct: ")]
    n_correct_before = int(last.rpartition(" ")[2])
    assert answers.n_correct - n_correct_before in {0, 1}
    assert answers.seconds_per_answer > 0
    assert 1400 < first_tokens.n_prompt_tokens < 6000  # the vocabulary has about one token for each character
    assert first_tokens.cold_s > 0
    assert len(first_tokens.warm_s) == 3


@pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")
def test_search_with_an_embedding_model_and_a_reranker_is_measured(
    tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    embedder = write_tiny_bert(tmp_path / "tiny-embedder.gguf")
    reranker = write_tiny_bert(tmp_path / "tiny-reranker.gguf", is_reranker=True)
    workload = DocumentsWorkload(n_documents=12, n_questions=5, embedder=embedder, reranker=reranker)
    report = run(workload)
    assert [m.method for m in report.methods] == ["keywords (BM25)", "embeddings", "hybrid", "hybrid and reranker"]
    assert (report.embedding_model, report.reranker) == ("tiny-embedder", "tiny-reranker")
    assert report.embeddings is not None
    assert report.embeddings.n_chunks == report.n_chunks > 0
    assert run(workload).methods[3].total == report.methods[3].total


def test_other_model_is_refused(tmp_path: Path) -> None:
    reranker = write_tiny_bert(tmp_path / "tiny-reranker.gguf", is_reranker=True)
    with pytest.raises(UsageError, match="is not a usable embedding model"):
        run(DocumentsWorkload(n_documents=12, n_questions=5, embedder=reranker))
