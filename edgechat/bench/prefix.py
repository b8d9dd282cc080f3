"""What a cached prefix is worth: time to first token, against a cold run, and against llama-server in turn."""

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
from edgechat.planner.plan import given_plan
from edgechat.runtime.backends.bundle import find_bundle

N_BATCH: Final = 512
N_SYSTEM: Final = 100
_N_ANSWER: Final = 48
_FIRST_TOKEN, _LAST_TOKEN = 300, 3000  # ordinary ones, in every vocabulary that matters
_PREFIX_BYTES: Final = 4 << 30
# Threads that computed spin for a while before they sleep, and would take the other's cores.
REST_S: Final = 0.5


class PrefixWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    model: str
    n_threads: int
    n_history: int = 2000
    """Tokens of the conversation."""
    n_new: int = 60
    """Tokens of the next message."""
    rounds: int = 5


class PrefixRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way to go on, all rounds."""

    name: str
    ttft_s: list[float]
    """From sending the prompt to its first token."""
    beside_s: list[float]
    """What of that was neither prefill nor one decode."""
    cached_tokens: int
    """Of the last round."""
    times_faster_than_cold: float
    """Median over the rounds."""
    peer_ttft_s: list[float]
    peer_cached_tokens: int
    times_faster_than_peer: float | None


class PrefixReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement."""

    workload: PrefixWorkload
    backend: str
    prefill_tps: float
    """Cold, median."""
    cold_ttft_s: list[float]
    rows: list[PrefixRow]
    four_answers_cost: list[float]
    """Time of four answers side by side in times of one answer of the same length, each round."""


class _Taken(msgspec.Struct, frozen=True):
    ttft_s: float
    cached_tokens: int
    beside_s: float
    prefill_tps: float


NAMES: Final = ("next turn", "edit of the last message", "regenerate", "branch switch", "edit of the first message",
                "reopen after a restart")  # fmt: skip


