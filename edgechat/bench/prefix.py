"""Benchmark of the prompt cache: time to first token, compared with a cold run and with llama-server."""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.llama_server import LlamaServer
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.backends.bundle import find_bundle

N_BATCH: Final = 512
N_SYSTEM_TOKENS: Final = 100
_N_REPLY_TOKENS: Final = 48
_FIRST_TOKEN, _LAST_TOKEN = 300, 3000  # IDs of ordinary tokens in all common vocabularies
_PREFIX_CACHE_BYTES: Final = 4 << 30
# Pause between measurements of different engines. The idle compute threads of an engine spin before they sleep, and
# would slow the other engine.
PAUSE_S: Final = 0.5


class PrefixWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads and token counts of a prompt cache measurement."""

    model: str
    n_threads: int
    n_history: int = 2000
    """Number of tokens in the conversation before the measured message."""
    n_new: int = 60
    """Number of tokens in the measured message."""
    rounds: int = 5


class PrefixRow(msgspec.Struct, frozen=True, kw_only=True):
    """Results of one scenario over all rounds."""

    name: str
    ttft_s: list[float]
    """Seconds from sending the prompt to the first token, for each round."""
    overhead_s: list[float] = msgspec.field(name="beside_s")
    """Seconds of `ttft_s` that were not spent on prefill, for each round."""
    cached_tokens: int
    """Number of cached prompt tokens in the last round."""
    times_faster_than_cold: float
    """Time to first token of a cold run divided by `ttft_s`; median over the rounds."""
    peer_ttft_s: list[float]
    n_peer_cached_tokens: int = msgspec.field(name="peer_cached_tokens")
    times_faster_than_peer: float | None


class PrefixReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the prompt cache benchmark."""

    workload: PrefixWorkload
    backend: str
    prefill_tps: float
    """Median prefill speed with an empty cache."""
    cold_ttft_s: list[float]
    rows: list[PrefixRow]
    four_replies_cost: list[float] = msgspec.field(name="four_answers_cost")
    """Time of four parallel replies divided by the time of one reply of the same length, for each round."""


class _FirstTokenMeasurement(msgspec.Struct, frozen=True):
    ttft_s: float
    cached_tokens: int
    overhead_s: float
    prefill_tps: float


SCENARIOS: Final = ("next turn", "edit of the last message", "regenerate", "branch switch", "edit of the first message",
                "reopen after a restart")  # fmt: skip


def run(
    workload: PrefixWorkload, peer: Path | None, on_progress: Callable[[str], None] = lambda text: None
) -> PrefixReport:
    """Measure all scenarios, alternating with the llama-server binary `peer` if it is given.

    Raises EdgechatError.
    """
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch_dir, contextlib.ExitStack() as stack:
        edgechat = _EdgechatEngine(workload, Path(scratch_dir))
        stack.callback(edgechat.close)
        server = None
        if peer is not None:
            module = next(m for m in find_bundle().modules if m.name == edgechat.backend)
            server = LlamaServer(
                peer, module.path, workload.model, n_ctx=_compute_context_length(workload),
                n_threads=workload.n_threads, n_batch=N_BATCH,
            )  # fmt: skip
            stack.callback(server.close)
        cold_runs: list[_FirstTokenMeasurement] = []
        results: dict[str, list[_FirstTokenMeasurement]] = {name: [] for name in SCENARIOS}
        peer_results: dict[str, list[tuple[float, int]]] = {name: [] for name in SCENARIOS}
        four_replies_costs: list[float] = []
        for round_index in range(workload.rounds):
            on_progress(f"round {round_index + 1} of {workload.rounds}")
            prompts = _make_prompts(workload)
            cold_runs.append(
                edgechat.measure_first_token(random_tokens(workload.n_history + workload.n_new), bypass_cache=True)
            )
            four_replies_costs.append(edgechat.measure_decode_s(4) / edgechat.measure_decode_s(1))
            for name in SCENARIOS:
                # The order alternates, because the second run of each pair starts on a warmer machine.
                is_edgechat_first = round_index % 2 == 0
                if is_edgechat_first:
                    results[name].append(edgechat.run_scenario(name, prompts))
                if server is not None:
                    time.sleep(PAUSE_S)
                    peer_results[name].append(_run_peer_scenario(server, name, prompts))
                time.sleep(PAUSE_S)
                if not is_edgechat_first:
                    results[name].append(edgechat.run_scenario(name, prompts))
        return PrefixReport(
            workload=workload, backend=edgechat.backend,
            prefill_tps=statistics.median(t.prefill_tps for t in cold_runs), cold_ttft_s=[t.ttft_s for t in cold_runs],
            rows=[_make_row(name, results[name], cold_runs, peer_results[name]) for name in SCENARIOS],
            four_replies_cost=four_replies_costs,
        )  # fmt: skip


