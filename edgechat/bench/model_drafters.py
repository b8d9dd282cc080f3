"""Benchmark of a model drafter: speed with its drafts, with drafts from the text, and of llama-server with the same."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.speculation import (
    N_BATCH,
    N_CTX,
    N_OWN_REPLY_TOKENS,
    EdgechatRun,
    SpeculationOptions,
    SpeedRecord,
    TokenizedCase,
    make_load_options,
)
from edgechat.bench.workloads import Workloads
from edgechat.config import AUTO, OFF, Settings
from edgechat.engine.generation import GenerationStats
from edgechat.errors import UsageError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models.draft_models import choose_drafter
from edgechat.planner.drafter_choice import estimate_drafter
from edgechat.planner.drafter_plan import DrafterKind, DrafterPlan
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.backends.bundle import find_bundle

N_PREFILL_TOKENS: Final = 512
"""Length of the prompts with which the prompt speed is measured, in tokens."""
# Time in which each idle engine can measure its step costs. Replies measure what is missing.
_WARM_UP_TIMEOUT_S: Final = 40.0
# Values of llama-server's `--spec-type` by kind of drafter.
_PEER_TYPES: Final[dict[DrafterKind, str]] = {
    "draft-model": "draft-simple", "mtp": "draft-mtp", "eagle3": "draft-eagle3", "assistant": "draft-mtp",
}  # fmt: skip
_PLAIN, _TEXT, _DRAFTS, _PEER_PLAIN, _PEER_DRAFTS = "plain", "text", "drafts", "peer plain", "peer drafts"


class DraftRow(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one kind of conversation. Speeds are medians over the rounds, of the model's own replies."""

    kind: str
    speed: float
    """Speed with all drafts, relative to decoding without drafts."""
    text_speed: float
    """Speed with drafts from the text only, relative to decoding without drafts."""
    peer_speed: float | None = None
    """Speed of llama-server with the drafter, relative to llama-server without drafts; None if it was not measured."""
    speed_vs_peer: float | None = None
    """Speed with all drafts, relative to that of llama-server with the drafter."""
    drafted: dict[str, int]
    """Number of drafted tokens by source."""
    accepted: dict[str, int]
    """Number of accepted tokens by source."""
    n_different_replies: int
    """Replies that differ from those without drafts, because the rounding of a larger batch decided a near tie."""
    n_replies: int


class DraftReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the benchmark of a model drafter."""

    model: str
    drafter: DrafterPlan
    backend: str
    n_threads: int
    rounds: int
    prompt_speed: float
    """Prompt speed with the drafter loaded, relative to the engine without it; median over the rounds."""
    rows: list[DraftRow]


def plan_drafter(profile: ModelProfile, name: str, options: LoadOptions) -> DrafterPlan:
    """Return the plan of the drafter `name` for a model with `options`; `auto` is chosen as for a load.

    Raises UsageError if `auto` finds none, or if the drafter does not exist or does not fit.
    """
    settings = Settings(draft_model=name)
    choice = choose_drafter(profile, settings)
    if choice.refusal:
        raise UsageError(f"{choice.refusal}. Choose another drafter with --draft-model, or --draft-model auto.")
    if choice.kind is None or choice.profile is None:
        raise UsageError(
            f"There is no drafter for {Path(profile.path).name}: {choice.reason}. Name one with --draft-model."
        )
    return estimate_drafter(choice.kind, choice.profile, profile, options)


def find_drafter_file(model: str, name: str) -> str:
    """Return the file of the drafter `name` for the model file `model`; `off` if `auto` finds none, or for `off`.

    The file of heads that are part of the model is that of the model. Raises UsageError if a named drafter does not
    exist or does not fit, and EdgechatError if the model cannot be read.
    """
    settings = Settings(draft_model=name)
    profile = ModelProfile.from_header(read_header(Path(model)))
    if settings.draft_model not in {AUTO, OFF}:
        return plan_drafter(profile, name, make_load_options()).model_path or model
    drafter = choose_drafter(profile, settings).profile
    return drafter.path if drafter is not None else OFF


def run(
    options: SpeculationOptions, draft_model: str, workloads: Workloads, kinds: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda text: None,
) -> DraftReport:  # fmt: skip
    """Measure the own replies of a model to the cases of `kinds` (default: all). Raises EdgechatError.

    `draft_model` is the name of the drafter, or `auto`.
    """
    workloads = select_kinds(workloads, kinds)
    profile = ModelProfile.from_header(read_header(Path(options.model)))
    drafter = plan_drafter(profile, draft_model, make_load_options())
    with contextlib.ExitStack() as stack:
        runs = {name: EdgechatRun(options, plan) for name, plan in ((_TEXT, None), (_DRAFTS, drafter))}
        for edgechat_run in runs.values():
            stack.callback(edgechat_run.close)
        measurement = _Measurement(runs, _start_peers(options, drafter, runs[_TEXT].backend, stack))
        cases = runs[_TEXT].tokenize_cases(workloads, with_random_tokens=False)
        on_progress("measuring step costs")
        for edgechat_run in runs.values():
            edgechat_run.measure_step_costs(_WARM_UP_TIMEOUT_S)
        prompt_ratios = []
        for round_index in range(options.rounds):
            on_progress(f"round {round_index + 1} of {options.rounds}: prompts")
            prompt_ratios.append(_compare_prompt_speed(runs, round_index))
            for i, case in enumerate(cases):
                on_progress(f"round {round_index + 1} of {options.rounds}: {case.kind} ({i + 1} of {len(cases)})")
                measurement.measure(case, round_index)
    return DraftReport(
        model=options.model, drafter=drafter, backend=runs[_TEXT].backend, n_threads=options.n_threads,
        rounds=options.rounds, prompt_speed=statistics.median(prompt_ratios),
        rows=[measurement.make_row(kind) for kind in dict.fromkeys(case.kind for case in cases)],
    )  # fmt: skip


def select_kinds(workloads: Workloads, kinds: Sequence[str]) -> Workloads:
    """Return the workloads with the cases of `kinds` only, or all if it is empty. Raises UsageError."""
    known_kinds = dict.fromkeys(case.kind for case in workloads.cases)
    for kind in kinds:
        if kind not in known_kinds:
            raise UsageError(f"There is no kind {kind!r} of conversations; choose from {', '.join(known_kinds)}.")
    cases = [case for case in workloads.cases if not kinds or case.kind in kinds]
    return msgspec.structs.replace(workloads, cases=cases)


def make_peer_arguments(drafter: DrafterPlan) -> tuple[str, ...]:
    """Return the arguments with which llama-server drafts with the same model or heads."""
    file = ("--spec-draft-model", str(Path(drafter.model_path).resolve())) if drafter.model_path else ()
    return ("--spec-type", _PEER_TYPES[drafter.kind], *file)


def _start_peers(
    options: SpeculationOptions, drafter: DrafterPlan, backend: str, stack: contextlib.ExitStack
) -> dict[str, LlamaServer]:
    if options.peer is None:
        return {}
    module = next(m for m in find_bundle().modules if m.name == backend)
    peers = {}
    for name, arguments in ((_PEER_PLAIN, ()), (_PEER_DRAFTS, make_peer_arguments(drafter))):
        peers[name] = LlamaServer(
            options.peer, module.path, options.model, n_ctx=N_CTX, n_threads=options.n_threads, n_batch=N_BATCH,
            arguments=("-np", "1", *arguments),
        )  # fmt: skip
        stack.callback(peers[name].close)
    return peers


def _compare_prompt_speed(runs: dict[str, EdgechatRun], round_index: int) -> float:
    """Return the prompt speed with the drafter loaded, relative to that without it, in alternating order."""
    tokens = [300 + (i * 7 + round_index) % 2000 for i in range(N_PREFILL_TOKENS)]
    names = [_TEXT, _DRAFTS] if round_index % 2 else [_DRAFTS, _TEXT]
    speeds = {name: runs[name].measure_prefill_tps(tokens) for name in names}
    return speeds[_DRAFTS] / speeds[_TEXT] if speeds[_TEXT] else 1.0


class _Measurement:
    """Measured speeds, drafts and replies of all variants."""

    def __init__(self, runs: dict[str, EdgechatRun], peers: dict[str, LlamaServer]) -> None:
        self._runs = runs
        self._peers = peers
        self._speeds = SpeedRecord()
        self._stats: dict[str, list[GenerationStats]] = {}
        self._agreement: dict[str, list[bool]] = {}

    def measure(self, case: TokenizedCase, round_index: int) -> None:
        """Measure all variants of a case, in alternating order from round to round."""
        replies: dict[str, list[int]] = {}

        def generate(variant: str, run_name: str, *, speculate: bool) -> None:
            tokens, stats = self._runs[run_name].generate(case.prompt, None, speculate=speculate)
            replies[variant] = tokens
            self._speeds.add(case.kind, variant, round_index, stats.decode_tps)
            if variant == _DRAFTS:
                self._stats.setdefault(case.kind, []).append(stats)

        for edgechat_run in self._runs.values():
            edgechat_run.prefill(case.prompt)
        variants: list[Callable[[], None]] = [
            lambda: generate(_PLAIN, _TEXT, speculate=False),
            lambda: generate(_DRAFTS, _DRAFTS, speculate=True),
            lambda: generate(_TEXT, _TEXT, speculate=True),
            *(functools.partial(self._measure_peer, case, round_index, name) for name in self._peers),
        ]
        for variant in variants if round_index % 2 == 0 else reversed(variants):
            variant()
        self._agreement.setdefault(case.kind, []).append(replies[_PLAIN] == replies[_DRAFTS])

    def _measure_peer(self, case: TokenizedCase, round_index: int, name: str) -> None:
        self._speeds.add(
            case.kind, name, round_index, self._peers[name].measure_decode_tps(case.prompt, N_OWN_REPLY_TOKENS)
        )

    def make_row(self, kind: str) -> DraftRow:
        """Return the results of one kind of conversation."""
        drafted: dict[str, int] = {}
        accepted: dict[str, int] = {}
        for stats in self._stats.get(kind, []):
            for source, counts in (stats.drafts_by_source or {}).items():
                drafted[source] = drafted.get(source, 0) + counts.n_drafted
                accepted[source] = accepted.get(source, 0) + counts.n_accepted
        agreement = self._agreement.get(kind, [])
        return DraftRow(
            kind=kind, speed=self._speeds.ratio(kind, _DRAFTS, _PLAIN) or 1.0,
            text_speed=self._speeds.ratio(kind, _TEXT, _PLAIN) or 1.0,
            peer_speed=self._speeds.ratio(kind, _PEER_DRAFTS, _PEER_PLAIN),
            speed_vs_peer=self._speeds.ratio(kind, _DRAFTS, _PEER_DRAFTS),
            drafted=drafted, accepted=accepted, n_replies=len(agreement), n_different_replies=agreement.count(False),
        )  # fmt: skip


def format_table(report: DraftReport) -> str:
    """Format the report as a table."""
    drafter = report.drafter
    source = Path(drafter.model_path).name or "heads in the file of the model"
    lines = [
        (
            f"{Path(report.model).name}, drafts of {source} ({drafter.kind}), {report.backend}, {report.n_threads} "
            f"threads, {report.rounds} rounds (medians)"
        ),
        f"prompt speed with the drafter loaded, relative to without: {report.prompt_speed:.3f}",
        f"{'':<18}{'drafts':>9}{'text':>9}{'peer':>9}{'to peer':>9}  accepted drafts by source",
    ]
    for row in report.rows:
        values = (row.speed, row.text_speed, row.peer_speed, row.speed_vs_peer)
        counts = ", ".join(f"{row.accepted[name]} of {n} from the {name}" for name, n in row.drafted.items() if n)
        cells = "".join(f"{'' if value is None else format(value, '.3f'):>9}" for value in values)
        lines.append(f"{row.kind:<18}{cells}  {counts or 'none'}")
    n_different, n_replies = (sum(getattr(row, n) for row in report.rows) for n in ("n_different_replies", "n_replies"))
    lines.append(f"replies with and without drafts: {n_different} of {n_replies} differ")
    return "\n".join(lines)
