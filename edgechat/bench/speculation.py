"""What drafts are worth: with and without them in turn, against fixed settings, and against llama-server."""

from __future__ import annotations

import contextlib
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
from edgechat.chat.messages import Message
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, UsageError
from edgechat.planner.plan import given_plan
from edgechat.prompt.builder import PromptBuilder, PromptOptions
from edgechat.prompt.renderer import Renderer
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import load_edgechat
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.step_costs import MIN_SAMPLES, SIZES, RunningMean, StepCosts

N_CTX: Final = 4096
N_BATCH: Final = 512
N_FREE: Final = 96
"""Tokens that a model says of its own."""
_WARM_UP_TOKENS: Final = 700
_REHEARSAL_S: Final = 300.0
# Asking interrupts what is measured.
_POLL_S: Final = 8.0
_ADVERSARY: Final = "random tokens"
# Answers of random tokens: out of few, so that short matches abound, and out of many.
_N_RANDOM: Final = 400
_RANDOM_FROM: Final = (40, 400, 10_000)
PEERS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "--spec-default": ("--spec-default",),
    "ngram-simple 3/8": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8",
    ),
}  # fmt: skip


class Prompted(msgspec.Struct, frozen=True):
    """A case in tokens."""

    kind: str
    prompt: list[int]
    reply: list[int]


class SpeculationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of conversation. Speeds are in times of the same engine's without drafts."""

    kind: str
    forced: float | None
    """The written replies, on the clock: median over the rounds."""
    noise: float | None
    """The written replies without drafts, against another time without: what this machine's noise makes of 1."""
    free: float | None
    """The model's own replies, on the clock."""
    mean_acceptance_length: float
    replayed: float
    """The written replies by measured costs of steps, learning from one to the next in a random order."""
    replayed_fresh: float
    """The same, each by a program that has learned nothing."""
    fixed: dict[str, float]
    """The same by fixed settings."""
    peers: dict[str, float] = {}
    """llama-server's on its own replies, each in times of its own without drafts."""
    peer_plain: float | None = None
    """Our own plain decoding in times of llama-server's without drafts."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The model's own greedy replies with drafts, token by token against those without."""

    n_answers: int
    n_different: int
    """Where the rounding of a larger batch decided between two tokens that were as good as equal."""
    n_tokens: int
    """Those compared: all, or up to the first difference."""


class SpeculationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement."""

    model: str
    backend: str
    n_threads: int
    rounds: int
    step_costs: dict[int, float]
    """Of a step of so many tokens, in steps of one, at the depth of these prompts."""
    ceiling: float
    """r: prefill of 16 tokens in times of decoding."""
    rows: list[SpeculationRow]
    worst_reply: float
    """Of all replayed ones of 100 tokens or more, the model's own among them."""
    fifth_percentile: float
    """Of all replayed ones."""
    agreement: Agreement


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    model: str
    n_threads: int
    rounds: int = 3
    peer: Path | None = None


def run(options: Options, workloads: Workloads, tell: Callable[[str], None] = lambda words: None) -> SpeculationReport:
    """Measure. Raises EdgechatError."""
    with contextlib.ExitStack() as stack:
        ours = _EdgechatRun(options)
        stack.callback(ours.close)
        cases = ours.prompted(workloads)
        tell("measuring the costs of steps")
        costs = ours.costs()
        servers: dict[str, LlamaServer] = {}
        if options.peer is not None:
            module = next(m for m in find_bundle().modules if m.name == ours.backend)
            for name, arguments in PEERS.items():
                servers[name] = LlamaServer(
                    options.peer, module.path, options.model, n_ctx=N_CTX, n_threads=options.n_threads,
                    n_batch=N_BATCH, arguments=arguments,
                )  # fmt: skip
                stack.callback(servers[name].close)
        clock = _Clock()
        said: list[list[int]] = []
        agreement = Agreement(n_answers=0, n_different=0, n_tokens=0)
        for number in range(options.rounds):
            said = []
            for i, case in enumerate(cases):
                tell(f"round {number + 1} of {options.rounds}: {case.kind} ({i + 1} of {len(cases)})")
                plain, drafted = _one_round(ours, servers, clock, case, number)
                said.append(plain)
                if plain:
                    agreement = _compare(agreement, plain, drafted)
        own = [
            Prompted(case.kind, case.prompt, reply) for case, reply in zip(cases, said, strict=True) if len(reply) > 1
        ]
        return _report(options, ours, costs, cases, own, clock, agreement)


