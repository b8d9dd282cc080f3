"""Benchmark of ways to spend more computation on an answer: accuracy, tokens and seconds of each.

All ways answer the same seeded tasks and share the prompts in the prefix cache. Their replies have the same seeds, so
that the first reply of a vote is the single reply, apart from the rounding of a larger batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.reasoning_report import (
    MethodResult,
    ReasoningReport,
    compare_paired,
    compute_mcnemar_p,
    compute_wilson_interval,
)
from edgechat.bench.reasoning_tasks import Task, TaskKind, make_task
from edgechat.config import Sampling, Settings
from edgechat.engine import protocol
from edgechat.engine.generation import GenerationStats
from edgechat.errors import UsageError
from edgechat.models.loaded_model import LoadedModel
from edgechat.prompt.agreement.judge import make_verdict_request
from edgechat.prompt.agreement.picker import MAX_PICKED_REPLIES, PICK_METHODS, PickMethod, ReplyPicker
from edgechat.prompt.builder import BuiltPrompt
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.prompt.thinking import ThinkingBudget, make_thinking_limit

DEFAULT_METHODS: Final = ("single", "agree 3", "agree 5", "agree 9", "likely 5", "judge 5")
_SEEDS_PER_TASK: Final = 1000
_MAX_THINKING_DIGITS: Final = 6


class Method(msgspec.Struct, frozen=True):
    """A way to answer: one reply with or without reasoning, or one that is picked from several."""

    name: str
    pick: PickMethod | None = None
    n_replies: int = 1
    max_thinking: int = 0
    """Maximum number of tokens of reasoning before the reply; 0 turns reasoning off."""


class ReasoningWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, tasks and methods of a measurement."""

    model: Path
    methods: list[Method]
    n_tasks: int
    temperature: float
    max_tokens: int
    seed: int = 1
    n_threads: int | None = None
    n_parallel: int = 1
    """Number of tasks that are answered at the same time. With more than one, the measured times mean nothing."""


class _Totals:
    """Sums over the tasks of one method."""

    def __init__(self) -> None:
        self.correct: list[bool] = []
        self.kinds: list[TaskKind] = []
        self.n_tokens = self.n_replies = self.n_decoded_tokens = 0
        self.elapsed_s = self.decode_s = 0.0

    def add(self, other: _Totals) -> None:
        """Add the sums of further tasks."""
        self.correct += other.correct
        self.kinds += other.kinds
        self.n_tokens += other.n_tokens
        self.n_replies += other.n_replies
        self.n_decoded_tokens += other.n_decoded_tokens
        self.elapsed_s += other.elapsed_s
        self.decode_s += other.decode_s

    def add_stats(self, stats: GenerationStats) -> None:
        """Add the tokens and the decode time of an engine request."""
        self.n_tokens += stats.completion_tokens
        if stats.decode_tps:
            # The speed of a request leaves out the first token of each reply; the time is that of all other tokens.
            self.n_decoded_tokens += stats.completion_tokens
            self.decode_s += stats.completion_tokens / stats.decode_tps


def parse_method(name: str) -> Method:
    """Parse the name of a method, such as "single", "agree 5" (also "agree5") or "think 256". Raises UsageError."""
    word = name.strip().rstrip("0123456789").strip()
    digits = name.strip()[len(word) :].strip()
    if word == "single" and not digits:
        return Method("single")
    if word == "think" and 0 < len(digits) <= _MAX_THINKING_DIGITS and int(digits):
        return Method(f"think {int(digits)}", max_thinking=int(digits))
    for pick in PICK_METHODS:
        if word == pick and digits and 1 < int(digits) <= MAX_PICKED_REPLIES:
            return Method(f"{pick} {int(digits)}", pick, int(digits))
    raise UsageError(
        f"{name!r} is not a method. Use single, think with a number of tokens, such as think256, or one of "
        f"{', '.join(PICK_METHODS)} with a number of replies up to {MAX_PICKED_REPLIES}, such as agree5."
    )


def run(
    workload: ReasoningWorkload,
    on_progress: Callable[[str], None] = lambda text: None,
    time_limit_s: float | None = None,
) -> ReasoningReport:
    """Answer all tasks with all methods; start no further task after `time_limit_s`. Raises EdgechatError."""
    model = LoadedModel()
    settings = Settings(n_threads=workload.n_threads) if workload.n_threads else Settings()
    totals = {method.name: _Totals() for method in workload.methods}
    try:
        properties = model.open(workload.model, settings, lambda event: on_progress(event.message))
        if model.builder.reasoning_format is None and any(method.max_thinking for method in workload.methods):
            raise UsageError(f"{workload.model.name} does not reason before its replies. Leave out the methods think.")
        deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        n_done = 0

        def answer(index: int) -> dict[str, _Totals] | None:
            return None if time.monotonic() >= deadline else _answer_task(model, workload, index)

        with ThreadPoolExecutor(workload.n_parallel) as executor:
            for task_totals in executor.map(answer, range(workload.n_tasks)):
                if task_totals is None:
                    break
                n_done += 1
                for name, method_totals in task_totals.items():
                    totals[name].add(method_totals)
                scores = ", ".join(f"{name} {sum(t.correct)}" for name, t in totals.items())
                on_progress(f"Task {n_done} of {workload.n_tasks}, correct: {scores}")
    finally:
        model.close()
    baseline = totals["single"].correct if "single" in totals else next(iter(totals.values())).correct
    return ReasoningReport(
        model=str(workload.model), backend=properties.backend, n_threads=properties.n_threads,
        temperature=workload.temperature, seed=workload.seed, n_tasks=n_done, n_parallel=workload.n_parallel,
        methods=[_summarize(method.name, totals[method.name], baseline) for method in workload.methods],
        correct={name: t.correct for name, t in totals.items()},
    )  # fmt: skip


