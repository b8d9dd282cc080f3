"""Results of the reasoning benchmark: accuracy with confidence intervals, cost, and their table."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.reasoning_tasks import TaskKind

# 97.5th percentile of the standard normal distribution, for 95 % intervals.
_Z: Final = 1.959964
_N_RESAMPLES: Final = 4000


class Interval(msgspec.Struct, frozen=True):
    """Estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one way to answer the tasks."""

    name: str
    accuracy: Interval
    accuracy_by_kind: dict[TaskKind, float]
    difference: Interval
    """Difference of the accuracy to that of single replies to the same tasks."""
    p_value: float
    """Probability of such a difference, or a larger one, between equally good methods (exact McNemar test)."""
    tokens_per_task: float
    """Mean number of generated tokens for one task, including those of replies that were ended early."""
    seconds_per_task: float
    replies_per_task: float
    decode_tps: float
    """Speed of decoding in tokens per second, over all replies that run at the same time."""


class ReasoningReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the reasoning benchmark."""

    model: str
    backend: str
    n_threads: int
    temperature: float
    seed: int
    n_tasks: int
    n_parallel: int = 1
    """Number of tasks that were answered at the same time; with more than one, times and speeds mean nothing."""
    methods: list[MethodResult]
    correct: dict[str, list[bool]]
    """Whether the answer of each task is correct, by method."""


def compute_wilson_interval(n_correct: int, n: int) -> Interval:
    """Return the share of correct answers with its Wilson interval."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    share, square = n_correct / n, _Z * _Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half_width = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return Interval(share, max(0.0, centre - half_width), min(1.0, centre + half_width))


def compare_paired(baseline: Sequence[bool], other: Sequence[bool]) -> Interval:
    """Return the difference of two accuracies for the same tasks, with a bootstrap interval over the tasks."""
    differences = [int(b) - int(a) for a, b in zip(baseline, other, strict=True)]
    n = len(differences)
    if n == 0:
        return Interval(0.0, -1.0, 1.0)
    rng = random.Random(0)  # noqa: S311  (a reproducible interval)
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(_N_RESAMPLES))
    return Interval(sum(differences) / n, means[_N_RESAMPLES // 40], means[-_N_RESAMPLES // 40 - 1])


def compute_mcnemar_p(baseline: Sequence[bool], other: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test."""
    n_worse = sum(a and not b for a, b in zip(baseline, other, strict=True))
    n_better = sum(b and not a for a, b in zip(baseline, other, strict=True))
    n, smaller = n_worse + n_better, min(n_worse, n_better)
    tail: float = sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n
    return min(1.0, 2 * tail)


def format_table(report: ReasoningReport) -> str:
    """Format the report as a Markdown table."""
    kinds = list(report.methods[0].accuracy_by_kind) if report.methods else []
    heading = "| | correct | 95 % interval | against single | p | " + "".join(f"{kind} | " for kind in kinds)
    parallel = f", {report.n_parallel} at a time" if report.n_parallel > 1 else ""
    title = (
        f"{Path(report.model).name}, {report.backend}, {report.n_threads} threads, temperature {report.temperature:g}, "
        f"{report.n_tasks} tasks of seed {report.seed}{parallel}"
    )
    rule = "|---|--:|---|---|--:|" + "--:|" * (len(kinds) + 4)
    lines = [title, "", f"{heading}tokens | replies | seconds | tokens/s |", rule]
    for method in report.methods:
        accuracy, difference = method.accuracy, method.difference
        against_single = (
            "| "
            if method.name == "single"
            else (f"{difference.value:+.1%} ({difference.low:+.1%} to {difference.high:+.1%}) | {method.p_value:.2g}")
        )
        times = f"{method.seconds_per_task:.1f} | {method.decode_tps:.0f}" if report.n_parallel == 1 else "| "
        lines.append(
            f"| {method.name} | {accuracy.value:.1%} | {accuracy.low:.1%} to {accuracy.high:.1%} | {against_single} | "
            + "".join(f"{method.accuracy_by_kind[kind]:.0%} | " for kind in kinds)
            + f"{method.tokens_per_task:.0f} | {method.replies_per_task:.1f} | {times} |"
        )
    return "\n".join(lines)
