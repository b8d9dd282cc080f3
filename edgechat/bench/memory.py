"""Benchmark of planned against used memory, and of predicted against measured decode speed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgechat import process
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.hardware.memory import tree_pss_bytes
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.planner.load_plan import LoadPlan, manual_plan
from edgechat.planner.load_variants import default_n_seqs
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate, reported_buffers
from edgechat.planner.throughput import KernelSpeeds, predict_speed

_N_CTXS: Final = (512, 8192, 32768)
_N_CTX: Final = 2048
_KV_TYPES: Final[tuple[Literal["f16", "q8_0"], ...]] = ("f16", "q8_0")
_SAMPLE_S: Final = 0.01
_N_GEN: Final = 24
_FIRST_ORDINARY_TOKEN: Final = 100
# Bounds of the planning error: a fraction of the used memory, or bytes, whichever is larger.
_OVERESTIMATE_BOUNDS: Final = (0.03, 32 << 20)
_UNDERESTIMATE_BOUNDS: Final = (0.01, 16 << 20)


class MemoryCase(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one model with one set of load options: predicted and measured."""

    model: str
    options: LoadOptions
    predicted: MemoryEstimate
    by_formulas_bytes: int
    peak_bytes: int
    """Peak PSS of the client, the engine and their child processes together."""

    @property
    def error_bytes(self) -> int:
        """Predicted minus used memory."""
        return self.predicted.total - self.peak_bytes

    @property
    def is_close(self) -> bool:
        """True if the planning error is within its bounds."""
        part, count = _OVERESTIMATE_BOUNDS if self.error_bytes >= 0 else _UNDERESTIMATE_BOUNDS
        return abs(self.error_bytes) <= max(part * self.peak_bytes, count)


