"""The documents benchmark with scripted embeddings: indexing, questions, ranks of each method, and the report."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from edgechat.bench.documents import DocumentsWorkload, MemoryMonitor, find_evidence, measure, run
from edgechat.bench.documents_corpus import Question
from edgechat.bench.documents_folder import SourceChunk
from edgechat.bench.documents_report import AnswerScores, FirstTokenTimes, format_table
from edgechat.documents.vector_scan import load_library
from edgechat.errors import UsageError


class HashEmbedder:
    """Embeds a text as the counts of its words, weighted by their length, each in a dimension by its hash."""

    model_name = "hash"
    model_id = "hash-1"
    n_embd = 512

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> array[float]:
        values = [0.0] * self.n_embd
        for word in text.casefold().split():
            values[zlib.crc32(word.strip("?.").encode()) % self.n_embd] += len(word) ** 2  # long words are rare
        norm = math.sqrt(math.fsum(x * x for x in values)) or 1.0
        return array("f", [x / norm for x in values])


class ReversingReranker:
    """Prefers the texts that are last in the list."""

    name = "reversing"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [i / len(texts) for i in range(len(texts))]


WORKLOAD = DocumentsWorkload(n_documents=30, n_questions=60)


@pytest.fixture(scope="module")
def chunks() -> list[SourceChunk]:
    texts = ("The load is\n30 tonnes.", "The load is 30  tonnes. It is red.", "The load is 31 tonnes.")
    return [SourceChunk(key=str(i), document="a", heading="", text=text) for i, text in enumerate(texts)]


def test_evidence_is_found_across_line_breaks(chunks: list[SourceChunk]) -> None:
    question = Question(
        text="?",
        wording="exact",
        source="report",
        document="a",
        evidence=("The load is 30 tonnes.",),
        spellings=("30",),
    )
    assert find_evidence(question, chunks) == {"0", "1"}
    both = msgspec.structs.replace(question, evidence=("30 tonnes", "red"))
    assert find_evidence(both, chunks) == {"1"}


def test_keyword_search_of_the_corpus_is_measured() -> None:
    progress: list[str] = []
    report = run(WORKLOAD, on_progress=progress.append)
    [keywords] = report.methods
    assert report.n_questions == keywords.total.n_questions > 40
    assert keywords.by_kind["table exact"].recall[5] == 1.0
    assert 0 < keywords.total.recall[1] <= keywords.total.recall[5] <= keywords.total.recall[10] <= 1
    assert report.index.n_bytes == report.n_bytes > 0
    assert report.embeddings is None
    assert progress[-1] == f"Searching: question {report.n_questions} of {report.n_questions}"
    table = format_table(report)
    assert "No embedding model" in table
    assert f"{keywords.total.mrr:.3f}" in table
    same = run(WORKLOAD)
    assert [m.total for m in same.methods] == [m.total for m in report.methods]


@pytest.mark.skipif(load_library() is None, reason="needs the library for vectors in the native bundle")
def test_each_method_is_measured(tmp_path: Path) -> None:
    with MemoryMonitor() as memory:
        report = measure(WORKLOAD, tmp_path, HashEmbedder(), ReversingReranker(), memory, lambda text: None)
    assert [m.method for m in report.methods] == ["keywords (BM25)", "embeddings", "hybrid", "hybrid and reranker"]
    _, embeddings, hybrid, reranked = (m.total for m in report.methods)
    assert embeddings.recall[10] > 0.3
    assert hybrid.recall[10] > embeddings.recall[10]
    assert reranked.mrr < hybrid.mrr
    assert report.embeddings is not None
    assert report.embeddings.n_chunks == report.n_chunks
    assert "Embeddings with hash" in format_table(report)


def test_folder_of_the_user_is_measured(tmp_path: Path) -> None:
    for name in ("alpha", "beta"):
        text = "\n\n".join(
            f"## Part {i} of {name}\n\nUsers of {name} can delete the files of section {i} after the update of {name}."
            for i in range(30)
        )
        (tmp_path / f"{name}.md").write_text(f"# The {name} manual\n\n{text}\n")
    report = run(DocumentsWorkload(folder=tmp_path, n_questions=30))
    assert report.source == str(tmp_path)
    assert (report.n_documents, report.n_questions) == (2, 30)
    assert report.methods[0].total.recall[10] > 0.5
    assert set(report.methods[0].by_kind) == {"heading", "reworded", "sentence"}


def test_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no documents with text"):
        run(DocumentsWorkload(folder=tmp_path))
    (tmp_path / "a.txt").write_text("Short.\n")
    with pytest.raises(UsageError, match="no sentences or headings"):
        run(DocumentsWorkload(folder=tmp_path))


def test_answers_and_first_tokens_are_in_the_table() -> None:
    report = msgspec.structs.replace(
        run(DocumentsWorkload(n_documents=12, n_questions=5)),
        answers=AnswerScores(
            model="tiny", n_answerable=40, n_absent=10, n_correct=30, n_retrieved=36, n_not_found=2, n_false_claims=4,
            n_cited=33, n_cited_right=29, n_suspicious=3, seconds_per_answer=1.25,
        ),
        first_tokens=FirstTokenTimes(model="tiny", n_prompt_tokens=6000, cold_s=30.0, warm_s=[0.5, 0.6]),
    )  # fmt: skip
    table = format_table(report)
    assert "| correct | 30 of 40 (75%) |" in table
    assert "| false claims about absent facts | 4 of 10 (40%) |" in table
    assert "prompt of 6000 tokens: cold 30.00 s, then in new processes 0.50, 0.60 s, 55 times sooner" in table
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report
