"""Benchmark of speculative decoding: speed with and without drafts, with static policies, and of llama-server."""

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
from edgechat.bench.gpu import find_gpu
from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.repetition import check_replies
from edgechat.bench.speculation_report import Agreement, SpeculationReport, SpeculationRow
from edgechat.bench.workloads import Workloads
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import GenerationStats
from edgechat.errors import EngineError, UsageError
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.memory import LoadOptions
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.renderer import PromptMessage, Renderer
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import load_edgechat
from edgechat.runtime.suffix_index import SuffixIndex
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.step_costs import MIN_SAMPLES, STEP_SIZES, RunningMean, StepCosts

N_CTX: Final = 4096
N_BATCH: Final = 512
N_OWN_REPLY_TOKENS: Final = 96
"""Maximum length of the model's own replies in tokens."""
_WARM_UP_TOKENS: Final = 700
_STEP_COST_TIMEOUT_S: Final = 300.0
# Polling interval. It is long, because each poll interrupts the measurement in the engine.
_POLL_INTERVAL_S: Final = 8.0
_ADVERSARIAL_KIND: Final = "random tokens"
# Adversarial replies consist of random tokens from vocabularies of the sizes `_VOCABULARY_SIZES`. Small vocabularies
# produce many short, misleading matches.
_N_RANDOM_TOKENS: Final = 400
_VOCABULARY_SIZES: Final = (40, 400, 10_000)
PEERS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "--spec-default": ("--spec-default",),
    "ngram-simple 3/8": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8",
    ),
}  # fmt: skip


class TokenizedCase(msgspec.Struct, frozen=True):
    """Prompt and reply of one workload case as tokens."""

    kind: str
    prompt: list[int]
    reply: list[int]


class SpeculationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads, rounds and peer of a speculation measurement."""

    model: str
    n_threads: int
    rounds: int = 3
    peer: Path | None = None
    uses_gpu: bool = False
    """Whether every layer is computed by a GPU; not with a peer or a model drafter."""


def make_load_options() -> LoadOptions:
    """Return the load options of a measurement."""
    return LoadOptions(n_ctx=N_CTX, n_seqs=2, n_ubatch=N_BATCH, n_rs_seq=7)


def run(
    options: SpeculationOptions, workloads: Workloads, on_progress: Callable[[str], None] = lambda text: None
) -> SpeculationReport:
    """Measure all workload cases and return the report. Raises EdgechatError."""
    with contextlib.ExitStack() as stack:
        edgechat_run = EdgechatRun(options)
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
        speeds = SpeedRecord()
        own_replies: list[list[int]] = []
        agreement = Agreement(n_replies=0, n_different_replies=0, n_tokens=0)
        for round_index in range(options.rounds):
            own_replies = []
            for i, case in enumerate(cases):
                on_progress(f"round {round_index + 1} of {options.rounds}: {case.kind} ({i + 1} of {len(cases)})")
                plain_reply, speculative_reply = _measure_round(edgechat_run, servers, speeds, case, round_index)
                own_replies.append(plain_reply)
                if plain_reply:
                    agreement = _update_agreement(agreement, plain_reply, speculative_reply)
        own_cases = [
            TokenizedCase(case.kind, case.prompt, reply)
            for case, reply in zip(cases, own_replies, strict=True)
            if len(reply) > 1
        ]
        return _make_report(options, edgechat_run, costs, cases, own_cases, speeds, agreement)


def _update_agreement(agreement: Agreement, plain_reply: list[int], speculative_reply: list[int]) -> Agreement:
    n_equal_tokens = common_prefix_length(plain_reply, speculative_reply)
    return Agreement(
        n_replies=agreement.n_replies + 1,
        n_different_replies=agreement.n_different_replies + (plain_reply != speculative_reply),
        n_tokens=agreement.n_tokens + min(n_equal_tokens + 1, len(plain_reply)),
    )


class SpeedRecord:
    """Measured speeds by kind of conversation and variant, with one list for each round."""

    def __init__(self) -> None:
        self.speeds: dict[tuple[str, str], list[list[float]]] = {}
        self.lengths: dict[str, list[float]] = {}

    def add(self, kind: str, variant: str, round_index: int, tps: float) -> None:
        rounds = self.speeds.setdefault((kind, variant), [])
        while len(rounds) <= round_index:
            rounds.append([])
        rounds[round_index].append(tps)

    def ratio(self, kind: str, variant: str, baseline: str) -> float | None:
        """Return the speed of `variant` divided by that of `baseline`, or None if either was not measured.

        The ratio is the median over the rounds of the geometric mean over the replies.
        """
        variant_rounds = self.speeds.get((kind, variant))
        baseline_rounds = self.speeds.get((kind, baseline))
        if not variant_rounds or not baseline_rounds:
            return None
        return statistics.median(
            # A reply that ended with its first token has no decode speed.
            statistics.geometric_mean([x / y for x, y in zip(p, q, strict=True) if x > 0 and y > 0] or [1.0])
            for p, q in zip(variant_rounds, baseline_rounds, strict=True)
        )


def _measure_peer(speeds: SpeedRecord, case: TokenizedCase, round_index: int, name: str, server: LlamaServer) -> None:
    speeds.add(case.kind, f"peer {name}", round_index, server.measure_decode_tps(case.prompt, N_OWN_REPLY_TOKENS))


def _measure_round(
    edgechat_run: EdgechatRun,
    servers: Mapping[str, LlamaServer],
    speeds: SpeedRecord,
    case: TokenizedCase,
    round_index: int,
) -> tuple[list[int], list[int]]:
    """Measure all variants of a case in alternating order; return the model's own replies without and with drafts."""
    replies: dict[bool, list[int]] = {False: [], True: []}
    edgechat_run.prefill(case.prompt)

    def measure(variant: str, forced_tokens: list[int] | None, *, speculate: bool) -> None:
        tokens, stats = edgechat_run.generate(case.prompt, forced_tokens, speculate=speculate)
        speeds.add(case.kind, variant, round_index, stats.decode_tps)
        if forced_tokens is None:
            replies[speculate] = tokens
        elif speculate:
            speeds.lengths.setdefault(case.kind, []).append(stats.mean_acceptance_length)

    measurements: list[Callable[[], None]] = [
        lambda: measure("forced off", case.reply, speculate=False),
        lambda: measure("forced on", case.reply, speculate=True),
        lambda: measure("forced off again", case.reply, speculate=False),
    ]
    if case.kind != _ADVERSARIAL_KIND:
        measurements += [
            lambda: measure("free off", None, speculate=False),
            lambda: measure("free on", None, speculate=True),
        ]
        measurements += [
            functools.partial(_measure_peer, speeds, case, round_index, name, server)
            for name, server in servers.items()
        ]
    for run_measurement in measurements if round_index % 2 == 0 else reversed(measurements):
        run_measurement()
    return replies[False], replies[True]


