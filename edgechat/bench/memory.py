"""Benchmark that compares planned with measured memory, and predicted with measured decode speed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat import process
from edgechat.bench.model_drafters import plan_drafter
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.hardware.memory import read_tree_pss_bytes
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.drafter_plan import MAX_MODEL_DRAFT_TOKENS, DrafterPlan
from edgechat.planner.kv_types import list_kv_types
from edgechat.planner.load_plan import LoadPlan, make_manual_plan
from edgechat.planner.load_variants import default_n_seqs
from edgechat.planner.memory import LoadOptions, MemoryEstimate, convert_reported_buffers, estimate
from edgechat.planner.throughput import KernelSpeeds, predict_speed

_CONTEXT_LENGTHS: Final = (512, 8192, 32768)
_N_CTX: Final = 2048
_SAMPLE_INTERVAL_S: Final = 0.01
_N_GEN: Final = 24
_FIRST_ORDINARY_TOKEN: Final = 100
# Bounds of the planning error, above and below the measured memory: a fraction of it or a number of bytes, whichever is
# larger.
_OVERESTIMATE_BOUNDS: Final = (0.03, 32 << 20)
_UNDERESTIMATE_BOUNDS: Final = (0.01, 16 << 20)


class MemoryCase(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated and measured memory of one model with one set of load options."""

    model: str
    options: LoadOptions
    estimate: MemoryEstimate = msgspec.field(name="predicted")
    formula_bytes: int = msgspec.field(name="by_formulas_bytes")
    """Memory estimate by formulas only, without the buffer sizes that llama.cpp reports."""
    drafter: str = ""
    """Name of the file of the draft model or the heads; `mtp` for heads in the file of the model, "" for none."""
    peak_bytes: int
    """Peak PSS of the client, the engine and their child processes together."""

    @property
    def error_bytes(self) -> int:
        """Estimated minus measured memory, in bytes."""
        return self.estimate.total - self.peak_bytes

    @property
    def is_close(self) -> bool:
        """True if `error_bytes` is within the limits for planning errors."""
        max_fraction, max_bytes = _OVERESTIMATE_BOUNDS if self.error_bytes >= 0 else _UNDERESTIMATE_BOUNDS
        return abs(self.error_bytes) <= max(max_fraction * self.peak_bytes, max_bytes)


