"""Benchmark of the prompt cache: time to first token, against a cold run and against llama-server."""

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
from edgechat.planner.load_plan import manual_plan
from edgechat.runtime.backends.bundle import find_bundle

N_BATCH: Final = 512
N_SYSTEM: Final = 100
_N_REPLY: Final = 48
_FIRST_TOKEN, _LAST_TOKEN = 300, 3000  # ordinary tokens in all common vocabularies
_PREFIX_BYTES: Final = 4 << 30
# Idle compute threads spin before they sleep, which would take cores from the other engine.
REST_S: Final = 0.5


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
    """Seconds from sending the prompt to its first token."""
    beside_s: list[float]
    """The part of `ttft_s` that is neither prefill nor a decode."""
    cached_tokens: int
    """Cached prompt tokens in the last round."""
    times_faster_than_cold: float
    """Time to first token of a cold run divided by `ttft_s`, median over the rounds."""
    peer_ttft_s: list[float]
    peer_cached_tokens: int
    times_faster_than_peer: float | None


class PrefixReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the prompt cache benchmark."""

    workload: PrefixWorkload
    backend: str
    prefill_tps: float
    """Median prefill speed with an empty cache."""
    cold_ttft_s: list[float]
    rows: list[PrefixRow]
    four_answers_cost: list[float]
    """Time of four parallel replies divided by the time of one reply of the same length, per round."""


class _FirstToken(msgspec.Struct, frozen=True):
    ttft_s: float
    cached_tokens: int
    beside_s: float
    prefill_tps: float


SCENARIOS: Final = ("next turn", "edit of the last message", "regenerate", "branch switch", "edit of the first message",
                "reopen after a restart")  # fmt: skip


def run(
    workload: PrefixWorkload, peer: Path | None, on_progress: Callable[[str], None] = lambda words: None
) -> PrefixReport:
    """Measure all scenarios, in alternating order with `peer`, a llama-server binary, if given.

    Raises EdgechatError.
    """
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch, contextlib.ExitStack() as stack:
        edgechat = _EdgechatEngine(workload, Path(scratch))
        stack.callback(edgechat.close)
        server = None
        if peer is not None:
            module = next(m for m in find_bundle().modules if m.name == edgechat.backend)
            server = LlamaServer(
                peer, module.path, workload.model, n_ctx=_n_ctx(workload), n_threads=workload.n_threads, n_batch=N_BATCH
            )
            stack.callback(server.close)
        cold: list[_FirstToken] = []
        results: dict[str, list[_FirstToken]] = {name: [] for name in SCENARIOS}
        peers: dict[str, list[tuple[float, int]]] = {name: [] for name in SCENARIOS}
        four_costs: list[float] = []
        for number in range(workload.rounds):
            on_progress(f"round {number + 1} of {workload.rounds}")
            prompts = _prompts(workload)
            cold.append(
                edgechat.measure_first_token(random_tokens(workload.n_history + workload.n_new), bypass_cache=True)
            )
            four_costs.append(edgechat.measure_decode_s(4) / edgechat.measure_decode_s(1))
            for name in SCENARIOS:
                # The second run finds a warmer machine, so the order alternates.
                edgechat_first = number % 2 == 0
                if edgechat_first:
                    results[name].append(edgechat.run_scenario(name, prompts))
                if server is not None:
                    time.sleep(REST_S)
                    peers[name].append(_run_peer_scenario(server, name, prompts))
                time.sleep(REST_S)
                if not edgechat_first:
                    results[name].append(edgechat.run_scenario(name, prompts))
        return PrefixReport(
            workload=workload, backend=edgechat.backend, prefill_tps=statistics.median(t.prefill_tps for t in cold),
            cold_ttft_s=[t.ttft_s for t in cold],
            rows=[_row(name, results[name], cold, peers[name]) for name in SCENARIOS],
            four_answers_cost=four_costs,
        )  # fmt: skip


def _row(name: str, results: list[_FirstToken], cold: list[_FirstToken], peer: list[tuple[float, int]]) -> PrefixRow:
    return PrefixRow(
        name=name, ttft_s=[t.ttft_s for t in results], beside_s=[t.beside_s for t in results],
        cached_tokens=results[-1].cached_tokens, peer_ttft_s=[s for s, _ in peer],
        peer_cached_tokens=peer[-1][1] if peer else 0,
        times_faster_than_cold=statistics.median(c.ttft_s / t.ttft_s for c, t in zip(cold, results, strict=True)),
        times_faster_than_peer=statistics.median(p / t.ttft_s for (p, _), t in zip(peer, results, strict=True))
        if peer else None,
    )  # fmt: skip


def random_tokens(count: int) -> list[int]:
    """Return random ordinary tokens, which share no prefix with earlier prompts."""
    generator = random.SystemRandom()
    return [generator.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(count)]


def _n_ctx(workload: PrefixWorkload) -> int:
    # Cells for the conversation, its branches and the cold run.
    return 3 * (workload.n_history + 4 * workload.n_new) + 256


def _prompts(workload: PrefixWorkload) -> dict[str, list[list[int]]]:
    """Return the prompts of each scenario; only the last prompt of each is measured."""
    n_history, n_new = workload.n_history, workload.n_new
    system = random_tokens(N_SYSTEM)
    history = system + random_tokens(n_history - N_SYSTEM)
    following = history + random_tokens(n_new)
    edited = history + random_tokens(n_new)
    return {
        "next turn": [history, following],
        "edit of the last message": [edited],
        "regenerate": [edited],
        "branch switch": [following + random_tokens(n_new)],
        "edit of the first message": [system + random_tokens(n_history + n_new - N_SYSTEM)],
        "reopen after a restart": [history + random_tokens(n_new), following + random_tokens(n_new)],
    }


class _EdgechatEngine:
    def __init__(self, workload: PrefixWorkload, scratch: Path) -> None:
        self._workload = workload
        self._scratch = scratch
        self.backend = ""
        self._open()

    def _open(self) -> None:
        self._engine = EngineClient()
        work = self._workload
        plan = manual_plan(
            work.model, n_threads=work.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=_n_ctx(work), n_seqs=4,
            prefix_ram_bytes=_PREFIX_BYTES, prefix_disk_bytes=_PREFIX_BYTES, speculation=False,
        )  # fmt: skip
        request = protocol.Load(id=self._engine.next_id(), plan=plan, prefix_dir=str(self._scratch))
        self.backend = self._engine.load(request).backend

    def run_scenario(self, name: str, prompts: dict[str, list[list[int]]]) -> _FirstToken:
        *earlier_prompts, final_prompt = prompts[name]
        for prompt in earlier_prompts:
            self.measure_first_token(prompt)
        if name == "reopen after a restart":
            time.sleep(1.0)  # idle time in which the cache saves segments; closing saves the rest
            self.close()
            self._open()
        return self.measure_first_token(final_prompt)

    def measure_first_token(self, tokens: list[int], *, bypass_cache: bool = False) -> _FirstToken:
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=tokens, max_tokens=1, ignore_eog=True, sampling=GREEDY,
            conversation="" if bypass_cache else "bench", bypass_cache=bypass_cache, ephemeral=bypass_cache,
        )  # fmt: skip
        started = time.monotonic()
        *_, last = self._engine.generate(request)
        ttft_s = time.monotonic() - started
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics.")
        computed = last.stats.prompt_tokens - last.stats.cached_tokens
        prefill_s = computed / last.stats.prefill_tps if last.stats.prefill_tps else 0.0
        return _FirstToken(ttft_s, last.stats.cached_tokens, ttft_s - prefill_s, last.stats.prefill_tps)

    def measure_decode_s(self, n_sequences: int) -> float:
        """Return the seconds of decoding `n_sequences` parallel replies, without their first tokens."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=random_tokens(N_SYSTEM), max_tokens=_N_REPLY, ignore_eog=True,
            sampling=GREEDY, n_sequences=n_sequences, ephemeral=True,
        )  # fmt: skip
        *_, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("The engine ended a measurement without statistics.")
        return (last.stats.completion_tokens - n_sequences) / last.stats.decode_tps

    def close(self) -> None:
        self._engine.close()


