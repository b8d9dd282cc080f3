"""Prefill and decode speed of this machine, ours and llama-bench's, in turn, on the same work."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError, UsageError
from edgechat.hardware.cpu import usable_threads
from edgechat.modelfile.split import read_header
from edgechat.planner.plan import given_plan
from edgechat.runtime.backends.bundle import find_bundle

N_BATCH: Final = 512
_FIRST_ORDINARY_TOKEN: Final = 300  # above control tokens and bytes in every vocabulary that matters


class SpeedWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    model: str
    n_threads: int
    n_prompt: int = 256
    n_gen: int = 64
    n_depth: int = 0
    """Tokens in the context before the measured ones."""
    rounds: int = 5


class SpeedSample(msgspec.Struct, frozen=True):
    """One measurement, in tokens per second."""

    prefill_tps: float
    decode_tps: float


class SpeedReport(msgspec.Struct, frozen=True):
    """All rounds of one comparison. Ratios are ours to the peer's, round by round."""

    workload: SpeedWorkload
    backend: str
    build_id: str
    ours: list[SpeedSample]
    peer: list[SpeedSample]
    prefill_ratio: float | None
    """Median over the rounds; None without a peer."""
    decode_ratio: float | None


def compare(
    workload: SpeedWorkload, peer: Path | None, tell: Callable[[str], None] = lambda words: None
) -> SpeedReport:
    """Run the workload, and the peer's llama-bench in turn with it where one is given.

    Raises EdgechatError if either fails.
    """
    bundle = find_bundle()
    ours: list[SpeedSample] = []
    theirs: list[SpeedSample] = []
    engine = EngineClient()
    try:
        backend = _load(engine, workload)
        module = next(m for m in bundle.modules if m.name == backend)
        for number in range(workload.rounds):
            tell(f"round {number + 1} of {workload.rounds}")
            runs: list[Callable[[], None]] = [lambda: ours.append(_measure(engine, workload))]
            if peer is not None:
                runs.append(lambda: theirs.append(_measure_peer(peer, module.path, workload)))
            # The one that goes second finds a warmer machine: they take turns.
            for run in runs if number % 2 == 0 else reversed(runs):
                run()
    finally:
        engine.close()
    return SpeedReport(
        workload=workload, backend=backend, build_id=bundle.build_id, ours=ours, peer=theirs,
        prefill_ratio=_ratio([s.prefill_tps for s in ours], [s.prefill_tps for s in theirs]),
        decode_ratio=_ratio([s.decode_tps for s in ours], [s.decode_tps for s in theirs]),
    )  # fmt: skip


def workload_for(model: Path, n_threads: int | None, **sizes: int) -> SpeedWorkload:
    """A workload for a model file. Raises ModelFileError, and UsageError if it is longer than the context."""
    header = read_header(model)
    workload = SpeedWorkload(model=str(model), n_threads=n_threads or usable_threads(), **sizes)
    longest = workload.n_depth + max(workload.n_prompt, workload.n_gen)
    if header.n_ctx_train and longest > header.n_ctx_train:
        raise UsageError(f"{longest} tokens are more than the {header.n_ctx_train} that {model} was trained for")
    return workload


def _load(engine: EngineClient, workload: SpeedWorkload) -> str:
    plan = given_plan(
        workload.model, n_threads=workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH,
        n_ctx=workload.n_depth + workload.n_prompt + workload.n_gen + 1, speculation=False,
    )  # fmt: skip
    return engine.load(protocol.Load(id=engine.next_id(), plan=plan)).backend


def _measure(engine: EngineClient, workload: SpeedWorkload) -> SpeedSample:
    # llama-bench runs the prompt and one token unmeasured before it measures either: so does this.
    depth = _tokens(workload.n_depth)
    for measured in (False, True):
        _generate(engine, depth or _tokens(1), 1, is_aside=False)
        prefill = _generate(engine, depth + _tokens(workload.n_prompt), 1).prefill_tps
        # Decoding starts from the depth; its first token comes out of the prefill and is not counted.
        decode = _generate(engine, depth + _tokens(1), workload.n_gen + 1 if measured else 2).decode_tps
    return SpeedSample(prefill, decode)


def _tokens(count: int) -> list[int]:
    return [random.SystemRandom().randrange(_FIRST_ORDINARY_TOKEN, 2 * _FIRST_ORDINARY_TOKEN) for _ in range(count)]


def _generate(
    engine: EngineClient, tokens: list[int], count: int, *, is_aside: bool = True
) -> protocol.GenerationStats:
    request = protocol.Generate(id=engine.next_id(), tokens=tokens, max_tokens=count, ignore_eog=True, sampling=GREEDY,
        ephemeral=is_aside,
    )  # fmt: skip
    *_, last = engine.generate(request)
    if not isinstance(last, protocol.RequestFinished):
        raise EngineError("the engine ended a measurement without its figures")
    return last.stats


class _Row(msgspec.Struct):
    n_prompt: int
    n_gen: int
    samples_ts: list[float]


def _measure_peer(peer: Path, module: str, workload: SpeedWorkload) -> SpeedSample:
    command = [
        str(peer.resolve()), "-m", str(Path(workload.model).resolve()), "-t", str(workload.n_threads), "-r", "1",
        "-p", str(workload.n_prompt), "-n", str(workload.n_gen), "-d", str(workload.n_depth),
        "-b", str(N_BATCH), "-ub", str(N_BATCH), "-lm", "mmap", "-o", "json",
    ]  # fmt: skip
    # The same module, and no other: an empty directory, since ggml also searches the current one.
    environment = os.environ | {"GGML_BACKEND_PATH": module}
    with tempfile.TemporaryDirectory() as empty:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=empty, env=environment)
    try:
        rows = msgspec.json.decode(result.stdout, type=list[_Row])
        return SpeedSample(
            prefill_tps=next(r.samples_ts[0] for r in rows if r.n_prompt),
            decode_tps=next(r.samples_ts[0] for r in rows if r.n_gen),
        )
    except (msgspec.MsgspecError, StopIteration, IndexError) as error:
        said = result.stderr[-500:].strip() or "what it printed is not llama-bench's JSON"
        raise EngineError(f"{peer} failed (exit code {result.returncode}): {said}") from error


def _ratio(ours: list[float], theirs: list[float]) -> float | None:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs else None