class SpeedCase(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted and measured decode speed of one model, in tokens per second."""

    model: str
    predicted_tps: float
    measured_tps: float

    @property
    def ratio(self) -> float:
        """Predicted speed divided by measured speed."""
        return self.predicted_tps / self.measured_tps


class MemoryBenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the memory benchmark."""

    memory: list[MemoryCase]
    speed: list[SpeedCase]


def run(
    models: list[Path], rounds: int, on_progress: Callable[[str], None], draft_model: str | None = None
) -> MemoryBenchReport:
    """Measure the memory of every model with all load options, then the decode speeds. Raises EdgechatError.

    With `draft_model`, measures only the memory with this drafter, for each context length.
    """
    engine = EngineClient()
    try:
        cases = []
        for path in models:
            profile = ModelProfile.from_header(read_header(path))
            for options in _list_load_options(profile, with_drafter=draft_model is not None):
                on_progress(f"{path.name}: {_format_options(options)}")
                drafter = plan_drafter(profile, draft_model, options) if draft_model is not None else None
                cases.append(_measure_case(engine, profile, options, drafter))
        speeds = _measure_speeds(engine, models, rounds, on_progress) if draft_model is None else []
    finally:
        engine.close()
    return MemoryBenchReport(memory=cases, speed=speeds)


def _list_load_options(profile: ModelProfile, *, with_drafter: bool = False) -> Iterator[LoadOptions]:
    """Yield load options for all pairs of context length and KV type, then for mmap and repacking on and off.

    For a drafter, whose memory does not depend on them, only the context length and the mapping of the file differ. A
    case has one conversation, so the plan is for one sequence: the cells of others would stay unused.
    """
    n_seqs = default_n_seqs(profile)
    if with_drafter:
        n_rs_seq = MAX_MODEL_DRAFT_TOKENS if profile.n_state_layers else 0
        for n_ctx in _CONTEXT_LENGTHS[:2]:
            for use_mmap in (True, False):
                yield LoadOptions(n_ctx=n_ctx, n_seqs=1, use_mmap=use_mmap, n_rs_seq=n_rs_seq)
        return
    for n_ctx in _CONTEXT_LENGTHS:
        for kv_type in list_kv_types(profile):
            yield LoadOptions(n_ctx=n_ctx, n_seqs=n_seqs, kv_type=kv_type)
    for use_mmap in (True, False):
        for use_extra_bufts in (True, False):
            yield LoadOptions(n_ctx=_N_CTX, n_seqs=n_seqs, use_mmap=use_mmap, use_extra_bufts=use_extra_bufts)


def _format_options(options: LoadOptions) -> str:
    return (
        f"{options.n_ctx} {options.kv_type}{'' if options.use_mmap else ' read'}"
        f"{'' if options.use_extra_bufts else ' plain'}"
    )


def _measure_case(
    engine: EngineClient, profile: ModelProfile, options: LoadOptions, drafter: DrafterPlan | None
) -> MemoryCase:
    probe = engine.probe_memory(protocol.ProbeMemory(id=engine.next_id(), model_path=profile.path, options=options))
    plan = make_manual_plan(
        profile.path, n_threads=os.cpu_count() or 1, drafter=drafter, **msgspec.structs.asdict(options)
    )
    return MemoryCase(
        model=Path(profile.path).name, options=options,
        estimate=estimate(
            profile, options, convert_reported_buffers(profile, options, probe.memory), drafter=drafter
        ),
        formula_bytes=estimate(profile, options, drafter=drafter).total,
        drafter=(Path(drafter.model_path).name or drafter.kind) if drafter is not None else "",
        peak_bytes=_measure_peak_bytes(plan),
    )  # fmt: skip


def _measure_peak_bytes(plan: LoadPlan) -> int:
    """Run a conversation with `plan` in new processes, and return the peak of their total PSS in bytes."""
    child = subprocess.Popen(
        process.make_command_line("_case"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if child.stdin is None or child.stderr is None:
        raise EngineError("The benchmark process started without pipes. Run the benchmark again.")
    child.stdin.write(msgspec.json.encode(plan))
    child.stdin.close()
    peak_bytes = 0
    try:
        while child.poll() is None:
            peak_bytes = max(peak_bytes, read_tree_pss_bytes(child.pid))
            time.sleep(_SAMPLE_INTERVAL_S)
    finally:
        child.kill()
    if not peak_bytes:
        raise EngineError("Memory can only be measured on Linux.")
    if child.returncode != 0:
        raise EngineError(f"A measurement failed: {child.stderr.read().decode('utf-8', 'replace').strip()[-400:]}")
    return peak_bytes


def case_main(arguments: list[str]) -> int:
    """Run the client process of one memory case: load the modules of a terminal chat, and generate one reply."""
    from edgechat.chat import session
    from edgechat.models.loading import list_ranges_to_remove
    from edgechat.prompt.renderer import Renderer
    from edgechat.store import open_ephemeral_store

    del arguments, session  # not used: a real chat imports `session`, so its memory is measured too
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan)
    store, renderer, engine = open_ephemeral_store(), Renderer(), EngineClient()
    renderer.start()
    profile = ModelProfile.from_header(read_header(Path(plan.model_path)))
    loads_heads = plan.drafter is not None and plan.drafter.kind == "mtp"
    unused_ranges = list_ranges_to_remove(profile, plan.options, loads_heads=loads_heads)
    engine.load(protocol.Load(id=engine.next_id(), plan=plan, unused_ranges=unused_ranges))
    n_prompt = min(plan.options.n_ctx - _N_GEN - 1, plan.options.n_ubatch + 64)
    _generate(engine, n_prompt, speculate=plan.drafter is not None)
    engine.close()
    renderer.close()
    store.close()
    return 0


def _generate(engine: EngineClient, n_prompt: int, n_gen: int = _N_GEN, *, speculate: bool = False) -> float:
    """Generate a reply of `n_gen` tokens, and return its decode speed in tokens per second."""
    tokens = [_FIRST_ORDINARY_TOKEN + i % _FIRST_ORDINARY_TOKEN for i in range(n_prompt)]
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_gen, ignore_eog=True, sampling=GREEDY, bypass_cache=True,
        speculate=speculate,
    )  # fmt: skip
    for event in engine.generate(request):
        if isinstance(event, protocol.RequestFinished):
            return event.stats.decode_tps
    return 0.0


def _measure_speeds(
    engine: EngineClient, models: list[Path], rounds: int, on_progress: Callable[[str], None]
) -> list[SpeedCase]:
    """Measure kernel speeds and decode speeds alternately; return the medians of predicted and measured speeds."""
    predicted_speeds: dict[str, list[float]] = {}
    measured_speeds: dict[str, list[float]] = {}
    for round_index in range(rounds):
        on_progress(f"measuring speeds, round {round_index + 1} of {rounds}")
        speeds = engine.list_devices(benchmark=True, remeasure=True).speeds
        for path in models:
            if speeds is not None:
                _measure_speed(path, speeds, predicted_speeds, measured_speeds)
    return [
        SpeedCase(
            model=name, predicted_tps=statistics.median(values), measured_tps=statistics.median(measured_speeds[name])
        )
        for name, values in predicted_speeds.items()
    ]


def _measure_speed(
    path: Path, speeds: KernelSpeeds, predicted_speeds: dict[str, list[float]], measured_speeds: dict[str, list[float]]
) -> None:
    prediction = predict_speed(ModelProfile.from_header(read_header(path)), speeds, n_past=64)
    if prediction is None:
        return
    plan = make_manual_plan(
        str(path), n_threads=speeds.n_decode_threads or speeds.n_threads, n_ctx=_N_CTX, n_seqs=1, speculation=False,
        use_mmap=False,
    )  # fmt: skip
    engine = EngineClient()
    try:
        engine.load(protocol.Load(id=engine.next_id(), plan=plan))
        _generate(engine, 48, 8)
        measured_speeds.setdefault(path.name, []).append(_generate(engine, 48, 64))
        predicted_speeds.setdefault(path.name, []).append(prediction.decode_tps)
    finally:
        engine.close()


def format_table(report: MemoryBenchReport) -> str:
    """Format the report as a table."""
    bytes_per_mb = 1e6
    lines = [
        "| model | context, KV type, weights | planned MB | formulas only | measured peak | error |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for case in report.memory:
        options = case.options
        weights_text = f"{'mapped' if options.use_mmap else 'read'}{'' if options.use_extra_bufts else ', plain'}"
        weights_text += f", drafts of {case.drafter}" if case.drafter else ""
        lines.append(
            f"| {case.model} | {options.n_ctx}, {options.kv_type}, {weights_text} "
            f"| {case.estimate.total / bytes_per_mb:.0f} | {case.formula_bytes / bytes_per_mb:.0f} "
            f"| {case.peak_bytes / bytes_per_mb:.0f} "
            f"| {case.error_bytes / bytes_per_mb:+.1f} ({case.error_bytes / case.peak_bytes:+.1%})"
            f"{'' if case.is_close else ' !'} |"
        )
    if not report.speed:
        return "\n".join(lines)
    lines += ["", "| model | predicted tokens/s | measured | ratio |", "|---|--:|--:|--:|"]
    lines += [
        f"| {case.model} | {case.predicted_tps:.1f} | {case.measured_tps:.1f} | {case.ratio:.2f} |"
        for case in sorted(report.speed, key=lambda case: -case.measured_tps)
    ]
    return "\n".join(lines)