class EdgechatRun:
    """Engine with a loaded model, and a renderer for prompts."""

    def __init__(self, options: SpeculationOptions, drafter: DrafterPlan | None = None) -> None:
        self._engine = EngineClient()
        self._renderer = Renderer()
        gpu = find_gpu(self._engine, Path(options.model)) if options.uses_gpu else None
        load_options = msgspec.structs.asdict(make_load_options()) | {"n_gpu_layers": gpu.n_layers if gpu else 0}
        plan = make_manual_plan(
            options.model, n_threads=options.n_threads, n_batch=N_BATCH, drafter=drafter, **load_options
        )
        self._model_properties = self._engine.load(protocol.Load(id=self._engine.next_id(), plan=plan))
        self.backend = self._model_properties.backend + (f", every layer on {gpu.name}" if gpu else "")

    def tokenize_cases(self, workloads: Workloads, *, with_random_tokens: bool = True) -> list[TokenizedCase]:
        """Return all workload cases as tokens, and adversarial cases of random tokens after them."""
        builder = PromptBuilder(self._engine, self._renderer, self._model_properties)
        initial_tokens = self._engine.tokenize("")
        cases = []
        for case in workloads.cases:
            messages = [
                PromptMessage("assistant" if i % 2 else "user", text) for i, text in enumerate(workloads.messages(case))
            ]
            reply = self._engine.tokenize(workloads.reply(case))[len(initial_tokens) :]
            cases.append(TokenizedCase(case.kind, builder.build(messages, PromptOptions(think=False)).tokens, reply))
        if not with_random_tokens:
            return cases
        generator = random.Random(0)  # noqa: S311  (reproducible)
        ordinary_tokens = sorted({token for case in cases for token in case.reply})
        if not ordinary_tokens:
            raise UsageError("All replies in the selected workloads are empty. Choose other workloads.")
        for n in _VOCABULARY_SIZES:
            tokens = [generator.choice(ordinary_tokens[:n]) for _ in range(2 * _N_RANDOM_TOKENS)]
            cases.append(TokenizedCase(_ADVERSARIAL_KIND, tokens[:_N_RANDOM_TOKENS], tokens[_N_RANDOM_TOKENS:]))
        return cases

    def measure_step_costs(self, timeout_s: float = _STEP_COST_TIMEOUT_S) -> StepCosts:
        """Wait until the idle engine has measured its step costs at a context depth of 700 tokens, and return them.

        After `timeout_s`, the costs that were measured until then are returned.
        """
        self.generate([300 + i % 2000 for i in range(_WARM_UP_TOKENS)], [300], speculate=False, ephemeral=False)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL_S)
            step_costs = self._engine.stats().step_costs
            if set(STEP_SIZES) <= set(step_costs) or not self._model_properties.max_draft:
                break
        costs = StepCosts()
        for ratios in costs.ratios:
            ratios.update({n: RunningMean(ratio, MIN_SAMPLES) for n, ratio in step_costs.items()})
        return costs

    def prefill(self, prompt: list[int]) -> None:
        """Prefill the prompt, so that all replies to this prompt start from the same cached cells."""
        for _ in self._engine.generate(protocol.Generate(id=self._engine.next_id(), tokens=prompt, max_tokens=0)):
            pass

    def measure_prefill_tps(self, tokens: list[int]) -> float:
        """Process a prompt without the prefix cache, and return the speed in tokens per second."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=tokens, sampling=GREEDY, max_tokens=1, ignore_eog=True,
            bypass_cache=True, ephemeral=True,
        )  # fmt: skip
        *_, last = self._engine.generate(request)
        return last.stats.prefill_tps if isinstance(last, protocol.RequestFinished) else 0.0

    def generate(
        self, prompt: list[int], forced_tokens: list[int] | None, *, speculate: bool, ephemeral: bool = True
    ) -> tuple[list[int], GenerationStats]:
        """Generate `forced_tokens`, or the model's own reply if None; with `ephemeral`, do not change the cache."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=prompt, sampling=GREEDY,
            max_tokens=len(forced_tokens) if forced_tokens else N_OWN_REPLY_TOKENS,
            ignore_eog=forced_tokens is not None, forced_tokens=forced_tokens, speculate=speculate, ephemeral=ephemeral,
        )  # fmt: skip
        *earlier_events, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics. Run the benchmark again.")
        return [
            t for event in earlier_events if isinstance(event, protocol.TokensGenerated) for t in event.tokens
        ], last.stats

    def close(self) -> None:
        self._engine.close()
        self._renderer.close()