def _make_row(
    name: str,
    results: list[_FirstTokenMeasurement],
    cold_runs: list[_FirstTokenMeasurement],
    peer_results: list[tuple[float, int]],
) -> PrefixRow:
    return PrefixRow(
        name=name, ttft_s=[t.ttft_s for t in results], overhead_s=[t.overhead_s for t in results],
        cached_tokens=results[-1].cached_tokens, peer_ttft_s=[s for s, _ in peer_results],
        n_peer_cached_tokens=peer_results[-1][1] if peer_results else 0,
        times_faster_than_cold=statistics.median(c.ttft_s / t.ttft_s for c, t in zip(cold_runs, results, strict=True)),
        times_faster_than_peer=statistics.median(s / t.ttft_s for (s, _), t in zip(peer_results, results, strict=True))
        if peer_results else None,
    )  # fmt: skip


def random_tokens(count: int) -> list[int]:
    """Return `count` random ordinary tokens, which share no prefix with earlier prompts."""
    generator = random.SystemRandom()
    return [generator.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(count)]


def _compute_context_length(workload: PrefixWorkload) -> int:
    # Enough cells for the conversation, its branches and the cold run.
    return 3 * (workload.n_history + 4 * workload.n_new) + 256


def _make_prompts(workload: PrefixWorkload) -> dict[str, list[list[int]]]:
    """Return the prompts of each scenario; only the last prompt of a scenario is measured."""
    n_history, n_new = workload.n_history, workload.n_new
    system = random_tokens(N_SYSTEM_TOKENS)
    history = system + random_tokens(n_history - N_SYSTEM_TOKENS)
    next_prompt = history + random_tokens(n_new)
    edited_prompt = history + random_tokens(n_new)
    return {
        "next turn": [history, next_prompt],
        "edit of the last message": [edited_prompt],
        "regenerate": [edited_prompt],
        "branch switch": [next_prompt + random_tokens(n_new)],
        "edit of the first message": [system + random_tokens(n_history + n_new - N_SYSTEM_TOKENS)],
        "reopen after a restart": [history + random_tokens(n_new), next_prompt + random_tokens(n_new)],
    }


