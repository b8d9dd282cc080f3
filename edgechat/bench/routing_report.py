"""Results of the routing benchmark: accuracy, escalated share and cost, and their table."""

from __future__ import annotations

import msgspec

from edgechat.bench.reasoning_report import Interval
from edgechat.bench.reasoning_tasks import TaskKind


class AnsweredTask(msgspec.Struct, frozen=True, kw_only=True):
    """Replies of one model to one task."""

    kind: TaskKind
    is_correct: bool
    """Whether the answer of the first reply is correct."""
    texts: list[str]
    tokens: list[int]
    """Number of generated tokens of each reply."""
    mean_logprob: float | None
    """Mean natural logprob of the tokens of the first reply; None if it has no token."""
    seconds: float
    """Time of the first reply."""


class RouteResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one model, or of a route with one threshold."""

    name: str
    min_logprob: float | None = None
    accuracy: Interval
    escalated_share: float
    small_tokens_per_task: float
    """Mean number of tokens that the small model generates for a task."""
    large_tokens_per_task: float
    seconds_per_task: float
    """Mean time of the first reply of the small model and of the reply of the large one, where they are needed."""


class RoutingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the routing benchmark."""

    small: str
    large: str
    temperature: float
    seed: int
    n_tasks: int
    results: list[RouteResult]
    small_answers: list[AnsweredTask]
    large_answers: list[AnsweredTask]


def format_table(report: RoutingReport) -> str:
    """Format the report as a Markdown table."""
    title = (
        f"{report.small} and {report.large}, temperature {report.temperature:g}, {report.n_tasks} tasks of seed "
        f"{report.seed}"
    )
    lines = [
        title,
        "",
        "| | correct | 95 % interval | escalated | tokens, small | tokens, large | seconds |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for result in report.results:
        accuracy = result.accuracy
        lines.append(
            f"| {result.name} | {accuracy.value:.1%} | {accuracy.low:.1%} to {accuracy.high:.1%} | "
            f"{result.escalated_share:.0%} | {result.small_tokens_per_task:.0f} | {result.large_tokens_per_task:.0f} | "
            f"{result.seconds_per_task:.1f} |"
        )
    return "\n".join(lines)
