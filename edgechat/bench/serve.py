"""Benchmark of the server, compared with direct calls of its engine and with llama-server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.bench.edgechat_server import EdgechatServer
from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.prefix import N_BATCH, N_SYSTEM_TOKENS, PAUSE_S, random_tokens
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.backends.bundle import find_bundle

N_CLIENTS: Final = 4
_RESPONSE_TIMEOUT_S: Final = 600.0


class ServeWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads and token counts of a server measurement."""

    model: str
    n_threads: int
    n_history: int = 1000
    """Number of tokens in the conversation before the next message."""
    n_new: int = 60
    """Number of tokens in the next message."""
    n_prompt: int = 200
    """Number of tokens in the prompt of each of four parallel clients."""
    n_reply: int = msgspec.field(default=96, name="n_answer")
    """Number of tokens in each reply."""
    rounds: int = 5


class ServeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one metric for edgechat and a peer, with the median of their ratios (above 1: edgechat is better)."""

    name: str
    unit: str
    edgechat: list[float] = msgspec.field(name="ours")
    baseline: list[float] = msgspec.field(name="other")
    """Values of llama-server or of edgechat's engine without HTTP."""
    ratio: float
    baseline_name: str = msgspec.field(name="other_name")


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the server benchmark."""

    workload: ServeWorkload
    rows: list[ServeRow]


class ClientMeasurement(msgspec.Struct, frozen=True):
    """Timing of one reply, measured by the client that requested it."""

    ttft_s: float
    decode_tps: float
    n_cached: int


class StreamingClient:
    """HTTP client that sends prompts (tokens or text) to an OpenAI-compatible server and reads the streamed replies."""

    def __init__(self, port: int) -> None:
        self._port = port

    def complete(self, prompt: list[int] | str, n_reply: int) -> ClientMeasurement:
        """Request a reply of `n_reply` tokens and return its timing. Raises EngineError."""
        body = {
            "prompt": prompt, "max_tokens": n_reply, "temperature": 0.0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_RESPONSE_TIMEOUT_S)
        started_at = time.monotonic()
        connection.request("POST", "/v1/completions", msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise EngineError(
                f"The server responded with HTTP status {response.status}: "
                f"{response.read(300).decode('utf-8', 'replace')}"
            )
        first_text_at = last_text_at = 0.0
        usage: dict[str, Any] = {}
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = msgspec.json.decode(line[6:])
            if chunk.get("choices") and chunk["choices"][0].get("text"):
                last_text_at = time.monotonic()
                first_text_at = first_text_at or last_text_at
            usage = chunk.get("usage") or usage
        connection.close()
        if usage.get("completion_tokens") != n_reply:
            raise EngineError(f"The server did not generate the requested {n_reply} tokens. Its usage report: {usage}")
        n_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        elapsed_s = last_text_at - first_text_at
        return ClientMeasurement(first_text_at - started_at, (n_reply - 1) / elapsed_s if elapsed_s else 0.0, n_cached)

    def complete_concurrently(self, prompts: Sequence[list[int] | str], n_reply: int) -> float:
        """Send all prompts concurrently, and return the total speed in tokens per second until the last reply ends."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            started_at = time.monotonic()
            for _ in pool.map(lambda prompt: self.complete(prompt, n_reply), prompts):
                pass  # the iteration re-raises the exceptions of failed requests
            return len(prompts) * n_reply / (time.monotonic() - started_at)


def _compute_context_length(workload: ServeWorkload) -> int:
    """Return a context length that is sufficient for the conversation with its branches, and for four clients."""
    return max(2 * workload.n_history + 1024, N_CLIENTS * (workload.n_prompt + workload.n_reply + 64))


