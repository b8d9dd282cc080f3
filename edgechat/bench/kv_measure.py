"""Child process of the KV benchmark: divergence of the next-token distribution, and retrieval of needles.

The process loads llama.cpp itself, because the engine's protocol does not contain whole distributions.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgechat import process
from edgechat.bench.kv_report import (
    N_NEEDLES,
    KvCase,
    KvCaseOptions,
    KvDepthResult,
    KvFailure,
    KvProgress,
    KvReport,
    KvWorkload,
)
from edgechat.errors import EdgechatError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime import bindings
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_COMPARED_TOKENS: Final = 512
"""Number of positions before each depth at which the distributions are compared."""
_N_BATCH: Final = 512
_N_ANSWER_TOKENS: Final = 12
# Number of tokens that are reserved for the question and the answer after the text.
_N_QUESTION_TOKENS: Final = 64
# Starts of the hidden sentences, which end with a number. They have few words in common, because small models confuse
# similar sentences even in short texts.
_NEEDLES: Final = (
    "The access code of the archive in Lisbon is", "Captain Miller painted his lucky number on the boat:",
    "Last winter, the bakery in Oslo sold this many loaves of rye bread:",
    "The telescope at Quito has the serial number",
    "Grandmother's recipe was printed on page", "In Nairobi, the marathon was won by runner",
    "The reward for the stolen violin, in dollars, was", "Every locker key in Hanoi opens locker",
    "Professor Tanaka counted the butterflies, and her result was", "The night train to Ankara has wagon",
)  # fmt: skip
_TEXT_FILE: Final = Path(__file__).with_name("kv_text.txt")


def main(arguments: list[str]) -> int:
    """Run the child process `edgechat _kv`: read a KvWorkload from standard input, write progress and the result."""
    del arguments
    workload = msgspec.json.decode(sys.stdin.buffer.readline(), type=KvWorkload)
    process.end_with_parent()
    try:
        bundle = find_bundle()
        module, _ = probe.choose_module(bundle)
        measurement = _Measurement(Model(bindings.load(bundle, module), Path(workload.model)), workload)
        _send(KvReport(workload=workload, backend=module.name, cases=list(measurement.run())))
    except EdgechatError as error:
        _send(KvFailure(str(error)))
        return 1
    return 0


def _send(message: KvProgress | KvReport | KvFailure) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


class _Measurement:
    """Measurement of all cases of a workload with one loaded model."""

    def __init__(self, model: Model, workload: KvWorkload) -> None:
        self._model = model
        self._workload = workload
        self._paragraphs = [
            self._tokenize(paragraph + "\n\n") for paragraph in _TEXT_FILE.read_text(encoding="utf-8").split("\n\n")
        ]

    def run(self) -> Iterator[KvCase]:
        """Yield the results of each case; the first case is the reference of the divergence."""
        import numpy as np

        workload = self._workload
        shape = (len(workload.depths), N_COMPARED_TOKENS, self._model.n_vocab)
        with tempfile.TemporaryFile() as file:  # in a file, because a large vocabulary needs gigabytes
            reference = np.memmap(file, np.float32, "w+", shape=shape)
            for i, options in enumerate(workload.cases):
                yield KvCase(
                    options=options,
                    depths=[
                        self._measure_depth(options, depth, reference[j], is_reference=i == 0)
                        for j, depth in enumerate(workload.depths)
                    ],
                )  # fmt: skip

    def _measure_depth(
        self, options: KvCaseOptions, depth: int, reference: NDArray[Any], *, is_reference: bool
    ) -> KvDepthResult:
        """Read a text of `depth` tokens, compare the last distributions with `reference`, and ask for the needles."""
        numbers = random.Random(depth).sample(range(10_000, 100_000), N_NEEDLES)  # noqa: S311  (no secrets)
        tokens = self._make_haystack(depth - _N_QUESTION_TOKENS, numbers)
        n_question_tokens = max(len(self._tokenize(needle)) for needle in _NEEDLES) + _N_ANSWER_TOKENS
        context = self._open_context(options, max(depth, len(tokens) + n_question_tokens))
        first_compared = max(1, len(tokens) - N_COMPARED_TOKENS)
        start_cpu_s = time.process_time()
        for start in range(0, first_compared, _N_BATCH):
            _send(KvProgress(text=f"{options.title}: token {start:,} of {depth:,}"))
            context.decode(tokens[start : min(first_compared, start + _N_BATCH)])
        context.synchronize()
        prefill_cpu_s = time.process_time() - start_cpu_s
        comparison = _Comparison(reference, is_reference=is_reference)
        for start in range(first_compared, len(tokens), context.max_outputs):
            batch = tokens[start : start + context.max_outputs]
            context.decode(batch, all_logits=True)
            comparison.add([context.logits(j) for j in range(len(batch))])
        n_found = sum(
            self._continue(context, needle).strip().startswith(str(number))
            for needle, number in zip(_NEEDLES, numbers, strict=True)
        )
        context.close()
        return KvDepthResult(
            depth=depth, n_found_needles=n_found, prefill_cpu_s=prefill_cpu_s, divergence=comparison.divergence,
            agreement=comparison.agreement,
        )  # fmt: skip

    def _open_context(self, options: KvCaseOptions, n_ctx: int) -> Context:
        plan = make_manual_plan(
            self._workload.model, n_threads=self._workload.n_threads, n_ctx=n_ctx, n_seqs=2,
            **msgspec.structs.asdict(options),
        )  # fmt: skip
        return Context(self._model, plan)

    def _make_haystack(self, n_tokens: int, numbers: list[int]) -> list[int]:
        """Return a text of at most `n_tokens` tokens, with one sentence at 5 %, 15 % and so on up to 95 % of it."""
        sentences = [
            self._tokenize(f"{needle} {number}.\n\n") for needle, number in zip(_NEEDLES, numbers, strict=True)
        ]
        tokens: list[int] = []
        n_hidden = i = 0
        while True:
            if n_hidden < N_NEEDLES and len(tokens) >= n_tokens * (n_hidden + 0.5) / N_NEEDLES:
                tokens += sentences[n_hidden]
                n_hidden += 1
            paragraph = self._paragraphs[i % len(self._paragraphs)]
            remaining = [token for sentence in sentences[n_hidden:] for token in sentence]
            if len(tokens) + len(paragraph) + len(remaining) > n_tokens:
                return tokens + remaining
            tokens += paragraph
            i += 1

    def _tokenize(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=False)

    def _continue(self, context: Context, text: str) -> str:
        """Return the greedy continuation of the text in sequence 0, followed by `text`. Sequence 0 is unchanged."""
        context.copy(0, 1, len(context.tokens()))
        tokens = self._tokenize(text)
        output = b""
        for _ in range(_N_ANSWER_TOKENS):
            context.decode(tokens, 1)
            tokens = [int(context.logits().argmax())]
            output += self._model.token_to_piece(tokens[0])
        context.drop(1)
        return output.decode("utf-8", "replace")


class _Comparison:
    """Comparison of next-token distributions with those of the reference, which the first case writes."""

    def __init__(self, reference: NDArray[Any], *, is_reference: bool) -> None:
        """Compare with the log-probabilities `reference` [position, token] (float32)."""
        self._reference = reference
        self._is_reference = is_reference
        self._n_compared = self._n_agreeing = 0
        self._sum = 0.0

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence from the reference, in nats."""
        return self._sum / self._n_compared

    @property
    def agreement(self) -> float:
        """Fraction of positions at which the most likely token is the same as in the reference."""
        return self._n_agreeing / self._n_compared

    def add(self, logits: list[NDArray[Any]]) -> None:
        """Compare the distributions of the next positions."""
        for row in logits:
            logprobs, target = compute_logprobs(row), self._reference[self._n_compared]
            if self._is_reference:
                target[:] = logprobs
            self._sum += compute_divergence(target, logprobs)
            self._n_agreeing += int(target.argmax()) == int(logprobs.argmax())
            self._n_compared += 1


def compute_logprobs(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the log-probabilities (float32) of `logits` [n_vocab]."""
    import numpy as np

    values = logits.astype(np.float64)
    values -= values.max()
    logprobs: NDArray[Any] = (values - np.log(np.exp(values).sum())).astype(np.float32)
    return logprobs


def compute_divergence(reference: NDArray[Any], logprobs: NDArray[Any]) -> float:
    """Return the Kullback-Leibler divergence of `logprobs` from `reference`, both log-probabilities, in nats."""
    import numpy as np

    expected = reference.astype(np.float64)
    return float((np.exp(expected) * (expected - logprobs)).sum())
