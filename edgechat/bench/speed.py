"""Benchmark of prefill and decode speed, in alternating runs with llama-bench on the same workload."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.gpu import BenchGpu, find_gpu
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import GenerationStats
from edgechat.errors import EngineError, UsageError
from edgechat.hardware.cpu import count_usable_threads
from edgechat.modelfile.split import read_header
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.backends.bundle import find_bundle

N_BATCH: Final = 512
_FIRST_ORDINARY_TOKEN: Final = 300  # above the IDs of control and byte tokens in all common vocabularies


class SpeedWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads and token counts of a speed measurement."""

    model: str
    n_threads: int
    n_prompt: int = 256
    n_gen: int = 64
    n_depth: int = 0
    """Number of tokens in the context before the measured tokens."""
    rounds: int = 5
    uses_gpu: bool = False
    """Whether every layer is computed by a GPU, in edgechat and in the peer."""


class SpeedSample(msgspec.Struct, frozen=True):
    """Result of one round, in tokens per second."""

    prefill_tps: float
    decode_tps: float


class SpeedReport(msgspec.Struct, frozen=True):
    """Results of all rounds. The ratios are edgechat's speed divided by the peer's speed in the same round."""

    workload: SpeedWorkload
    backend: str
    build_id: str
    edgechat: list[SpeedSample] = msgspec.field(name="ours")
    peer: list[SpeedSample]
    prefill_ratio: float | None
    """Prefill speed of edgechat divided by that of the peer, median over the rounds; None without a peer."""
    decode_ratio: float | None
    gpu: str = ""
    """GPUs with every layer of the model; "" if the CPU computed everything."""


def compare(
    workload: SpeedWorkload, peer: Path | None, on_progress: Callable[[str], None] = lambda text: None
) -> SpeedReport:
    """Measure the workload, alternating with the llama-bench binary `peer` if it is given.

    Raises EdgechatError if edgechat or the peer fails.
    """
    bundle = find_bundle()
    edgechat_samples: list[SpeedSample] = []
    peer_samples: list[SpeedSample] = []
    engine = EngineClient()
    try:
        gpu = find_gpu(engine, Path(workload.model)) if workload.uses_gpu else None
        backend = load_engine(engine, workload, n_gpu_layers=gpu.n_layers if gpu else 0)
        module = next(m for m in bundle.modules if m.name == backend)
        for round_index in range(workload.rounds):
            on_progress(f"round {round_index + 1} of {workload.rounds}")
            measurements: list[Callable[[], None]] = [lambda: edgechat_samples.append(measure_engine(engine, workload))]
            if peer is not None:
                measurements.append(lambda: peer_samples.append(measure_peer(peer, module.path, workload, gpu)))
            # The order alternates, because the second run of each pair starts on a warmer machine.
            for measure in measurements if round_index % 2 == 0 else reversed(measurements):
                measure()
    finally:
        engine.close()
    return SpeedReport(
        workload=workload, backend=backend, build_id=bundle.build_id, edgechat=edgechat_samples, peer=peer_samples,
        prefill_ratio=_median_ratio([s.prefill_tps for s in edgechat_samples], [s.prefill_tps for s in peer_samples]),
        decode_ratio=_median_ratio([s.decode_tps for s in edgechat_samples], [s.decode_tps for s in peer_samples]),
        gpu=gpu.name if gpu else "",
    )  # fmt: skip


def make_workload(model: Path, n_threads: int | None, *, uses_gpu: bool = False, **sizes: int) -> SpeedWorkload:
    """Return a workload for a model file.

    Raises ModelFileError, and UsageError if the workload exceeds the context length that the model was trained with.
    """
    header = read_header(model)
    workload = SpeedWorkload(
        model=str(model), n_threads=n_threads or count_usable_threads(), uses_gpu=uses_gpu, **sizes
    )  # fmt: skip
    max_tokens = workload.n_depth + max(workload.n_prompt, workload.n_gen)
    if header.n_ctx_train and max_tokens > header.n_ctx_train:
        raise UsageError(
            f"{max_tokens} tokens exceed the context length that {model} was trained with ({header.n_ctx_train}). "
            "Choose smaller values."
        )
    return workload


def load_engine(
    engine: EngineClient, workload: SpeedWorkload, *, adapts_n_threads: bool = False, n_gpu_layers: int = 0
) -> str:
    """Load the model of a workload without drafts and prompt cache; return the name of the backend.

    With `adapts_n_threads`, decode steps use fewer threads while other programs are busy, as they do in a chat.
    """
    plan = make_manual_plan(
        workload.model, n_threads=workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH,
        n_ctx=workload.n_depth + workload.n_prompt + workload.n_gen + 1, speculation=False,
        adapts_n_threads=adapts_n_threads, n_gpu_layers=n_gpu_layers,
    )  # fmt: skip
    return engine.load(protocol.Load(id=engine.next_id(), plan=plan)).backend