def _compare(so_far: Agreement, plain: list[int], drafted: list[int]) -> Agreement:
    same = next((i for i, (a, b) in enumerate(zip(plain, drafted, strict=False)) if a != b), None)
    return Agreement(
        n_answers=so_far.n_answers + 1,
        n_different=so_far.n_different + (plain != drafted),
        n_tokens=so_far.n_tokens + (len(plain) if same is None else same + 1),
    )


class _Clock:
    """Speeds, by kind of conversation and what was done; one of each round."""

    def __init__(self) -> None:
        self.speeds: dict[tuple[str, str], list[list[float]]] = {}
        self.lengths: dict[str, list[float]] = {}

    def add(self, kind: str, what: str, number: int, tps: float) -> None:
        rounds = self.speeds.setdefault((kind, what), [])
        while len(rounds) <= number:
            rounds.append([])
        rounds[number].append(tps)

    def ratio(self, kind: str, what: str, to: str) -> float | None:
        """The median over the rounds; in each, all cases of the kind weigh the same."""
        a, b = self.speeds.get((kind, what)), self.speeds.get((kind, to))
        if not a or not b:
            return None
        return statistics.median(
            # An answer that ended with its first token has no speed.
            statistics.geometric_mean([x / y for x, y in zip(p, q, strict=True) if x > 0 and y > 0] or [1.0])
            for p, q in zip(a, b, strict=True)
        )


def _one_round(
    ours: _EdgechatRun, servers: Mapping[str, LlamaServer], clock: _Clock, case: Prompted, number: int
) -> tuple[list[int], list[int]]:
    """Everything once, in an order that changes; returns what the model said of its own, without drafts and with."""
    said: dict[bool, list[int]] = {False: [], True: []}
    ours.read(case.prompt)

    def answer(what: str, forced: list[int] | None, *, speculate: bool) -> None:
        tokens, stats = ours.answer(case.prompt, forced, speculate=speculate)
        clock.add(case.kind, what, number, stats.decode_tps)
        if forced is None:
            said[speculate] = tokens
        elif speculate:
            clock.lengths.setdefault(case.kind, []).append(stats.mean_acceptance_length)

    runs: list[Callable[[], None]] = [
        lambda: answer("forced off", case.reply, speculate=False),
        lambda: answer("forced on", case.reply, speculate=True),
        lambda: answer("forced off again", case.reply, speculate=False),
    ]
    if case.kind != _ADVERSARY:
        runs += [lambda: answer("free off", None, speculate=False), lambda: answer("free on", None, speculate=True)]
        runs += [
            lambda name=name, server=server: clock.add(case.kind, f"peer {name}", number, server.decode_tps(case.prompt, N_FREE))  # type: ignore[misc]
            for name, server in servers.items()
        ]  # fmt: skip
    for work in runs if number % 2 == 0 else reversed(runs):
        work()
    return said[False], said[True]