def run(
    workload: ServeWorkload, peer: Path | None, on_progress: Callable[[str], None] = lambda text: None
) -> ServeReport:
    """Measure the server, its engine and, if given, the llama-server binary `peer`. Raises EdgechatError."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch_dir, contextlib.ExitStack() as stack:
        edgechat_server = EdgechatServer(
            "-m", workload.model, "--threads", str(workload.n_threads), "--ctx",
            str(_compute_context_length(workload)), "--no-speculation",
            environment=os.environ | {"EDGECHAT_HOME": str(Path(scratch_dir) / "home")},
        )  # fmt: skip
        stack.callback(edgechat_server.close)
        rows, backend = _compare_with_engine(workload, edgechat_server, on_progress)
        if peer is not None:
            rows += _compare_with_peer(workload, edgechat_server, peer, backend, on_progress)
    return ServeReport(workload=workload, rows=rows)


def _make_row(
    name: str, unit: str, edgechat_figures: list[float], baseline_figures: list[float], baseline_name: str
) -> ServeRow:
    ratios = [a / b if unit == "tokens/s" else b / a for a, b in zip(edgechat_figures, baseline_figures, strict=True)]
    return ServeRow(
        name=name,
        unit=unit,
        edgechat=edgechat_figures,
        baseline=baseline_figures,
        ratio=statistics.median(ratios),
        baseline_name=baseline_name,
    )


# Comparison with direct calls of the engine


def _compare_with_engine(
    workload: ServeWorkload, edgechat_server: EdgechatServer, on_progress: Callable[[str], None]
) -> tuple[list[ServeRow], str]:
    """Compare the server's speed with direct calls of the engine (no HTTP); return the rows and the backend's name."""
    engine = EngineClient()
    plan = make_manual_plan(
        workload.model, n_threads=workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH,
        n_ctx=_compute_context_length(workload), n_seqs=8, speculation=False,
    )  # fmt: skip
    server_results: list[ClientMeasurement] = []
    engine_results: list[ClientMeasurement] = []
    try:
        backend = engine.load(protocol.Load(id=engine.next_id(), plan=plan)).backend
        for round_index in range(workload.rounds):
            on_progress(f"one client, round {round_index + 1} of {workload.rounds}")
            measurements: list[Callable[[], None]] = [
                lambda: server_results.append(
                    StreamingClient(edgechat_server.port).complete(random_tokens(workload.n_prompt), workload.n_reply)
                ),
                lambda: engine_results.append(
                    _generate_directly(engine, random_tokens(workload.n_prompt), workload.n_reply)
                ),
            ]
            for measure in measurements if round_index % 2 else measurements[::-1]:
                measure()
                time.sleep(PAUSE_S)
    finally:
        engine.close()
    name = "edgechat's engine"
    rows = [
        _make_row("first token", "s", [t.ttft_s for t in server_results], [t.ttft_s for t in engine_results], name),
        _make_row(
            "decode", "tokens/s", [t.decode_tps for t in server_results], [t.decode_tps for t in engine_results], name
        ),
    ]
    return rows, backend


def _generate_directly(engine: EngineClient, tokens: list[int], n_reply: int) -> ClientMeasurement:
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_reply, ignore_eog=True, sampling=GREEDY, speculate=False
    )
    first_text_at = last_text_at = 0.0
    started_at = time.monotonic()
    for event in engine.generate(request):
        if isinstance(event, protocol.TokensGenerated) and event.text:
            last_text_at = time.monotonic()
            first_text_at = first_text_at or last_text_at
    return ClientMeasurement(first_text_at - started_at, (n_reply - 1) / (last_text_at - first_text_at), 0)


# Comparison with llama-server


def _compare_with_peer(
    workload: ServeWorkload,
    edgechat_server: EdgechatServer,
    peer: Path,
    backend: str,
    on_progress: Callable[[str], None],
) -> Iterator[ServeRow]:
    module = next(m for m in find_bundle().modules if m.name == backend)
    edgechat_figures: dict[str, list[float]] = {}
    peer_figures: dict[str, list[float]] = {}
    llama_server = LlamaServer(
        peer, module.path, workload.model, n_ctx=_compute_context_length(workload), n_threads=workload.n_threads,
        n_batch=N_BATCH, arguments=["-np", str(N_CLIENTS), "-kvu"],
    )  # fmt: skip
    servers: list[tuple[EdgechatServer | LlamaServer, dict[str, list[float]]]] = [
        (edgechat_server, edgechat_figures),
        (llama_server, peer_figures),
    ]
    try:
        for round_index in range(workload.rounds):
            on_progress(f"comparing with llama-server, round {round_index + 1} of {workload.rounds}")
            prompts = _make_prompts(workload)
            parallel_prompts = [random_tokens(workload.n_prompt) for _ in range(N_CLIENTS)]
            for server, figures in servers if round_index % 2 else servers[::-1]:
                for name, figure in _measure_turns(server, prompts, workload):
                    figures.setdefault(name, []).append(figure)
                figures.setdefault(_FOUR_CLIENTS, []).append(
                    StreamingClient(server.port).complete_concurrently(parallel_prompts, workload.n_reply)
                )
                time.sleep(PAUSE_S)
    finally:
        llama_server.close()
    for name, values in edgechat_figures.items():
        unit = "tokens/s" if name in {_FOUR_CLIENTS, _ONE_CLIENT} else "s"
        yield _make_row(name, unit, values, peer_figures[name], "llama-server")


_ONE_CLIENT: Final = "one client, decode"
_FOUR_CLIENTS: Final = "four clients, all tokens"


def _make_prompts(workload: ServeWorkload) -> dict[str, list[int]]:
    system = random_tokens(N_SYSTEM_TOKENS)
    history = system + random_tokens(workload.n_history - N_SYSTEM_TOKENS)
    next_prompt = history + random_tokens(workload.n_new)
    return {
        "first turn, first token": history, "next turn, first token": next_prompt,
        "edited turn, first token": history + random_tokens(workload.n_new),
        "after a restart, first token": next_prompt + random_tokens(workload.n_new),
    }  # fmt: skip


def _measure_turns(
    server: EdgechatServer | LlamaServer, prompts: dict[str, list[int]], workload: ServeWorkload
) -> Iterator[tuple[str, float]]:
    """Yield (name, value) pairs for the turns of a conversation: times to first token in seconds, and decode speed.

    After a restart, the time to first token includes the time to restore the slot.
    """
    for name, prompt in prompts.items():
        restore_s = 0.0
        if "restart" in name:
            StreamingClient(server.port).complete(prompts["next turn, first token"], 1)
            server.restart()
            started_at = time.monotonic()
            server.restore_slot()
            restore_s = time.monotonic() - started_at
        measurement = StreamingClient(server.port).complete(prompt, workload.n_reply if "first turn" in name else 1)
        yield name, measurement.ttft_s + restore_s
        if "first turn" in name:
            yield _ONE_CLIENT, measurement.decode_tps
        time.sleep(PAUSE_S)


def format_table(report: ServeReport) -> str:
    """Format the report as a table."""
    lines = [f"{'':36}{'edgechat':>12}{'peer':>12}{'ratio':>14}"]
    for row in report.rows:
        edgechat_median, baseline_median = statistics.median(row.edgechat), statistics.median(row.baseline)
        scale, unit = (1000, "ms") if row.unit == "s" else (1, row.unit)
        lines.append(
            f"{row.name + ', ' + unit:36}{edgechat_median * scale:>12.1f}{baseline_median * scale:>12.1f}"
            f"{row.ratio:>14.3f}  {row.baseline_name}"
        )
    return "\n".join(lines)
