"""Benchmark of the server against its engine without HTTP, and against llama-server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat import process
from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.prefix import N_BATCH, N_SYSTEM, REST_S, random_tokens
from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.planner.load_plan import manual_plan
from edgechat.runtime.backends.bundle import find_bundle

N_CLIENTS: Final = 4
_RESPONSE_TIMEOUT_S: Final = 600.0
_SAVE_PAUSE_S: Final = 1.5


class ServeWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Model, threads and token counts of a server measurement."""

    model: str
    n_threads: int
    n_history: int = 1000
    """Tokens of the conversation."""
    n_new: int = 60
    """Tokens of the next message."""
    n_prompt: int = 200
    """Tokens in the prompt of each of four clients."""
    n_answer: int = 96
    rounds: int = 5


class ServeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of edgechat and a peer per round, and the median of their ratios; above 1 edgechat is better."""

    name: str
    unit: str
    edgechat: list[float] = msgspec.field(name="ours")
    other: list[float]
    ratio: float
    other_name: str


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the server benchmark."""

    workload: ServeWorkload
    rows: list[ServeRow]


class ClientMeasurement(msgspec.Struct, frozen=True):
    """Timing of one reply as measured by its client."""

    ttft_s: float
    decode_tps: float
    n_cached: int


class StreamingClient:
    """HTTP client that sends token prompts to an OpenAI-compatible server and reads the stream."""

    def __init__(self, port: int) -> None:
        self._port = port

    def complete(self, tokens: list[int], n_reply: int) -> ClientMeasurement:
        """Request a reply of `n_reply` tokens and return its timing. Raises EngineError."""
        body = {
            "prompt": tokens, "max_tokens": n_reply, "temperature": 0.0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_RESPONSE_TIMEOUT_S)
        started = time.monotonic()
        connection.request("POST", "/v1/completions", msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise EngineError(f"The server answered {response.status}: {response.read(300).decode('utf-8', 'replace')}")
        first_s = last_s = 0.0
        usage: dict[str, Any] = {}
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = msgspec.json.decode(line[6:])
            if chunk.get("choices") and chunk["choices"][0].get("text"):
                last_s = time.monotonic()
                first_s = first_s or last_s
            usage = chunk.get("usage") or usage
        connection.close()
        if usage.get("completion_tokens") != n_reply:
            raise EngineError(f"The server did not generate {n_reply} tokens: {usage}")
        n_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        elapsed_s = last_s - first_s
        return ClientMeasurement(first_s - started, (n_reply - 1) / elapsed_s if elapsed_s else 0.0, n_cached)

    def complete_concurrently(self, prompts: list[list[int]], n_reply: int) -> float:
        """Send all prompts at once and return the total tokens per second until the last reply ends."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            started = time.monotonic()
            for _ in pool.map(lambda prompt: self.complete(prompt, n_reply), prompts):
                pass  # re-raises the exceptions of the requests
            return len(prompts) * n_reply / (time.monotonic() - started)


class EdgechatServer:
    """A running `edgechat serve` with its own data directories."""

    def __init__(self, workload: ServeWorkload, home: Path) -> None:
        self._workload = workload
        self._home = home
        self.port = 0
        self._start()

    def _start(self) -> None:
        work = self._workload
        command = process.command_line(
            "serve", "--port", "0", "--json", "-m", work.model, "--threads", str(work.n_threads), "--ctx",
            str(n_ctx(work)), "--no-speculation",
        )  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            env=os.environ | {"EDGECHAT_HOME": str(self._home)},
        )  # fmt: skip
        first_line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not first_line:
            raise EngineError("edgechat serve did not start. Run it by hand to see the error.")
        self.port = int(str(msgspec.json.decode(first_line)["url"]).removesuffix("/v1").rpartition(":")[2])

    def restart(self) -> None:
        """Restart the server, after a pause in which the cache saves segments."""
        time.sleep(_SAVE_PAUSE_S)
        self.close()
        self._start()

    def restore_slot(self) -> None:
        """Do nothing: edgechat restores cached prefixes by itself."""

    def close(self) -> None:
        """Interrupt the server and wait for its end."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def n_ctx(workload: ServeWorkload) -> int:
    """Return a context length for the conversation with its branches, and for four clients."""
    return max(2 * workload.n_history + 1024, N_CLIENTS * (workload.n_prompt + workload.n_answer + 64))


def run(
    workload: ServeWorkload, peer: Path | None, on_progress: Callable[[str], None] = lambda words: None
) -> ServeReport:
    """Measure the server; `peer` is a llama-server binary, if given. Raises EdgechatError."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch, contextlib.ExitStack() as stack:
        edgechat_server = EdgechatServer(workload, Path(scratch) / "home")
        stack.callback(edgechat_server.close)
        rows, backend = _compare_with_engine(workload, edgechat_server, on_progress)
        if peer is not None:
            rows += _compare_with_peer(workload, edgechat_server, peer, backend, on_progress)
    return ServeReport(workload=workload, rows=rows)


def _row(name: str, unit: str, own_figures: list[float], peer_figures: list[float], other_name: str) -> ServeRow:
    faster = [a / b if unit == "tokens/s" else b / a for a, b in zip(own_figures, peer_figures, strict=True)]
    return ServeRow(
        name=name,
        unit=unit,
        edgechat=own_figures,
        other=peer_figures,
        ratio=statistics.median(faster),
        other_name=other_name,
    )


# Against the engine itself


def _compare_with_engine(
    workload: ServeWorkload, edgechat_server: EdgechatServer, on_progress: Callable[[str], None]
) -> tuple[list[ServeRow], str]:
    """Compare the server with direct calls of the engine; return the rows and the backend's name."""
    engine = EngineClient()
    plan = manual_plan(
        workload.model, n_threads=workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=n_ctx(workload),
        n_seqs=8, speculation=False,
    )  # fmt: skip
    served: list[ClientMeasurement] = []
    plain: list[ClientMeasurement] = []
    try:
        backend = engine.load(protocol.Load(id=engine.next_id(), plan=plan)).backend
        for number in range(workload.rounds):
            on_progress(f"one client, round {number + 1} of {workload.rounds}")
            runs: list[Callable[[], None]] = [
                lambda: served.append(
                    StreamingClient(edgechat_server.port).complete(random_tokens(workload.n_prompt), workload.n_answer)
                ),
                lambda: plain.append(_generate_directly(engine, random_tokens(workload.n_prompt), workload.n_answer)),
            ]
            for run_once in runs if number % 2 else runs[::-1]:
                run_once()
                time.sleep(REST_S)
    finally:
        engine.close()
    rows = [
        _row("first token", "s", [t.ttft_s for t in served], [t.ttft_s for t in plain], "edgechat's engine"),
        _row("decode", "tokens/s", [t.decode_tps for t in served], [t.decode_tps for t in plain], "edgechat's engine"),
    ]
    return rows, backend


def _generate_directly(engine: EngineClient, tokens: list[int], n_answer: int) -> ClientMeasurement:
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_answer, ignore_eog=True, sampling=GREEDY, speculate=False
    )
    first_s = last_s = 0.0
    started = time.monotonic()
    for event in engine.generate(request):
        if isinstance(event, protocol.TokensGenerated) and event.text:
            last_s = time.monotonic()
            first_s = first_s or last_s
    return ClientMeasurement(first_s - started, (n_answer - 1) / (last_s - first_s), 0)


