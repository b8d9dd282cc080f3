"""What models really take against what was planned, and how fast they really decode: each case in processes of its own."""

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
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.planner import memory
from edgechat.planner.memory import REPACKED, LoadOptions, MemoryEstimate
from edgechat.planner.plan import LoadPlan, given_plan, n_seqs_of
from edgechat.planner.throughput import KernelSpeeds, predict

_N_CTXS: Final = (512, 8192, 32768)
_N_CTX: Final = 2048
_KV_TYPES: Final[tuple[Literal["f16", "q8_0"], ...]] = ("f16", "q8_0")
_SAMPLE_S: Final = 0.01
_N_GEN: Final = 24
_FIRST_ORDINARY_TOKEN: Final = 100
# What a plan may be off by: under and over.
_OVER: Final = (0.03, 32 << 20)
_UNDER: Final = (0.01, 16 << 20)


class MemoryCase(msgspec.Struct, frozen=True, kw_only=True):
    """One way to load one model, and what came of it."""

    model: str
    options: LoadOptions
    predicted: MemoryEstimate
    by_formulas_bytes: int
    peak_bytes: int
    """Of both processes and what they started, shared pages divided among those that share them."""

    @property
    def error_bytes(self) -> int:
        """Positive where more was predicted than was taken."""
        return self.predicted.total - self.peak_bytes

    @property
    def is_close(self) -> bool:
        """True within the bounds that a plan is meant to keep to."""
        part, count = _OVER if self.error_bytes >= 0 else _UNDER
        return abs(self.error_bytes) <= max(part * self.peak_bytes, count)


class SpeedCase(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a model decodes."""

    model: str
    predicted_tps: float
    measured_tps: float

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted_tps / self.measured_tps


class MemoryBenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """All cases."""

    memory: list[MemoryCase]
    speed: list[SpeedCase]


def run(models: list[Path], rounds: int, tell: Callable[[str], None]) -> MemoryBenchReport:
    """Every model in every way, then speeds, calibrated and measured in turn. Raises EdgechatError."""
    engine = EngineClient()
    try:
        cases = []
        for path in models:
            header = read_header(path)
            for options in _ways(header):
                tell(f"{path.name}: {_words(options)}")
                cases.append(_case(engine, header, options))
        speeds = _speeds(engine, models, rounds, tell)
    finally:
        engine.close()
    return MemoryBenchReport(memory=cases, speed=speeds)


def _ways(header: ModelHeader) -> Iterator[LoadOptions]:
    """All contexts and types of keys and values, then all ways to load weights."""
    n_seqs = n_seqs_of(header)
    for n_ctx in _N_CTXS:
        for kv_type in _KV_TYPES:
            yield LoadOptions(n_ctx=n_ctx, n_seqs=n_seqs, kv_type=kv_type)
    for use_mmap in (True, False):
        for use_extra_bufts in (True, False):
            yield LoadOptions(n_ctx=_N_CTX, n_seqs=n_seqs, use_mmap=use_mmap, use_extra_bufts=use_extra_bufts)


def _words(options: LoadOptions) -> str:
    return (
        f"{options.n_ctx} {options.kv_type}{'' if options.use_mmap else ' read'}"
        f"{'' if options.use_extra_bufts else ' plain'}"
    )


def _case(engine: EngineClient, header: ModelHeader, options: LoadOptions) -> MemoryCase:
    found = engine.probe_memory(protocol.ProbeMemory(id=engine.next_id(), model_path=header.path, options=options))
    plan = given_plan(header.path, n_threads=os.cpu_count() or 1, **msgspec.structs.asdict(options))
    return MemoryCase(
        model=Path(header.path).name, options=options, predicted=memory.exact(header, options, found.memory),
        by_formulas_bytes=memory.estimate(header, options, REPACKED).total, peak_bytes=_peak_bytes(plan),
    )  # fmt: skip


def _peak_bytes(plan: LoadPlan) -> int:
    """The most that a conversation with this plan takes, in a client and an engine of its own."""
    child = subprocess.Popen(
        process.command("_case"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if child.stdin is None or child.stderr is None:
        raise EngineError("a process was started without its pipes")
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
        raise EngineError("what processes take can only be measured on Linux")
    if child.returncode != 0:
        raise EngineError(f"a measurement failed: {child.stderr.read().decode('utf-8', 'replace').strip()[-400:]}")
    return peak


def case_main(arguments: list[str]) -> int:
    """The client of one case: everything that a conversation at the terminal needs, and one answer."""
    from edgechat.chat import session
    from edgechat.prompt.renderer import Renderer
    from edgechat.store import ephemeral_store

    del arguments, session  # it is imported as a conversation would
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
    """Tokens a second of an answer."""
    tokens = [_FIRST_ORDINARY_TOKEN + i % _FIRST_ORDINARY_TOKEN for i in range(n_prompt)]
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_gen, ignore_eog=True, sampling=GREEDY, bypass_cache=True,
        speculate=False,
    )  # fmt: skip
    for event in engine.generate(request):
        if isinstance(event, protocol.RequestFinished):
            return event.stats.decode_tps
    return 0.0


def _speeds(engine: EngineClient, models: list[Path], rounds: int, tell: Callable[[str], None]) -> list[SpeedCase]:
    """Calibration and measurement in turn; medians of both count."""
    predicted: dict[str, list[float]] = {}
    measured: dict[str, list[float]] = {}
    for number in range(rounds):
        tell(f"speeds, round {number + 1}")
        found = engine.list_devices(benchmark=True, remeasure=True).speeds
        for path in models:
            if found is not None:
                _measure_speed(path, found, predicted, measured)
    return [
        SpeedCase(model=name, predicted_tps=statistics.median(values), measured_tps=statistics.median(measured[name]))
        for name, values in predicted.items()
    ]


def _measure_speed(
    path: Path, found: KernelSpeeds, predicted: dict[str, list[float]], measured: dict[str, list[float]]
) -> None:
    header = read_header(path)
    guess = predict(header, found, n_past=64)
    if guess is None:
        return
    plan = given_plan(
        str(path), n_threads=found.decode_threads or found.n_threads, n_ctx=_N_CTX, n_seqs=1, speculation=False,
        use_mmap=False,
    )  # fmt: skip
    engine = EngineClient()
    try:
        engine.load(protocol.Load(id=engine.next_id(), plan=plan))
        _generate(engine, 48, 8)
        measured.setdefault(path.name, []).append(_generate(engine, 48, 64))
        predicted.setdefault(path.name, []).append(guess.decode_tps)
    finally:
        engine.close()