class _EdgechatEngine:
    def __init__(self, workload: PrefixWorkload, scratch_dir: Path) -> None:
        self._workload = workload
        self._scratch = scratch_dir
        self.backend = ""
        self._open()

    def _open(self) -> None:
        self._engine = EngineClient()
        plan = make_manual_plan(
            self._workload.model, n_threads=self._workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH,
            n_ctx=_compute_context_length(self._workload), n_seqs=4, prefix_ram_bytes=_PREFIX_CACHE_BYTES,
            prefix_disk_bytes=_PREFIX_CACHE_BYTES, speculation=False,
        )  # fmt: skip
        request = protocol.Load(id=self._engine.next_id(), plan=plan, prefix_dir=str(self._scratch))
        self.backend = self._engine.load(request).backend

    def run_scenario(self, name: str, prompts: dict[str, list[list[int]]]) -> _FirstTokenMeasurement:
        *earlier_prompts, final_prompt = prompts[name]
        for prompt in earlier_prompts:
            self.measure_first_token(prompt)
        if name == "reopen after a restart":
            time.sleep(1.0)  # the cache saves segments while the engine is idle; `close` saves the remaining ones
            self.close()
            self._open()
        return self.measure_first_token(final_prompt)

    def measure_first_token(self, tokens: list[int], *, bypass_cache: bool = False) -> _FirstTokenMeasurement:
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=tokens, max_tokens=1, ignore_eog=True, sampling=GREEDY,
            conversation="" if bypass_cache else "bench", bypass_cache=bypass_cache, ephemeral=bypass_cache,
        )  # fmt: skip
        started_at = time.monotonic()
        *_, last_event = self._engine.generate(request)
        ttft_s = time.monotonic() - started_at
        if not isinstance(last_event, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics. Run the benchmark again.")
        stats = last_event.stats
        prefill_s = (stats.prompt_tokens - stats.cached_tokens) / stats.prefill_tps if stats.prefill_tps else 0.0
        return _FirstTokenMeasurement(ttft_s, stats.cached_tokens, ttft_s - prefill_s, stats.prefill_tps)

    def measure_decode_s(self, n_sequences: int) -> float:
        """Return the time in seconds to decode `n_sequences` parallel replies, excluding their first tokens."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=random_tokens(N_SYSTEM_TOKENS), max_tokens=_N_REPLY_TOKENS,
            ignore_eog=True, sampling=GREEDY, n_sequences=n_sequences, ephemeral=True,
        )  # fmt: skip
        *_, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics. Run the benchmark again.")
        return (last.stats.completion_tokens - n_sequences) / last.stats.decode_tps

    def close(self) -> None:
        self._engine.close()


def _run_peer_scenario(server: LlamaServer, name: str, prompts: dict[str, list[list[int]]]) -> tuple[float, int]:
    *earlier_prompts, final_prompt = prompts[name]
    for prompt in earlier_prompts:
        server.measure_first_token(prompt)
    if name == "reopen after a restart":
        server.restart()
        started_at = time.monotonic()
        server.restore_slot()
        restore_s = time.monotonic() - started_at
        ttft_s, n_cached_tokens = server.measure_first_token(final_prompt)
        return restore_s + ttft_s, n_cached_tokens
    return server.measure_first_token(final_prompt)


def format_table(report: PrefixReport) -> str:
    """Format the report as a table."""
    from statistics import median

    workload = report.workload
    columns = ("ms", "overhead", "cached", "cold ratio", "llama-server ms", "cached", "ratio")
    sizes_text = f"{workload.n_history} tokens and {workload.n_new} new ones, {workload.rounds} rounds (medians)"
    lines = [
        f"{Path(workload.model).name}, {report.backend}, {workload.n_threads} threads, {sizes_text}",
        f"cold: {median(report.cold_ttft_s) * 1000:.0f} ms to the first token, {report.prefill_tps:.0f} tokens/s",
        "{:<26}{:>8}{:>8}{:>8}{:>11}{:>17}{:>8}{:>10}".format("", *columns),
    ]
    for row in report.rows:
        line = (
            f"{row.name:<26}{median(row.ttft_s) * 1000:8.1f}{median(row.overhead_s) * 1000:8.1f}{row.cached_tokens:8}"
            f"{row.times_faster_than_cold:11.1f}"
        )
        if row.times_faster_than_peer is not None:
            line += (
                f"{median(row.peer_ttft_s) * 1000:17.1f}{row.n_peer_cached_tokens:8}{row.times_faster_than_peer:10.2f}"
            )
        lines.append(line)
    lines.append(f"four parallel replies: {median(report.four_replies_cost):.2f} times the time of one")
    return "\n".join(lines)
