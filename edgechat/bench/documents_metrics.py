"""Retrieval metrics: the share of questions whose passage is among the first results, and the mean reciprocal rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

CUTOFFS: Final = (1, 5, 10)

Rank = int | None
"""Rank of the first right passage, from 1; None if it was not found."""


class RetrievalScores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one search method over some questions."""

    n_questions: int
    recall: dict[int, float]
    """Share of the questions with a right passage among the first k results, by k."""
    mrr: float
    """Mean of 1/rank of the first right passage; 0 counts for a question without one in the results."""


class MethodScores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one search method, over all questions and by kind of question."""

    method: str
    total: RetrievalScores
    by_kind: dict[str, RetrievalScores]
    query_ms: float | None = None
    """Median time of a query in milliseconds; None if the method was not timed by itself."""


def find_rank(results: Sequence[str], right: Collection[str]) -> Rank:
    """Return the rank of the first result that is in `right`."""
    return next((rank for rank, result in enumerate(results, 1) if result in right), None)


def compute_scores(ranks: Sequence[Rank]) -> RetrievalScores:
    """Compute the scores for the ranks of several questions. Without questions, all scores are 0."""
    n = max(1, len(ranks))
    return RetrievalScores(
        n_questions=len(ranks),
        recall={k: sum(rank is not None and rank <= k for rank in ranks) / n for k in CUTOFFS},
        mrr=sum(1 / rank for rank in ranks if rank is not None) / n,
    )


def summarize_method(
    method: str, ranks: Sequence[Rank], kinds: Sequence[str], query_ms: float | None = None
) -> MethodScores:
    """Compute the scores of a method from the ranks of all questions and the kinds of the same questions."""
    by_kind: Mapping[str, list[Rank]] = {kind: [] for kind in sorted(set(kinds))}
    for kind, rank in zip(kinds, ranks, strict=True):
        by_kind[kind].append(rank)
    return MethodScores(
        method=method, total=compute_scores(ranks),
        by_kind={kind: compute_scores(kind_ranks) for kind, kind_ranks in by_kind.items()}, query_ms=query_ms,
    )  # fmt: skip