class SpeedCase(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted and measured decode speed of one model, in tokens per second."""

    model: str
    predicted_tps: float
    measured_tps: float

    @property
    def ratio(self) -> float:
        """Predicted divided by measured speed."""
        return self.predicted_tps / self.measured_tps


class MemoryBenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the memory benchmark."""

    memory: list[MemoryCase]
    speed: list[SpeedCase]


def run(models: list[Path], rounds: int, on_progress: Callable[[str], None]) -> MemoryBenchReport:
    """Measure the memory of every model with all load options, then the speeds. Raises EdgechatError."""
    engine = EngineClient()
    try:
        cases = []
        for path in models:
            profile = ModelProfile.from_header(read_header(path))
            for options in _load_options(profile):
                on_progress(f"{path.name}: {_describe(options)}")
                cases.append(_measure_case(engine, profile, options))
        speeds = _measure_speeds(engine, models, rounds, on_progress)
    finally:
        engine.close()
    return MemoryBenchReport(memory=cases, speed=speeds)


def _load_options(profile: ModelProfile) -> Iterator[LoadOptions]:
    """Yield all combinations of context length and KV type, then of mapping and repacking."""
    n_seqs = default_n_seqs(profile)
    for n_ctx in _N_CTXS:
        for kv_type in _KV_TYPES:
            yield LoadOptions(n_ctx=n_ctx, n_seqs=n_seqs, kv_type=kv_type)
    for use_mmap in (True, False):
        for use_extra_bufts in (True, False):
            yield LoadOptions(n_ctx=_N_CTX, n_seqs=n_seqs, use_mmap=use_mmap, use_extra_bufts=use_extra_bufts)


def _describe(options: LoadOptions) -> str:
    return (
        f"{options.n_ctx} {options.kv_type}{'' if options.use_mmap else ' read'}"
        f"{'' if options.use_extra_bufts else ' plain'}"
    )


def _measure_case(engine: EngineClient, profile: ModelProfile, options: LoadOptions) -> MemoryCase:
    probed = engine.probe_memory(protocol.ProbeMemory(id=engine.next_id(), model_path=profile.path, options=options))
    plan = manual_plan(profile.path, n_threads=os.cpu_count() or 1, **msgspec.structs.asdict(options))
    return MemoryCase(
        model=Path(profile.path).name, options=options,
        predicted=estimate(profile, options, reported_buffers(profile, options, probed.memory)),
        by_formulas_bytes=estimate(profile, options).total, peak_bytes=_measure_peak_bytes(plan),
    )  # fmt: skip


def _measure_peak_bytes(plan: LoadPlan) -> int:
    """Run a conversation with this plan in fresh processes and return their peak PSS in bytes."""
    child = subprocess.Popen(
        process.command_line("_case"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if child.stdin is None or child.stderr is None:
        raise EngineError("The benchmark process started without pipes.")
    child.stdin.write(msgspec.json.encode(plan))
    child.stdin.close()
    peak = 0
    try:
        while child.poll() is None:
            peak = max(peak, tree_pss_bytes(child.pid))
            time.sleep(_SAMPLE_S)
    finally:
        child.kill()
    if not peak:
        raise EngineError("Memory can only be measured on Linux.")
    if child.returncode != 0:
        raise EngineError(f"A measurement failed: {child.stderr.read().decode('utf-8', 'replace').strip()[-400:]}")
    return peak


def case_main(arguments: list[str]) -> int:
    """Run the client process of one case: load the parts of a terminal conversation and generate one reply."""
    from edgechat.chat import session
    from edgechat.prompt.renderer import Renderer
    from edgechat.store import ephemeral_store

    del arguments, session  # imported because a conversation imports it
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan)
    store, renderer, engine = ephemeral_store(), Renderer(), EngineClient()
    renderer.start()
    engine.load(protocol.Load(id=engine.next_id(), plan=plan))
    n_prompt = min(plan.options.n_ctx - _N_GEN - 1, plan.options.n_ubatch + 64)
    _generate(engine, n_prompt)
    engine.close()
    renderer.close()
    store.close()
    return 0


def _generate(engine: EngineClient, n_prompt: int, n_gen: int = _N_GEN) -> float:
    """Generate a reply and return its decode speed in tokens per second."""
    tokens = [_FIRST_ORDINARY_TOKEN + i % _FIRST_ORDINARY_TOKEN for i in range(n_prompt)]
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_gen, ignore_eog=True, sampling=GREEDY, bypass_cache=True,
        speculate=False,
    )  # fmt: skip
    for event in engine.generate(request):
        if isinstance(event, protocol.RequestFinished):
            return event.stats.decode_tps
    return 0.0


def _measure_speeds(
    engine: EngineClient, models: list[Path], rounds: int, on_progress: Callable[[str], None]
) -> list[SpeedCase]:
    """Alternate kernel benchmark and measurement; return the medians."""
    predicted: dict[str, list[float]] = {}
    measured: dict[str, list[float]] = {}
    for number in range(rounds):
        on_progress(f"speeds, round {number + 1}")
        speeds = engine.list_devices(benchmark=True, remeasure=True).speeds
        for path in models:
            if speeds is not None:
                _measure_speed(path, speeds, predicted, measured)
    return [
        SpeedCase(model=name, predicted_tps=statistics.median(values), measured_tps=statistics.median(measured[name]))
        for name, values in predicted.items()
    ]


def _measure_speed(
    path: Path, speeds: KernelSpeeds, predicted: dict[str, list[float]], measured: dict[str, list[float]]
) -> None:
    prediction = predict_speed(ModelProfile.from_header(read_header(path)), speeds, n_past=64)
    if prediction is None:
        return
    plan = manual_plan(
        str(path), n_threads=speeds.decode_threads or speeds.n_threads, n_ctx=_N_CTX, n_seqs=1, speculation=False,
        use_mmap=False,
    )  # fmt: skip
    engine = EngineClient()
    try:
        engine.load(protocol.Load(id=engine.next_id(), plan=plan))
        _generate(engine, 48, 8)
        measured.setdefault(path.name, []).append(_generate(engine, 48, 64))
        predicted.setdefault(path.name, []).append(prediction.decode_tps)
    finally:
        engine.close()


def table(report: MemoryBenchReport) -> str:
    """Format the report as a table."""
    mb = 1e6
    lines = [
        "| model | context, KV type, weights | planned MB | by formulas | used | error |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for each in report.memory:
        options = each.options
        loading = f"{'mapped' if options.use_mmap else 'read'}{'' if options.use_extra_bufts else ', plain'}"
        lines.append(
            f"| {each.model} | {options.n_ctx}, {options.kv_type}, {loading} | {each.predicted.total / mb:.0f} "
            f"| {each.by_formulas_bytes / mb:.0f} | {each.peak_bytes / mb:.0f} "
            f"| {each.error_bytes / mb:+.1f} ({each.error_bytes / each.peak_bytes:+.1%})"
            f"{'' if each.is_close else ' !'} |"
        )
    lines += ["", "| model | predicted tokens/s | measured | ratio |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each.model} | {each.predicted_tps:.1f} | {each.measured_tps:.1f} | {each.ratio:.2f} |"
        for each in sorted(report.speed, key=lambda s: -s.measured_tps)
    ]
    return "\n".join(lines)