def _answer_task(model: LoadedModel, workload: ReasoningWorkload, index: int) -> dict[str, _Totals]:
    """Answer one task with all methods. Another method is first for each task, because it computes the prompt."""
    task, totals = make_task(workload.seed, index), {method.name: _Totals() for method in workload.methods}
    for offset in range(len(workload.methods)):
        method = workload.methods[(index + offset) % len(workload.methods)]
        _TaskRun(model, workload, task, index, method, totals[method.name]).run()
    return totals


def _summarize(name: str, totals: _Totals, baseline: list[bool]) -> MethodResult:
    n, correct = len(totals.correct), totals.correct
    by_kind = {
        kind: sum(ok for ok, k in zip(correct, totals.kinds, strict=True) if k == kind) / totals.kinds.count(kind)
        for kind in dict.fromkeys(totals.kinds)
    }
    return MethodResult(
        name=name, accuracy=compute_wilson_interval(sum(correct), n), accuracy_by_kind=by_kind,
        difference=compare_paired(baseline, correct), p_value=compute_mcnemar_p(baseline, correct),
        tokens_per_task=totals.n_tokens / max(1, n), seconds_per_task=totals.elapsed_s / max(1, n),
        replies_per_task=totals.n_replies / max(1, n),
        decode_tps=totals.n_decoded_tokens / totals.decode_s if totals.decode_s else 0.0,
    )  # fmt: skip


class _TaskRun:
    """Answers one task with one method."""

    def __init__(
        self, model: LoadedModel, workload: ReasoningWorkload, task: Task, index: int, method: Method, totals: _Totals
    ) -> None:
        self._model = model
        self._workload = workload
        self._task = task
        self._seed = (workload.seed * 1_000_003 + index) * _SEEDS_PER_TASK
        self._method = method
        self._totals = totals
        self._prompt = self._build([PromptMessage("user", task.question)], think=method.max_thinking > 0)

    def _build(self, messages: list[PromptMessage], *, think: bool = False) -> BuiltPrompt:
        return self._model.builder.build(messages, PromptOptions(think))

    def run(self) -> None:
        """Answer the task, and add the result to the totals."""
        plan, method = self._model.plan, self._method
        picker = ReplyPicker(method.pick or "likely", method.n_replies, plan.options.n_seqs if plan is not None else 1)
        started_at = time.monotonic()
        while indexes := picker.start_round():
            self._generate(picker, indexes, needs_logprob=method.pick is not None)
        winner = self._judge(picker)
        pick = picker.pick(winner)
        candidate = picker.candidates[pick.index]
        totals = self._totals
        totals.elapsed_s += time.monotonic() - started_at
        totals.n_replies += pick.n_started
        totals.kinds.append(self._task.kind)
        totals.correct.append(candidate is not None and self._task.is_correct(candidate.text))

    def _generate(self, picker: ReplyPicker, indexes: range, *, needs_logprob: bool) -> None:
        engine, builder, workload = self._model.engine, self._model.builder, self._workload
        max_thinking, prompt = self._method.max_thinking, self._prompt
        thinking = make_thinking_limit(
            builder.reasoning_format, prompt.reply_format, prompt.phase, ThinkingBudget(max_thinking)
        )
        request = protocol.Generate(
            id=engine.next_id(), tokens=self._prompt.tokens, turn_starts=self._prompt.turn_starts,
            n_sequences=len(indexes), max_tokens=workload.max_tokens + max_thinking, mean_logprob=needs_logprob,
            thinking=thinking,
            sampling=Sampling(temperature=workload.temperature, seed=(self._seed + indexes.start) % (1 << 32)),
            stop=builder.stop_strings(self._prompt.reply_format),
            visible_control_tokens=builder.visible_control_tokens(self._prompt.reply_format),
        )  # fmt: skip
        parsers = [builder.create_reply_parser(self._prompt) for _ in indexes]
        unfinished = set(range(len(indexes)))

        def finish(sequence: int, reason: protocol.FinishReason, mean_logprob: float | None) -> None:
            unfinished.discard(sequence)
            parsers[sequence].finish()
            text = parsers[sequence].reply.content
            picker.finish_reply(indexes[sequence], text, mean_logprob, reason)

        was_ended = False
        for event in engine.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                parsers[event.sequence].feed(event.text)
            elif isinstance(event, protocol.SequenceFinished):
                finish(event.sequence, event.finish_reason, event.mean_logprob)
                if unfinished and picker.is_decided and not was_ended:
                    was_ended = True
                    engine.cancel_sequences(request.id, unfinished)
            elif isinstance(event, protocol.RequestFinished):
                for sequence in sorted(unfinished):
                    finish(sequence, event.finish_reason, None)
                self._totals.add_stats(event.stats)

    def _judge(self, picker: ReplyPicker) -> int | None:
        """Let the model compare the complete replies; return the winner among them, or None without a comparison."""
        tournament = picker.start_tournament(self._task.question)
        for messages in tournament:
            tournament.verdict = self._compare(messages)
        return tournament.winner

    def _compare(self, messages: list[PromptMessage]) -> str:
        """Ask the model which of two replies is better; return its verdict."""
        engine, prompt = self._model.engine, self._build(messages)
        request = make_verdict_request(engine.next_id(), prompt.tokens)
        verdict = ""
        for event in engine.generate(request):
            if isinstance(event, protocol.TokensGenerated):
                verdict += event.text
            elif isinstance(event, protocol.RequestFinished):
                self._totals.n_tokens += event.stats.completion_tokens
        return verdict
