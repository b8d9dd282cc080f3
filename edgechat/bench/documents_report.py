"""Results of the documents benchmark, and their table."""

from __future__ import annotations

import statistics

import msgspec

from edgechat.bench.documents_metrics import CUTOFFS, MethodScores
from edgechat.humanize import format_count, format_size

_MEGABYTE = 1_000_000


class IndexSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one part of indexing."""

    elapsed_s: float
    n_bytes: int
    """Size of the files, or of the text that was embedded."""
    n_chunks: int
    peak_bytes: int
    """Largest memory of this process and its children (proportional set size); 0 if the system does not report it."""

    @property
    def s_per_mb(self) -> float:
        """Seconds per megabyte (10^6 bytes)."""
        return self.elapsed_s / (self.n_bytes / _MEGABYTE) if self.n_bytes else 0.0


class AnswerScores(msgspec.Struct, frozen=True, kw_only=True):
    """Replies of a chat model to the questions."""

    model: str
    n_answerable: int
    n_absent: int
    n_correct: int
    """Replies that contain the planted value, among those to answerable questions."""
    n_retrieved: int
    """Answerable questions whose prompt had a passage with the evidence."""
    n_not_found: int
    """Answerable questions to which the reply says that the documents do not answer them."""
    n_false_claims: int
    """Questions without an answer in the documents to which the reply claims one."""
    n_cited: int
    """Replies to answerable questions with a citation of a passage."""
    n_cited_right: int
    """Replies to answerable questions that cite a passage with the evidence."""
    n_suspicious: int
    """Citations of sentences with numbers or names that the cited passages do not contain."""
    seconds_per_answer: float


class FirstTokenTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times from the question to the first token in new processes of `edgechat ask`, in seconds."""

    model: str
    n_prompt_tokens: int
    """Number of tokens of the first prompt."""
    cold_s: float
    """First question about the documents."""
    warm_s: list[float]
    """Further questions about the same documents, each in a new process and a new conversation."""


class DocumentsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the documents benchmark."""

    source: str
    """Path of the folder; "" for the synthetic corpus."""
    seed: int
    n_documents: int
    n_failed: int
    """Number of files that could not be read."""
    n_bytes: int
    n_chunks: int
    n_questions: int
    """Number of questions with an answer in the documents."""
    n_split: int
    """Number of questions whose evidence no single chunk contains, for example in a file that could not be read. They
    count as not found."""
    embedding_model: str
    """Name of the embedding model; "" without one."""
    reranker: str
    index: IndexSpeed
    embeddings: IndexSpeed | None
    methods: list[MethodScores]
    search_peak_bytes: int
    answers: AnswerScores | None = None
    first_tokens: FirstTokenTimes | None = None


def format_table(report: DocumentsReport) -> str:
    """Format the report as Markdown."""
    source = report.source or f"synthetic documents of seed {report.seed}"
    parts = [
        format_count(report.n_documents, "document"), format_size(report.n_bytes),
        format_count(report.n_chunks, "chunk"), format_count(report.n_questions, "question"),
    ]  # fmt: skip
    if report.n_failed:
        parts.append(f"{format_count(report.n_failed, 'file')} not read")
    if report.n_split:
        parts.append(f"{format_count(report.n_split, 'question')} without a chunk that has the answer")
    lines = [f"{source}: {', '.join(parts)}", "", *_format_methods(report), "", *_format_speeds(report)]
    if report.answers is not None:
        lines += ["", *_format_answers(report.answers)]
    if report.first_tokens is not None:
        lines += ["", _format_first_tokens(report.first_tokens)]
    return "\n".join(lines)


def _format_first_tokens(times: FirstTokenTimes) -> str:
    text = f"First token with {times.model}, prompt of {times.n_prompt_tokens} tokens: cold {times.cold_s:.2f} s"
    if times.warm_s:
        warm = ", ".join(f"{seconds:.2f}" for seconds in times.warm_s)
        text += f", then in new processes {warm} s, {times.cold_s / statistics.median(times.warm_s):.0f} times sooner"
    return text


def _format_methods(report: DocumentsReport) -> list[str]:
    kinds = list(report.methods[0].by_kind) if report.methods else []
    columns = [*(f"recall@{k}" for k in CUTOFFS), "MRR", "ms/query", *(f"@5 {kind}" for kind in kinds)]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for method in report.methods:
        cells = [f"{method.total.recall[k]:.3f}" for k in CUTOFFS]
        cells += [f"{method.total.mrr:.3f}", "" if method.query_ms is None else f"{method.query_ms:.1f}"]
        cells += [f"{method.by_kind[kind].recall[5]:.3f}" for kind in kinds]
        lines.append(f"| {method.method} | {' | '.join(cells)} |")
    return lines


def _format_speeds(report: DocumentsReport) -> list[str]:
    lines = [_format_speed("Index of keywords", report.index)]
    if report.embeddings is not None:
        lines.append(_format_speed(f"Embeddings with {report.embedding_model}", report.embeddings))
    else:
        lines.append("No embedding model: only keywords were searched.")
    if report.search_peak_bytes:
        lines.append(f"Search: {format_size(report.search_peak_bytes)} of memory at most")
    return lines


def _format_speed(name: str, speed: IndexSpeed) -> str:
    rate = f", {speed.n_chunks / speed.elapsed_s:.0f} chunks/s" if speed.elapsed_s else ""
    memory = f", {format_size(speed.peak_bytes)} of memory at most" if speed.peak_bytes else ""
    return f"{name}: {speed.elapsed_s:.1f} s, {speed.s_per_mb:.2f} s/MB{rate}{memory}"


def _format_answers(answers: AnswerScores) -> list[str]:
    def share(count: int, total: int) -> str:
        return f"{count} of {total} ({count / total:.0%})" if total else "none"

    n = answers.n_answerable
    return [
        f"| replies of {answers.model} | |",
        "|---|---|",
        f"| correct | {share(answers.n_correct, n)} |",
        f"| evidence in the prompt | {share(answers.n_retrieved, n)} |",
        f"| not found, although the documents have the answer | {share(answers.n_not_found, n)} |",
        f"| with a citation | {share(answers.n_cited, n)} |",
        f"| with a citation of the right passage | {share(answers.n_cited_right, n)} |",
        f"| false claims about absent facts | {share(answers.n_false_claims, answers.n_absent)} |",
        f"| citations with numbers or names that are not in the passage | {answers.n_suspicious} |",
        f"| seconds for each answer | {answers.seconds_per_answer:.1f} |",
    ]
