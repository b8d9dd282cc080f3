"""Benchmark of routes: accuracy and cost of a small model, a large one, and routes with several thresholds.

Each model answers the tasks of the reasoning benchmark once. What a route would answer follows from these replies: the
reply of the small model, or, where there is a doubt about it, that of the large one. So all thresholds are compared on
the same replies, and further thresholds cost nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.reasoning_report import compute_wilson_interval
from edgechat.bench.reasoning_tasks import Task, make_task
from edgechat.bench.routing_report import AnsweredTask, RouteResult, RoutingReport
from edgechat.config import Sampling, Settings
from edgechat.engine import protocol
from edgechat.models.loaded_model import LoadedModel
from edgechat.prompt.agreement.doubts import find_doubt
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions

# Shares of the replies of the small model that the default thresholds escalate.
_DEFAULT_SHARES: Final = (0.1, 0.25, 0.5, 0.75)


class RoutingWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Models, tasks and thresholds of a measurement."""

    small: Path
    large: Path
    n_tasks: int
    temperature: float
    max_tokens: int
    seed: int = 1
    n_threads: int | None = None
    min_logprobs: tuple[float, ...] = ()
    """Thresholds of the mean logprob; () for those that escalate 10, 25, 50 and 75 % of the replies."""
    agree: bool = False
    """Also measure a route that compares two replies of the small model."""


def run(workload: RoutingWorkload, on_progress: Callable[[str], None] = lambda text: None) -> RoutingReport:
    """Answer all tasks with both models, one model after the other. Raises EdgechatError."""
    tasks = [make_task(workload.seed, index) for index in range(workload.n_tasks)]
    small = _answer_all(workload, workload.small, tasks, 2 if workload.agree else 1, on_progress)
    large = _answer_all(workload, workload.large, tasks, 1, on_progress)
    min_logprobs = workload.min_logprobs or choose_thresholds([answered.mean_logprob for answered in small])
    return RoutingReport(
        small=workload.small.name, large=workload.large.name, temperature=workload.temperature, seed=workload.seed,
        n_tasks=len(tasks), small_answers=small, large_answers=large,
        results=compare_routes(small, large, min_logprobs, agree=workload.agree),
    )  # fmt: skip


def choose_thresholds(mean_logprobs: Sequence[float | None]) -> tuple[float, ...]:
    """Return thresholds, lowest first, that escalate 10, 25, 50 and 75 % of replies with these mean logprobs."""
    known = sorted(value for value in mean_logprobs if value is not None and math.isfinite(value))
    values = [known[min(len(known) - 1, round(share * len(known)))] for share in _DEFAULT_SHARES] if known else []
    return tuple(sorted({round(value, 3) for value in values}))


def compare_routes(
    small: Sequence[AnsweredTask], large: Sequence[AnsweredTask], min_logprobs: Sequence[float], *, agree: bool
) -> list[RouteResult]:
    """Return the results of each model alone, and of the routes that the answers of both models imply."""
    n = len(small)
    results = [
        _sum_up("small alone", small, large, [False] * n, n_replies=1),
        _sum_up("large alone", [msgspec.structs.replace(s, tokens=[], seconds=0.0) for s in small], large, [True] * n),
        _sum_up("route, dont_know", small, large, _find_doubts(small), n_replies=1),
    ]
    for value in min_logprobs:
        doubts = _find_doubts(small, min_logprob=value)
        name = f"route, min_logprob {value:g}"
        results.append(_sum_up(name, small, large, doubts, n_replies=1, min_logprob=value))
    if agree:
        results.append(_sum_up("route, agree", small, large, _find_doubts(small, agree=True), n_replies=2))
    return results


def _find_doubts(
    answers: Sequence[AnsweredTask], *, min_logprob: float | None = None, agree: bool = False
) -> list[bool]:
    return [
        find_doubt(a.texts if agree else a.texts[:1], a.mean_logprob, min_logprob=min_logprob, dont_know=True,
                   agree=agree) is not None
        for a in answers
    ]  # fmt: skip


def _sum_up(
    name: str, small: Sequence[AnsweredTask], large: Sequence[AnsweredTask], escalated: Sequence[bool],
    *, n_replies: int = 0, min_logprob: float | None = None,
) -> RouteResult:  # fmt: skip
    """Return the result of a route that escalates some tasks, of which the small model generates `n_replies` each."""
    n = len(small)
    rows = list(zip(small, large, escalated, strict=True))
    n_correct = sum((b if is_escalated else a).is_correct for a, b, is_escalated in rows)
    return RouteResult(
        name=name, min_logprob=min_logprob, accuracy=compute_wilson_interval(n_correct, n),
        escalated_share=sum(escalated) / max(1, n),
        small_tokens_per_task=sum(sum(a.tokens[:n_replies]) for a, _, _ in rows) / max(1, n),
        large_tokens_per_task=sum(sum(b.tokens) for _, b, is_escalated in rows if is_escalated) / max(1, n),
        seconds_per_task=sum(a.seconds + (b.seconds if is_escalated else 0.0) for a, b, is_escalated in rows)
        / max(1, n),
    )  # fmt: skip


def _answer_all(
    workload: RoutingWorkload, path: Path, tasks: Sequence[Task], n_replies: int, on_progress: Callable[[str], None]
) -> list[AnsweredTask]:
    model = LoadedModel()
    settings = Settings(n_threads=workload.n_threads) if workload.n_threads else Settings()
    answers: list[AnsweredTask] = []
    try:
        model.open(path, settings, lambda event: on_progress(event.message))
        for index, task in enumerate(tasks):
            answers.append(_answer(model, workload, task, index, n_replies))
            n_correct = sum(answered.is_correct for answered in answers)
            on_progress(f"{path.name}: task {index + 1} of {len(tasks)}, {n_correct} correct")
    finally:
        model.close()
    return answers


def _answer(model: LoadedModel, workload: RoutingWorkload, task: Task, index: int, n_replies: int) -> AnsweredTask:
    """Generate `n_replies` replies to a task, one after the other, so that the first one has its own time."""
    engine, builder = model.engine, model.builder
    prompt = builder.build([PromptMessage("user", task.question)], PromptOptions(think=False))
    texts, tokens, seconds, mean_logprob = [], [], 0.0, None
    for number in range(n_replies):
        seed = (workload.seed * 1_000_003 + index * 16 + number) % (1 << 32)
        request = protocol.Generate(
            id=engine.next_id(), tokens=prompt.tokens, turn_starts=prompt.turn_starts,
            max_tokens=workload.max_tokens, mean_logprob=True,
            sampling=Sampling(temperature=workload.temperature, seed=seed),
            stop=builder.stop_strings(prompt.reply_format),
            visible_control_tokens=builder.visible_control_tokens(prompt.reply_format),
        )  # fmt: skip
        parser, started_at = builder.create_reply_parser(prompt), time.monotonic()
        for event in engine.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                parser.feed(event.text)
            elif isinstance(event, protocol.SequenceFinished) and number == 0:
                mean_logprob = event.mean_logprob
            elif isinstance(event, protocol.RequestFinished):
                tokens.append(event.stats.completion_tokens)
        parser.finish()
        texts.append(parser.reply.content)
        seconds = seconds or time.monotonic() - started_at
    return AnsweredTask(
        kind=task.kind, is_correct=task.is_correct(texts[0]), texts=texts, tokens=tokens, mean_logprob=mean_logprob,
        seconds=seconds,
    )  # fmt: skip