def run(workload: PrefixWorkload, peer: Path | None, tell: Callable[[str], None] = lambda words: None) -> PrefixReport:
    """Measure; `peer` is a llama-server. Raises EdgechatError."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch, contextlib.ExitStack() as stack:
        ours = _EdgechatPeer(workload, Path(scratch))
        stack.callback(ours.close)
        theirs = None
        if peer is not None:
            module = next(m for m in find_bundle().modules if m.name == ours.backend)
            theirs = LlamaServer(
                peer, module.path, workload.model, n_ctx=_n_ctx(workload), n_threads=workload.n_threads, n_batch=N_BATCH
            )
            stack.callback(theirs.close)
        cold: list[_Taken] = []
        taken: dict[str, list[_Taken]] = {name: [] for name in NAMES}
        peers: dict[str, list[tuple[float, int]]] = {name: [] for name in NAMES}
        four: list[float] = []
        for number in range(workload.rounds):
            tell(f"round {number + 1} of {workload.rounds}")
            prompts = _prompts(workload)
            cold.append(ours.first_token(random_tokens(workload.n_history + workload.n_new), is_cold=True))
            four.append(ours.decode_s(4) / ours.decode_s(1))
            for name in NAMES:
                # The one that goes second finds a warmer machine: they take turns.
                ours_first = number % 2 == 0
                if ours_first:
                    taken[name].append(ours.go_on(name, prompts))
                if theirs is not None:
                    time.sleep(REST_S)
                    peers[name].append(_peer_goes_on(theirs, name, prompts))
                time.sleep(REST_S)
                if not ours_first:
                    taken[name].append(ours.go_on(name, prompts))
        return PrefixReport(
            workload=workload, backend=ours.backend, prefill_tps=statistics.median(t.prefill_tps for t in cold),
            cold_ttft_s=[t.ttft_s for t in cold], rows=[_row(name, taken[name], cold, peers[name]) for name in NAMES],
            four_answers_cost=four,
        )  # fmt: skip


def _row(name: str, taken: list[_Taken], cold: list[_Taken], peer: list[tuple[float, int]]) -> PrefixRow:
    return PrefixRow(
        name=name, ttft_s=[t.ttft_s for t in taken], beside_s=[t.beside_s for t in taken],
        cached_tokens=taken[-1].cached_tokens, peer_ttft_s=[s for s, _ in peer],
        peer_cached_tokens=peer[-1][1] if peer else 0,
        times_faster_than_cold=statistics.median(c.ttft_s / t.ttft_s for c, t in zip(cold, taken, strict=True)),
        times_faster_than_peer=statistics.median(p / t.ttft_s for (p, _), t in zip(peer, taken, strict=True))
        if peer else None,
    )  # fmt: skip


def random_tokens(count: int) -> list[int]:
    """Ordinary tokens that no earlier prompt begins with."""
    draw = random.SystemRandom()
    return [draw.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(count)]


def _n_ctx(workload: PrefixWorkload) -> int:
    # Room for the conversation, its branches, and the cold run beside them.
    return 3 * (workload.n_history + 4 * workload.n_new) + 256


def _prompts(workload: PrefixWorkload) -> dict[str, list[list[int]]]:
    """For each way to go on: the prompts before it, unmeasured, and the measured one."""
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


class _EdgechatPeer:
    def __init__(self, workload: PrefixWorkload, scratch: Path) -> None:
        self._workload = workload
        self._scratch = scratch
        self.backend = ""
        self._open()

    def _open(self) -> None:
        self._engine = EngineClient()
        work = self._workload
        plan = given_plan(
            work.model, n_threads=work.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=_n_ctx(work), n_seqs=4,
            prefix_ram_bytes=_PREFIX_BYTES, prefix_disk_bytes=_PREFIX_BYTES, speculation=False,
        )  # fmt: skip
        request = protocol.Load(id=self._engine.next_id(), plan=plan, prefix_dir=str(self._scratch))
        self.backend = self._engine.load(request).backend

    def go_on(self, name: str, prompts: dict[str, list[list[int]]]) -> _Taken:
        *before, measured = prompts[name]
        for prompt in before:
            self.first_token(prompt)
        if name == "reopen after a restart":
            time.sleep(1.0)  # between turns there is time to save; what is left is saved at the end
            self.close()
            self._open()
        return self.first_token(measured)

    def first_token(self, tokens: list[int], *, is_cold: bool = False) -> _Taken:
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=tokens, max_tokens=1, ignore_eog=True, sampling=GREEDY,
            conversation="" if is_cold else "bench", bypass_cache=is_cold, ephemeral=is_cold,
        )  # fmt: skip
        started = time.monotonic()
        *_, last = self._engine.generate(request)
        ttft_s = time.monotonic() - started
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("the engine ended a measurement without its figures")
        computed = last.stats.prompt_tokens - last.stats.cached_tokens
        prefill_s = computed / last.stats.prefill_tps if last.stats.prefill_tps else 0.0
        return _Taken(ttft_s, last.stats.cached_tokens, ttft_s - prefill_s, last.stats.prefill_tps)

    def decode_s(self, n_samples: int) -> float:
        """Seconds for the tokens after the first ones of so many answers to one prompt."""
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=random_tokens(N_SYSTEM), max_tokens=_N_ANSWER, ignore_eog=True, sampling=GREEDY,
            n_sequences=n_samples, ephemeral=True,
        )  # fmt: skip
        *_, last = self._engine.generate(request)
        if not isinstance(last, protocol.RequestFinished):
            raise EngineError("the engine ended a measurement without its figures")
        return (last.stats.completion_tokens - n_samples) / last.stats.decode_tps

    def close(self) -> None:
        self._engine.close()


def _peer_goes_on(server: LlamaServer, name: str, prompts: dict[str, list[list[int]]]) -> tuple[float, int]:
    *before, measured = prompts[name]
    for prompt in before:
        server.first_token(prompt)
    if name == "reopen after a restart":
        server.restart()
        started = time.monotonic()
        server.resume()
        restore_s = time.monotonic() - started
        ttft_s, cached = server.first_token(measured)
        return restore_s + ttft_s, cached
    return server.first_token(measured)