# Against llama-server


def _compare_with_peer(
    workload: ServeWorkload,
    edgechat_server: EdgechatServer,
    peer: Path,
    backend: str,
    on_progress: Callable[[str], None],
) -> Iterator[ServeRow]:
    module = next(m for m in find_bundle().modules if m.name == backend)
    served: dict[str, list[float]] = {}
    peer_figures: dict[str, list[float]] = {}
    llama_server = LlamaServer(
        peer, module.path, workload.model, n_ctx=n_ctx(workload), n_threads=workload.n_threads,
        n_batch=N_BATCH, arguments=["-np", str(N_CLIENTS), "-kvu"],
    )  # fmt: skip
    sides: list[tuple[EdgechatServer | LlamaServer, dict[str, list[float]]]] = [
        (edgechat_server, served),
        (llama_server, peer_figures),
    ]
    try:
        for number in range(workload.rounds):
            on_progress(f"against llama-server, round {number + 1} of {workload.rounds}")
            prompts = _prompts(workload)
            four = [random_tokens(workload.n_prompt) for _ in range(N_CLIENTS)]
            for server, figures in sides if number % 2 else sides[::-1]:
                for name, figure in _measure_turns(server, prompts, workload):
                    figures.setdefault(name, []).append(figure)
                figures.setdefault(_FOUR, []).append(
                    StreamingClient(server.port).complete_concurrently(four, workload.n_answer)
                )
                time.sleep(REST_S)
    finally:
        llama_server.close()
    for name, figures_of_one in served.items():
        yield _row(
            name, "tokens/s" if name in {_FOUR, _ONE} else "s", figures_of_one, peer_figures[name], "llama-server"
        )


_ONE: Final = "one client, decode"
_FOUR: Final = "four clients, all tokens"


def _prompts(workload: ServeWorkload) -> dict[str, list[int]]:
    system = random_tokens(N_SYSTEM)
    history = system + random_tokens(workload.n_history - N_SYSTEM)
    following = history + random_tokens(workload.n_new)
    return {
        "first turn, first token": history, "next turn, first token": following,
        "edited turn, first token": history + random_tokens(workload.n_new),
        "after a restart, first token": following + random_tokens(workload.n_new),
    }  # fmt: skip


def _measure_turns(
    server: EdgechatServer | LlamaServer, prompts: dict[str, list[int]], workload: ServeWorkload
) -> Iterator[tuple[str, float]]:
    """Yield the duration of each turn of a conversation, including the restore of a slot after a restart."""
    for name, prompt in prompts.items():
        restore_s = 0.0
        if "restart" in name:
            StreamingClient(server.port).complete(prompts["next turn, first token"], 1)
            server.restart()
            started = time.monotonic()
            server.restore_slot()
            restore_s = time.monotonic() - started
        measurement = StreamingClient(server.port).complete(prompt, workload.n_answer if "first turn" in name else 1)
        yield name, measurement.ttft_s + restore_s
        if "first turn" in name:
            yield _ONE, measurement.decode_tps
        time.sleep(REST_S)


def table(report: ServeReport) -> str:
    """Format the report as a table."""
    lines = [f"{'':36}{'edgechat':>12}{'peer':>12}{'ratio':>14}"]
    for row in report.rows:
        own, peer = statistics.median(row.edgechat), statistics.median(row.other)
        scale, unit = (1000, "ms") if row.unit == "s" else (1, row.unit)
        lines.append(
            f"{row.name + ', ' + unit:36}{own * scale:>12.1f}{peer * scale:>12.1f}{row.ratio:>14.3f}  {row.other_name}"
        )
    return "\n".join(lines)