def measure_engine(engine: EngineClient, workload: SpeedWorkload) -> SpeedSample:
    """Measure a workload once in an engine that has loaded the workload's model. Raises EngineError."""
    # The first iteration is a warm-up run whose speed is discarded, as in llama-bench.
    depth = _make_tokens(workload.n_depth)
    for is_measured in (False, True):
        _generate(engine, depth or _make_tokens(1), 1, ephemeral=False)
        prefill_tps = _generate(engine, depth + _make_tokens(workload.n_prompt), 1).prefill_tps
        # Decoding starts at the context depth. The first token comes from the prefill and is not counted.
        decode_tps = _generate(engine, depth + _make_tokens(1), workload.n_gen + 1 if is_measured else 2).decode_tps
    return SpeedSample(prefill_tps, decode_tps)


def _make_tokens(count: int) -> list[int]:
    return [random.SystemRandom().randrange(_FIRST_ORDINARY_TOKEN, 2 * _FIRST_ORDINARY_TOKEN) for _ in range(count)]


def _generate(engine: EngineClient, tokens: list[int], count: int, *, ephemeral: bool = True) -> GenerationStats:
    request = protocol.Generate(id=engine.next_id(), tokens=tokens, max_tokens=count, ignore_eog=True, sampling=GREEDY,
        ephemeral=ephemeral,
    )  # fmt: skip
    *_, last = engine.generate(request)
    if not isinstance(last, protocol.RequestFinished):
        raise EngineError("The engine ended a measurement without statistics. Run the benchmark again.")
    return last.stats


class _LlamaBenchRow(msgspec.Struct):
    n_prompt: int
    n_gen: int
    samples_ts: list[float]
    backends: str = ""
    """Kinds of GPU modules that are loaded; "CPU" if there is none."""


def measure_peer(peer: Path, module: str, workload: SpeedWorkload, gpu: BenchGpu | None = None) -> SpeedSample:
    """Measure a workload once with the llama-bench binary `peer`, the CPU module `module` and the module of `gpu`.

    Every layer is on the GPU if there is one. Raises EngineError.
    """
    command = [
        str(peer.resolve()), "-m", str(Path(workload.model).resolve()), "-t", str(workload.n_threads), "-r", "1",
        "-p", str(workload.n_prompt), "-n", str(workload.n_gen), "-d", str(workload.n_depth),
        "-b", str(N_BATCH), "-ub", str(N_BATCH), "-lm", "mmap", "-o", "json", *(("-ngl", "99") if gpu else ()),
    ]  # fmt: skip
    # GGML_BACKEND_PATH selects the module that edgechat uses. ggml also searches the current directory, so llama-bench
    # runs in an empty directory, or beside a GPU in one with the CPU module.
    environment = os.environ | {"GGML_BACKEND_PATH": gpu.module if gpu else module}
    with tempfile.TemporaryDirectory() as directory:
        if gpu:
            shutil.copy(module, directory)
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    try:
        rows = msgspec.json.decode(result.stdout, type=list[_LlamaBenchRow])
        if gpu and any(row.backends in {"", "CPU"} for row in rows):
            raise EngineError(f"{peer} did not use {gpu.name}. Build it from the llama.cpp of this edgechat.")
        return SpeedSample(
            prefill_tps=next(r.samples_ts[0] for r in rows if r.n_prompt),
            decode_tps=next(r.samples_ts[0] for r in rows if r.n_gen),
        )
    except (msgspec.MsgspecError, StopIteration, IndexError) as error:
        message = result.stderr[-500:].strip() or "its output is not valid JSON of llama-bench"
        raise EngineError(f"{peer} failed (exit code {result.returncode}): {message}") from error


def _median_ratio(edgechat_tps: list[float], peer_tps: list[float]) -> float | None:
    return statistics.median(a / b for a, b in zip(edgechat_tps, peer_tps, strict=True)) if peer_tps else None


def format_table(report: SpeedReport) -> str:
    """Format the report as a table."""
    import statistics

    workload = report.workload
    lines = [
        (
            f"{Path(workload.model).name}, {report.backend}, "
            f"{f'every layer on {report.gpu}, ' if report.gpu else ''}"
            f"{workload.n_threads} threads, depth {workload.n_depth}, {workload.rounds} rounds (medians)"
        ),
        f"{'':<12}{'edgechat':>12}{'llama-bench':>14}{'ratio':>8}",
    ]
    for name, size, field, ratio in (
        ("prefill", workload.n_prompt, "prefill_tps", report.prefill_ratio),
        ("decode", workload.n_gen, "decode_tps", report.decode_ratio),
    ):
        edgechat_tps, peer_tps = ([getattr(s, field) for s in samples] for samples in (report.edgechat, report.peer))
        peer = f"{statistics.median(peer_tps):14.1f}{ratio:8.3f}" if peer_tps else ""
        lines.append(f"{name} {size:<{11 - len(name)}}{statistics.median(edgechat_tps):12.1f}{peer}")
    return "\n".join(lines)