def _make_report(
    options: SpeculationOptions,
    edgechat_run: EdgechatRun,
    costs: StepCosts,
    cases: Sequence[TokenizedCase],
    own_cases: Sequence[TokenizedCase],
    speeds: SpeedRecord,
    agreement: Agreement,
) -> SpeculationReport:
    library = load_edgechat(find_bundle())

    def make_index(capacity: int) -> SuffixIndex:
        return SuffixIndex(library, capacity)

    def replay(case: TokenizedCase, policy: draft_replay.Policy) -> float:
        return draft_replay.replay(policy, case.prompt, case.reply, costs)

    acceptance = Acceptance()
    all_cases = [*cases, *own_cases]
    learned_speeds = [1.0] * len(all_cases)
    order = random.Random(0).sample(range(len(learned_speeds)), len(learned_speeds))  # noqa: S311  (reproducible)
    for i in order:
        policy = draft_replay.make_edgechat_policy(make_index, costs, acceptance)
        learned_speeds[i] = replay(all_cases[i], policy)
    fresh_speeds = [replay(case, draft_replay.make_edgechat_policy(make_index, costs)) for case in cases]
    static_speeds = {
        name: [replay(case, make_policy(make_index)) for case in cases]
        for name, make_policy in draft_replay.STATIC_POLICIES.items()
    }
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        indices = [i for i, case in enumerate(cases) if case.kind == kind]
        peer_plain_speed = speeds.ratio(kind, "free off", "peer none")
        rows.append(SpeculationRow(
            kind=kind, scripted_speed=speeds.ratio(kind, "forced on", "forced off"),
            noise=speeds.ratio(kind, "forced off again", "forced off"),
            own_reply_speed=speeds.ratio(kind, "free on", "free off"),
            mean_acceptance_length=statistics.fmean(speeds.lengths[kind]),
            replay_speed=_mean(learned_speeds, indices), fresh_replay_speed=_mean(fresh_speeds, indices),
            static_policy_speeds={name: _mean(replay_speeds, indices) for name, replay_speeds in static_speeds.items()},
            peer_speeds={
                name: ratio for name in PEERS
                if name != "none" and (ratio := speeds.ratio(kind, f"peer {name}", "peer none")) is not None
            },
            plain_speed_vs_peer=peer_plain_speed,
        ))  # fmt: skip
    realistic_replies = [
        (speed, case) for speed, case in zip(learned_speeds, all_cases, strict=True) if case.kind != _ADVERSARIAL_KIND
    ]
    # The speeds of shorter replies are mostly noise.
    long_reply_speeds = [speed for speed, case in realistic_replies if len(case.reply) >= 100]  # noqa: PLR2004
    return SpeculationReport(
        model=options.model, backend=edgechat_run.backend, n_threads=options.n_threads, rounds=options.rounds,
        step_costs={n: costs.ratio(n, _WARM_UP_TOKENS) for n in STEP_SIZES},
        ceiling=16 / costs.ratio(16, _WARM_UP_TOKENS),
        rows=rows, min_reply_speed=min(long_reply_speeds, default=1.0),
        fifth_percentile_speed=sorted(speed for speed, _ in realistic_replies)[len(realistic_replies) // 20],
        agreement=agreement,
        repetition=check_replies([case.reply for case in cases if case.kind != _ADVERSARIAL_KIND]),
    )  # fmt: skip


def _mean(speeds: Sequence[float], indices: Sequence[int]) -> float:
    return statistics.geometric_mean(speeds[i] for i in indices)