def _run_peer_scenario(server: LlamaServer, name: str, prompts: dict[str, list[list[int]]]) -> tuple[float, int]:
    *earlier_prompts, final_prompt = prompts[name]
    for prompt in earlier_prompts:
        server.measure_first_token(prompt)
    if name == "reopen after a restart":
        server.restart()
        started = time.monotonic()
        server.restore_slot()
        restore_s = time.monotonic() - started
        ttft_s, cached = server.measure_first_token(final_prompt)
        return restore_s + ttft_s, cached
    return server.measure_first_token(final_prompt)


def table(report: PrefixReport) -> str:
    """Format the report as a table."""
    from statistics import median

    work = report.workload
    head = ("ms", "overhead", "cached", "cold ratio", "llama-server ms", "cached", "ratio")
    sizes = f"{work.n_history} tokens and {work.n_new} new ones, {work.rounds} rounds (medians)"
    lines = [
        f"{Path(work.model).name}, {report.backend}, {work.n_threads} threads, {sizes}",
        f"cold: {median(report.cold_ttft_s) * 1000:.0f} ms to the first token, {report.prefill_tps:.0f} tokens/s",
        "{:<26}{:>8}{:>8}{:>8}{:>11}{:>17}{:>8}{:>10}".format("", *head),
    ]
    for row in report.rows:
        line = (
            f"{row.name:<26}{median(row.ttft_s) * 1000:8.1f}{median(row.beside_s) * 1000:8.1f}{row.cached_tokens:8}"
            f"{row.times_faster_than_cold:11.1f}"
        )
        if row.times_faster_than_peer is not None:
            line += (
                f"{median(row.peer_ttft_s) * 1000:17.1f}{row.peer_cached_tokens:8}{row.times_faster_than_peer:10.2f}"
            )
        lines.append(line)
    lines.append(f"four parallel replies: {median(report.four_answers_cost):.2f} times the time of one")
    return "\n".join(lines)
