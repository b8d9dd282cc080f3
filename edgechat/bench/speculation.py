"""Benchmark of speculative decoding: with and without drafts, against fixed policies, and against llama-server."""

from __future__ import annotations

import contextlib
import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench import draft_replay
from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.workloads import Workloads
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, UsageError
from edgechat.planner.load_plan import manual_plan
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt.builder import PromptBuilder, PromptOptions
from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import load_edgechat
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.step_costs import MIN_SAMPLES, SIZES, RunningMean, StepCosts

N_CTX: Final = 4096
N_BATCH: Final = 512
N_FREE: Final = 96
"""Length of the model's own replies in tokens."""
_WARM_UP_TOKENS: Final = 700
_STEP_COST_TIMEOUT_S: Final = 300.0
# Each poll interrupts the engine's measurement.
_POLL_S: Final = 8.0
_ADVERSARY: Final = "random tokens"
# Replies of random tokens from vocabularies of these sizes. Small ones produce many short, misleading matches.
_N_RANDOM: Final = 400
_RANDOM_FROM: Final = (40, 400, 10_000)
PEERS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "--spec-default": ("--spec-default",),
    "ngram-simple 3/8": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8",
    ),
}  # fmt: skip


class TokenizedCase(msgspec.Struct, frozen=True):
    """A workload case as tokens."""

    kind: str
    prompt: list[int]
    reply: list[int]


