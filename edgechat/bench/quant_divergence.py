"""Divergence of the quants of a model from the file that they were made of.

Each quant is written into a scratch directory. A child process compares the next-token distributions, because a client
never loads llama.cpp.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgechat import process
from edgechat.bench.kv_measure import compute_divergence, compute_logprobs
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, EngineError
from edgechat.hardware.cpu import count_usable_threads
from edgechat.models.quantization import Quantization

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgechat.runtime.bindings import Bindings

_TEXT_FILE: Final = Path(__file__).with_name("kv_text.txt")
# Length of the text, and number of positions at its end whose distributions are compared.
_N_TOKENS: Final = 1024
_N_COMPARED_TOKENS: Final = 512
_N_BATCH: Final = 512


class DivergenceWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of two files of one model, whose next-token distributions are compared."""

    reference: str
    model: str
    logprobs_file: str
    """File with the log-probabilities of `reference`, which the child process writes unless it exists."""
    n_threads: int


class DivergenceResult(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """Result of a comparison."""

    divergence: float
    """Mean Kullback-Leibler divergence from the reference, in nats per token."""
    agreement: float
    """Fraction of positions at which the most likely token is the same."""


class DivergenceFailure(msgspec.Struct, frozen=True, tag="failure"):
    """Reason why a comparison failed."""

    reason: str


def measure(
    engine: EngineClient, source: Path, quants: Sequence[str], directory: Path,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, DivergenceResult]]:  # fmt: skip
    """Yield the divergence of each quant of `source`, which is written into `directory` for that time.

    Raises EdgechatError if a quant cannot be written or measured.
    """
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        logprobs_file = Path(scratch) / "logprobs.f32"
        for quant in quants:
            target = Path(scratch) / f"{quant}.gguf"

            def show_tensor(number: int, count: int, quant: str = quant) -> None:
                on_progress(f"Quantising to {quant}: tensor {number} of {count}")

            Quantization(engine, source, quant).run(target, show_tensor)
            on_progress(f"Comparing {quant} with {source.name}")
            workload = DivergenceWorkload(
                reference=str(source), model=str(target), logprobs_file=str(logprobs_file),
                n_threads=count_usable_threads(),
            )  # fmt: skip
            yield quant, _run_child(workload)
            target.unlink()


def _run_child(workload: DivergenceWorkload) -> DivergenceResult:
    with subprocess.Popen(
        process.make_command_line("_divergence"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        if child.stdin is None or child.stdout is None:
            raise EngineError("The measuring process started without pipes. Try again.")
        try:
            child.stdin.write(msgspec.json.encode(workload) + b"\n")
            child.stdin.flush()  # the pipe stays open, because the child ends when it is closed
            line = child.stdout.readline()
        finally:
            child.kill()
    if not line:
        raise EngineError(f"The measuring process ended early (exit code {child.returncode}). Free memory, try again.")
    message = msgspec.json.decode(line, type=DivergenceResult | DivergenceFailure)
    if isinstance(message, DivergenceFailure):
        raise EngineError(message.reason)
    return message


def main(arguments: list[str]) -> int:
    """Run the child process `edgechat _divergence`: read a DivergenceWorkload from standard input, write the result."""
    from edgechat.runtime import bindings
    from edgechat.runtime.backends import probe
    from edgechat.runtime.backends.bundle import find_bundle

    del arguments
    workload = msgspec.json.decode(sys.stdin.buffer.readline(), type=DivergenceWorkload)
    process.end_with_parent()
    message: DivergenceResult | DivergenceFailure
    try:
        bundle = find_bundle()
        module, _ = probe.choose_module(bundle)
        message = _compare(bindings.load(bundle, module), workload)
    except EdgechatError as error:
        message = DivergenceFailure(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()
    return int(isinstance(message, DivergenceFailure))


def _compare(bindings: Bindings, workload: DivergenceWorkload) -> DivergenceResult:
    import numpy as np

    logprobs_file = Path(workload.logprobs_file)
    if not logprobs_file.exists():
        with logprobs_file.open("wb") as file:
            for logprobs in _iterate_logprobs(bindings, Path(workload.reference), workload.n_threads):
                file.write(logprobs.tobytes())
    rows = _iterate_logprobs(bindings, Path(workload.model), workload.n_threads)
    total, n_agreeing, n_compared, width = 0.0, 0, 0, 0
    for n_compared, logprobs in enumerate(rows, 1):
        width = len(logprobs)
        expected = np.fromfile(logprobs_file, np.float32, width, offset=4 * width * (n_compared - 1))
        total += compute_divergence(expected, logprobs)
        n_agreeing += int(expected.argmax()) == int(logprobs.argmax())
    return DivergenceResult(divergence=total / n_compared, agreement=n_agreeing / n_compared)


def _iterate_logprobs(bindings: Bindings, path: Path, n_threads: int) -> Iterator[NDArray[Any]]:
    """Yield the log-probabilities (float32 [n_vocab]) after each of the last tokens of the text."""
    from edgechat.planner.load_plan import make_manual_plan
    from edgechat.runtime.context import Context
    from edgechat.runtime.model import Model

    model = Model(bindings, path)
    context = Context(model, make_manual_plan(str(path), n_threads=n_threads, n_ctx=_N_TOKENS, n_seqs=1))
    try:
        text = _TEXT_FILE.read_text(encoding="utf-8")
        tokens = model.tokenize(text, add_special=True, parse_special=False)[:_N_TOKENS]
        n_unread = max(1, len(tokens) - _N_COMPARED_TOKENS)
        for start in range(0, n_unread, _N_BATCH):
            context.decode(tokens[start : min(n_unread, start + _N_BATCH)])
        for start in range(n_unread, len(tokens), context.max_outputs):
            batch = tokens[start : start + context.max_outputs]
            context.decode(batch, all_logits=True)
            for i in range(len(batch)):
                yield compute_logprobs(context.logits(i))
    finally:
        context.close()
        model.close()