class _EdgechatRun:
    """An engine, and the prompts for its model."""

    def __init__(self, options: Options) -> None:
        self._engine = EngineClient()
        self._renderer = Renderer()
        plan = given_plan(
            options.model, n_threads=options.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=N_CTX, n_rs_seq=7
        )
        self._loaded = self._engine.load(protocol.Load(id=self._engine.next_id(), plan=plan))
        self.backend = self._loaded.backend

    def prompted(self, workloads: Workloads) -> list[Prompted]:
        """All cases in tokens, and answers of random ones."""
        builder = PromptBuilder(self._engine, self._renderer, self._loaded, lambda _hash: b"")
        manner = PromptOptions("", think=False, max_tokens=None, previous_start=0)
        before = self._engine.tokenize("")
        cases = []
        for case in workloads.cases:
            path = [
                Message(id=str(i), role="assistant" if i % 2 else "user", text=text)
                for i, text in enumerate(workloads.messages(case))
            ]
            reply = self._engine.tokenize(workloads.reply(case))[len(before) :]
            cases.append(Prompted(case.kind, builder.build(path, manner).tokens, reply))
        draw = random.Random(0)  # noqa: S311  (measured with, not guessed from)
        ordinary = sorted({token for case in cases for token in case.reply})
        if not ordinary:
            raise UsageError("the replies of these workloads have no tokens")
        for n in _RANDOM_FROM:
            tokens = [draw.choice(ordinary[:n]) for _ in range(2 * _N_RANDOM)]
            cases.append(Prompted(_ADVERSARY, tokens[:_N_RANDOM], tokens[_N_RANDOM:]))
        return cases

    def costs(self) -> StepCosts:
        """What steps cost at the depth of these prompts; the engine measures that when it has nothing else to do."""
        self.answer([300 + i % 2000 for i in range(_WARM_UP_TOKENS)], [300], speculate=False, is_aside=False)
        until_s = time.monotonic() + _REHEARSAL_S
        while time.monotonic() < until_s:
            time.sleep(_POLL_S)
            found = self._engine.stats().step_costs
            if set(SIZES) <= set(found) or not self._loaded.max_draft:
                break
        costs = StepCosts()
        for ratios in costs.ratios:
            ratios.update({n: RunningMean(ratio, MIN_SAMPLES) for n, ratio in found.items()})
        return costs

    def read(self, prompt: list[int]) -> None:
        """Have the prompt in the context, so that all answers to it begin with the same cells."""
        for _ in self._engine.generate(protocol.Generate(id=self._engine.next_id(), tokens=prompt, max_tokens=0)):
            pass

    def answer(
        self, prompt: list[int], forced: list[int] | None, *, speculate: bool, is_aside: bool = True
    ) -> tuple[list[int], protocol.GenerationStats]:
        """An answer: the model's own, or one that it is made to give. Nothing of it stays, if it `is_aside`."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=prompt, max_tokens=len(forced) if forced else N_FREE, sampling=GREEDY,
            ignore_eog=forced is not None, forced_tokens=forced, speculate=speculate,
            ephemeral=is_aside,
        )  # fmt: skip
        *heard, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("the engine ended a measurement without its figures")
        return [t for event in heard if isinstance(event, protocol.TokensGenerated) for t in event.tokens], last.stats

    def close(self) -> None:
        self._engine.close()
        self._renderer.close()


def _report(
    options: Options, ours: _EdgechatRun, costs: StepCosts, cases: Sequence[Prompted], own: Sequence[Prompted], clock: _Clock,
    agreement: Agreement,
) -> SpeculationReport:  # fmt: skip
    library = load_edgechat(find_bundle())

    def make(capacity: int) -> SuffixIndex:
        return SuffixIndex(library, capacity)

    def replayed(case: Prompted, policy: draft_replay.Policy) -> float:
        return draft_replay.replay(policy, case.prompt, case.reply, costs)

    acceptance = Acceptance()
    learned = [1.0] * (len(cases) + len(own))
    for i in random.Random(0).sample(range(len(learned)), len(learned)):  # noqa: S311  (an order, no secret)
        learned[i] = replayed([*cases, *own][i], draft_replay.ours(make, costs, acceptance))
    fresh = [replayed(case, draft_replay.ours(make, costs)) for case in cases]
    fixed = {name: [replayed(case, policy(make)) for case in cases] for name, policy in draft_replay.FIXED.items()}
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [i for i, case in enumerate(cases) if case.kind == kind]
        plain_peer = clock.ratio(kind, "free off", "peer none")
        rows.append(SpeculationRow(
            kind=kind, forced=clock.ratio(kind, "forced on", "forced off"),
            noise=clock.ratio(kind, "forced off again", "forced off"),
            free=clock.ratio(kind, "free on", "free off"),
            mean_acceptance_length=statistics.fmean(clock.lengths[kind]),
            replayed=_mean(learned, of_kind), replayed_fresh=_mean(fresh, of_kind),
            fixed={name: _mean(speeds, of_kind) for name, speeds in fixed.items()},
            peers={
                name: ratio for name in PEERS
                if name != "none" and (ratio := clock.ratio(kind, f"peer {name}", "peer none")) is not None
            },
            peer_plain=plain_peer,
        ))  # fmt: skip
    judged = [(speed, case) for speed, case in zip(learned, [*cases, *own], strict=True) if case.kind != _ADVERSARY]
    long_ones = [speed for speed, case in judged if len(case.reply) >= 100]  # noqa: PLR2004  (shorter ones are noise)
    return SpeculationReport(
        model=options.model, backend=ours.backend, n_threads=options.n_threads, rounds=options.rounds,
        step_costs={n: costs.ratio(n, _WARM_UP_TOKENS) for n in SIZES}, ceiling=16 / costs.ratio(16, _WARM_UP_TOKENS),
        rows=rows, worst_reply=min(long_ones, default=1.0),
        fifth_percentile=sorted(speed for speed, _ in judged)[len(judged) // 20],
        agreement=agreement,
    )  # fmt: skip


def _mean(speeds: Sequence[float], which: Sequence[int]) -> float:
    return statistics.geometric_mean(speeds[i] for i in which)