class SpeculationRow(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one kind of conversation. Speeds are relative to the same engine without drafts."""

    kind: str
    forced: float | None
    """Measured speed of the scripted replies, median over the rounds."""
    noise: float | None
    """Speed of the scripted replies without drafts, relative to a second run without drafts."""
    free: float | None
    """Measured speed of the model's own replies."""
    mean_acceptance_length: float
    replayed: float
    """Speed computed from measured step costs by replaying the scripted replies, learning from one to the next."""
    replayed_fresh: float
    """Speed computed from measured step costs by replaying the scripted replies, each without earlier learning."""
    fixed: dict[str, float]
    """Speed of each static policy, computed by replaying the scripted replies."""
    peers: dict[str, float] = {}
    """Speed of llama-server with drafts, relative to llama-server without drafts, on its own replies."""
    peer_plain: float | None = None
    """edgechat's speed without drafts relative to llama-server's."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of the model's own greedy replies with and without drafts, token by token."""

    n_answers: int
    n_different: int
    """Replies in which the rounding of a larger batch decided a near tie differently."""
    n_tokens: int
    """Compared tokens: all of a reply, or up to its first difference."""


class SpeculationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the speculation benchmark."""

    model: str
    backend: str
    n_threads: int
    rounds: int
    step_costs: dict[int, float]
    """Cost of a decode step by its number of tokens, relative to a step of one token."""
    ceiling: float
    """Largest possible gain: 16 tokens divided by the cost of a step of 16."""
    rows: list[SpeculationRow]
    worst_reply: float
    """Slowest replayed reply of 100 tokens or more, including the model's own."""
    fifth_percentile: float
    """5th percentile of the speeds of all replayed replies."""
    agreement: Agreement


class SpeculationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads, rounds and peer of a speculation measurement."""

    model: str
    n_threads: int
    rounds: int = 3
    peer: Path | None = None


def run(
    options: SpeculationOptions, workloads: Workloads, on_progress: Callable[[str], None] = lambda words: None
) -> SpeculationReport:
    """Measure all workload cases and return the report. Raises EdgechatError."""
    with contextlib.ExitStack() as stack:
        edgechat_run = _EdgechatRun(options)
        stack.callback(edgechat_run.close)
        cases = edgechat_run.tokenize_cases(workloads)
        on_progress("measuring step costs")
        costs = edgechat_run.measure_step_costs()
        servers: dict[str, LlamaServer] = {}
        if options.peer is not None:
            module = next(m for m in find_bundle().modules if m.name == edgechat_run.backend)
            for name, arguments in PEERS.items():
                servers[name] = LlamaServer(
                    options.peer, module.path, options.model, n_ctx=N_CTX, n_threads=options.n_threads,
                    n_batch=N_BATCH, arguments=arguments,
                )  # fmt: skip
                stack.callback(servers[name].close)
        speeds = _SpeedRecord()
        own_replies: list[list[int]] = []
        agreement = Agreement(n_answers=0, n_different=0, n_tokens=0)
        for number in range(options.rounds):
            own_replies = []
            for i, case in enumerate(cases):
                on_progress(f"round {number + 1} of {options.rounds}: {case.kind} ({i + 1} of {len(cases)})")
                plain, drafted = _one_round(edgechat_run, servers, speeds, case, number)
                own_replies.append(plain)
                if plain:
                    agreement = _compare(agreement, plain, drafted)
        own = [
            TokenizedCase(case.kind, case.prompt, reply)
            for case, reply in zip(cases, own_replies, strict=True)
            if len(reply) > 1
        ]
        return _report(options, edgechat_run, costs, cases, own, speeds, agreement)


def _compare(agreement: Agreement, plain: list[int], drafted: list[int]) -> Agreement:
    same = common_prefix_length(plain, drafted)
    return Agreement(
        n_answers=agreement.n_answers + 1,
        n_different=agreement.n_different + (plain != drafted),
        n_tokens=agreement.n_tokens + min(same + 1, len(plain)),
    )


class _SpeedRecord:
    """Measured speeds by kind of conversation and variant, for each round."""

    def __init__(self) -> None:
        self.speeds: dict[tuple[str, str], list[list[float]]] = {}
        self.lengths: dict[str, list[float]] = {}

    def add(self, kind: str, variant: str, number: int, tps: float) -> None:
        rounds = self.speeds.setdefault((kind, variant), [])
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(tps)

    def ratio(self, kind: str, variant: str, baseline: str) -> float | None:
        """Return the median over the rounds of the mean ratio of two variants, or None if either is missing."""
        a, b = self.speeds.get((kind, variant)), self.speeds.get((kind, baseline))
        if not a or not b:
            return None
        return statistics.median(
            # A reply that ended with its first token has no speed.
            statistics.geometric_mean([x / y for x, y in zip(p, q, strict=True) if x > 0 and y > 0] or [1.0])
            for p, q in zip(a, b, strict=True)
        )


def _measure_peer(speeds: _SpeedRecord, case: TokenizedCase, number: int, name: str, server: LlamaServer) -> None:
    speeds.add(case.kind, f"peer {name}", number, server.measure_decode_tps(case.prompt, N_FREE))


def _one_round(
    edgechat_run: _EdgechatRun,
    servers: Mapping[str, LlamaServer],
    speeds: _SpeedRecord,
    case: TokenizedCase,
    number: int,
) -> tuple[list[int], list[int]]:
    """Run all variants of a case in alternating order; return the model's own replies without and with drafts."""
    replies: dict[bool, list[int]] = {False: [], True: []}
    edgechat_run.prefill(case.prompt)

    def answer(what: str, forced: list[int] | None, *, speculate: bool) -> None:
        tokens, stats = edgechat_run.generate(case.prompt, forced, speculate=speculate)
        speeds.add(case.kind, what, number, stats.decode_tps)
        if forced is None:
            replies[speculate] = tokens
        elif speculate:
            speeds.lengths.setdefault(case.kind, []).append(stats.mean_acceptance_length)

    runs: list[Callable[[], None]] = [
        lambda: answer("forced off", case.reply, speculate=False),
        lambda: answer("forced on", case.reply, speculate=True),
        lambda: answer("forced off again", case.reply, speculate=False),
    ]
    if case.kind != _ADVERSARY:
        runs += [lambda: answer("free off", None, speculate=False), lambda: answer("free on", None, speculate=True)]
        runs += [
            functools.partial(_measure_peer, speeds, case, number, name, server) for name, server in servers.items()
        ]
    for work in runs if number % 2 == 0 else reversed(runs):
        work()
    return replies[False], replies[True]


class _EdgechatRun:
    """An edgechat engine with a loaded model and a renderer."""

    def __init__(self, options: SpeculationOptions) -> None:
        self._engine = EngineClient()
        self._renderer = Renderer()
        plan = manual_plan(
            options.model, n_threads=options.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=N_CTX, n_rs_seq=7
        )
        self._loaded = self._engine.load(protocol.Load(id=self._engine.next_id(), plan=plan))
        self.backend = self._loaded.backend

    def tokenize_cases(self, workloads: Workloads) -> list[TokenizedCase]:
        """Return all workload cases as tokens, and adversarial cases of random tokens."""
        builder = PromptBuilder(self._engine, self._renderer, self._loaded)
        before = self._engine.tokenize("")
        cases = []
        for case in workloads.cases:
            messages = [
                PromptMessage("assistant" if i % 2 else "user", text) for i, text in enumerate(workloads.messages(case))
            ]
            reply = self._engine.tokenize(workloads.reply(case))[len(before) :]
            cases.append(TokenizedCase(case.kind, builder.build(messages, PromptOptions(think=False)).tokens, reply))
        generator = random.Random(0)  # noqa: S311  (reproducible)
        ordinary = sorted({token for case in cases for token in case.reply})
        if not ordinary:
            raise UsageError("All replies in the selected workloads are empty. Choose other workloads.")
        for n in _RANDOM_FROM:
            tokens = [generator.choice(ordinary[:n]) for _ in range(2 * _N_RANDOM)]
            cases.append(TokenizedCase(_ADVERSARY, tokens[:_N_RANDOM], tokens[_N_RANDOM:]))
        return cases

    def measure_step_costs(self) -> StepCosts:
        """Wait until the idle engine has measured its step costs at the depth of these prompts, and return them."""
        self.generate([300 + i % 2000 for i in range(_WARM_UP_TOKENS)], [300], speculate=False, ephemeral=False)
        deadline = time.monotonic() + _STEP_COST_TIMEOUT_S
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            measured = self._engine.stats().step_costs
            if set(SIZES) <= set(measured) or not self._loaded.max_draft:
                break
        costs = StepCosts()
        for ratios in costs.ratios:
            ratios.update({n: RunningMean(ratio, MIN_SAMPLES) for n, ratio in measured.items()})
        return costs

    def prefill(self, prompt: list[int]) -> None:
        """Prefill the prompt, so that all replies to it start from the same cells."""
        for _ in self._engine.generate(protocol.Generate(id=self._engine.next_id(), tokens=prompt, max_tokens=0)):
            pass

    def generate(
        self, prompt: list[int], forced: list[int] | None, *, speculate: bool, ephemeral: bool = True
    ) -> tuple[list[int], protocol.GenerationStats]:
        """Generate the model's own reply, or the `forced` tokens. `ephemeral` leaves the cache unchanged."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=prompt, max_tokens=len(forced) if forced else N_FREE, sampling=GREEDY,
            ignore_eog=forced is not None, forced_tokens=forced, speculate=speculate,
            ephemeral=ephemeral,
        )  # fmt: skip
        *earlier_events, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics.")
        return [
            t for event in earlier_events if isinstance(event, protocol.TokensGenerated) for t in event.tokens
        ], last.stats

    def close(self) -> None:
        self._engine.close()
        self._renderer.close()


def _report(
    options: SpeculationOptions,
    edgechat_run: _EdgechatRun,
    costs: StepCosts,
    cases: Sequence[TokenizedCase],
    own: Sequence[TokenizedCase],
    speeds: _SpeedRecord,
    agreement: Agreement,
) -> SpeculationReport:
    library = load_edgechat(find_bundle())

    def make_index(capacity: int) -> SuffixIndex:
        return SuffixIndex(library, capacity)

    def replayed(case: TokenizedCase, policy: draft_replay.Policy) -> float:
        return draft_replay.replay(policy, case.prompt, case.reply, costs)

    acceptance = Acceptance()
    learned_speeds = [1.0] * (len(cases) + len(own))
    order = random.Random(0).sample(range(len(learned_speeds)), len(learned_speeds))  # noqa: S311  (reproducible)
    for i in order:
        learned_speeds[i] = replayed([*cases, *own][i], draft_replay.edgechat_policy(make_index, costs, acceptance))
    fresh_speeds = [replayed(case, draft_replay.edgechat_policy(make_index, costs)) for case in cases]
    fixed = {
        name: [replayed(case, policy(make_index)) for case in cases]
        for name, policy in draft_replay.STATIC_POLICIES.items()
    }
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [i for i, case in enumerate(cases) if case.kind == kind]
        plain_peer = speeds.ratio(kind, "free off", "peer none")
        rows.append(SpeculationRow(
            kind=kind, forced=speeds.ratio(kind, "forced on", "forced off"),
            noise=speeds.ratio(kind, "forced off again", "forced off"),
            free=speeds.ratio(kind, "free on", "free off"),
            mean_acceptance_length=statistics.fmean(speeds.lengths[kind]),
            replayed=_mean(learned_speeds, of_kind), replayed_fresh=_mean(fresh_speeds, of_kind),
            fixed={name: _mean(speeds, of_kind) for name, speeds in fixed.items()},
            peers={
                name: ratio for name in PEERS
                if name != "none" and (ratio := speeds.ratio(kind, f"peer {name}", "peer none")) is not None
            },
            peer_plain=plain_peer,
        ))  # fmt: skip
    judged = [
        (speed, case) for speed, case in zip(learned_speeds, [*cases, *own], strict=True) if case.kind != _ADVERSARY
    ]
    long_ones = [speed for speed, case in judged if len(case.reply) >= 100]  # noqa: PLR2004  (shorter ones are noise)
    return SpeculationReport(
        model=options.model, backend=edgechat_run.backend, n_threads=options.n_threads, rounds=options.rounds,
        step_costs={n: costs.ratio(n, _WARM_UP_TOKENS) for n in SIZES}, ceiling=16 / costs.ratio(16, _WARM_UP_TOKENS),
        rows=rows, worst_reply=min(long_ones, default=1.0),
        fifth_percentile=sorted(speed for speed, _ in judged)[len(judged) // 20],
        agreement=agreement,
    )  # fmt: skip


def _mean(speeds: Sequence[float], which: Sequence[int]) -> float:
    return statistics.geometric_mean(speeds[i] for i in which)


def table(report: SpeculationReport) -> str:
    """Format the report as a table."""
    fixed, peers = list(report.rows[0].fixed), list(report.rows[0].peers)
    heads = ["forced", "noise", "free", "length", "replayed", "fresh", *fixed, *peers]
    costs = ", ".join(f"{n}: {ratio:.2f}" for n, ratio in report.step_costs.items())
    lines = [
        (
            f"{Path(report.model).name}, {report.backend}, {report.n_threads} threads, {report.rounds} rounds "
            "(medians); speeds relative to plain decoding"
        ),
        f"cost of a step of n tokens: {costs}; ceiling {report.ceiling:.1f}",
        f"{'':<18}" + "".join(f"{head:>{max(9, len(head) + 2)}}" for head in heads),
    ]
    for row in report.rows:
        values = [
            row.forced, row.noise, row.free, row.mean_acceptance_length, row.replayed, row.replayed_fresh,
            *row.fixed.values(), *(row.peers.get(name) for name in peers),
        ]  # fmt: skip
        lines.append(
            f"{row.kind:<18}"
            + "".join(
                f"{'' if value is None else format(value, '.3f'):>{max(9, len(head) + 2)}}"
                for head, value in zip(heads, values, strict=True)
            )
        )
    lines.append(
        f"replayed replies, including the model's own: 5th percentile {report.fifth_percentile:.3f}, "
        f"slowest of 100 tokens or more {report.worst_reply:.3f}"
    )
    agreement = report.agreement
    lines.append(
        f"the model's own replies with and without drafts: {agreement.n_different} of {agreement.n_answers} differ, "
        f"in {agreement.n_tokens} tokens"
    )
    return "\n".join(lines)
