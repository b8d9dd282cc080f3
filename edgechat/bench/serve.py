"""What serving costs: one client against the engine without HTTP, and turns and four clients against llama-server."""

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
from edgechat.planner.plan import given_plan
from edgechat.runtime.backends.bundle import find_bundle

N_CLIENTS: Final = 4
_ANSWER_S: Final = 600.0
_SAVED_S: Final = 1.5


class ServeWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    model: str
    n_threads: int
    n_history: int = 1000
    """Tokens of the conversation."""
    n_new: int = 60
    """Tokens of the next message."""
    n_prompt: int = 200
    """Tokens of each of four clients' prompts."""
    n_answer: int = 96
    rounds: int = 5


class ServeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Ours and another's, round by round, and the median of their ratios; above 1 ours is the better one."""

    name: str
    unit: str
    ours: list[float]
    other: list[float]
    ratio: float
    other_name: str


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement."""

    workload: ServeWorkload
    rows: list[ServeRow]


class Taken(msgspec.Struct, frozen=True):
    """One answer, as its client saw it."""

    ttft_s: float
    decode_tps: float
    n_cached: int


class Client:
    """Sends tokens to a server that speaks the OpenAI API, and reads the stream that answers."""

    def __init__(self, port: int) -> None:
        self._port = port

    def complete(self, tokens: list[int], n_answer: int) -> Taken:
        """An answer of so many tokens. Raises EngineError."""
        body = {
            "prompt": tokens, "max_tokens": n_answer, "temperature": 0.0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        started = time.monotonic()
        connection.request("POST", "/v1/completions", msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise EngineError(f"the server answered {response.status}: {response.read(300).decode('utf-8', 'replace')}")
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
        if usage.get("completion_tokens") != n_answer:
            raise EngineError(f"{n_answer} tokens were asked for: {usage}")
        n_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        elapsed_s = last_s - first_s
        return Taken(first_s - started, (n_answer - 1) / elapsed_s if elapsed_s else 0.0, n_cached)

    def together(self, prompts: list[list[int]], n_answer: int) -> float:
        """Tokens per second of all together, from the first request to the last answer's end."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            started = time.monotonic()
            for _ in pool.map(lambda prompt: self.complete(prompt, n_answer), prompts):
                pass  # what one of them raises is raised here
            return len(prompts) * n_answer / (time.monotonic() - started)


class OurServer:
    """`edgechat serve`, in a home of its own."""

    def __init__(self, workload: ServeWorkload, home: Path) -> None:
        self._workload = workload
        self._home = home
        self.port = 0
        self._start()

    def _start(self) -> None:
        work = self._workload
        command = process.command(
            "serve", "--port", "0", "--json", "-m", work.model, "--threads", str(work.n_threads), "--ctx",
            str(n_ctx(work)), "--no-speculation",
        )  # fmt: skip
        self._child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            env=os.environ | {"EDGECHAT_HOME": str(self._home)},
        )  # fmt: skip
        said = self._child.stdout.readline() if self._child.stdout is not None else b""
        if not said:
            raise EngineError("edgechat serve did not start: run it by hand to see why")
        self.port = int(str(msgspec.json.decode(said)["url"]).removesuffix("/v1").rpartition(":")[2])

    def restart(self) -> None:
        """End it, and start it anew."""
        time.sleep(_SAVED_S)  # between turns there is time to save
        self.close()
        self._start()

    def resume(self) -> None:
        """Nothing is to be done for that."""

    def close(self) -> None:
        """End it."""
        self._child.send_signal(signal.SIGINT)
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def n_ctx(workload: ServeWorkload) -> int:
    """Room for the conversation with its branches, and for four clients."""
    return max(2 * workload.n_history + 1024, N_CLIENTS * (workload.n_prompt + workload.n_answer + 64))


def run(workload: ServeWorkload, peer: Path | None, tell: Callable[[str], None] = lambda words: None) -> ServeReport:
    """Measure; `peer` is a llama-server. Raises EdgechatError."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch, contextlib.ExitStack() as stack:
        ours = OurServer(workload, Path(scratch) / "home")
        stack.callback(ours.close)
        rows, backend = _against_engine(workload, ours, tell)
        if peer is not None:
            rows += _against_peer(workload, ours, peer, backend, tell)
    return ServeReport(workload=workload, rows=rows)


def _row(name: str, unit: str, ours: list[float], other: list[float], other_name: str) -> ServeRow:
    faster = [a / b if unit == "tokens/s" else b / a for a, b in zip(ours, other, strict=True)]
    return ServeRow(
        name=name, unit=unit, ours=ours, other=other, ratio=statistics.median(faster), other_name=other_name
    )


# Against the engine itself


def _against_engine(
    workload: ServeWorkload, ours: OurServer, tell: Callable[[str], None]
) -> tuple[list[ServeRow], str]:
    """Also the backend that the engine has chosen."""
    engine = EngineClient()
    plan = given_plan(
        workload.model, n_threads=workload.n_threads, n_batch=N_BATCH, n_ubatch=N_BATCH, n_ctx=n_ctx(workload), n_seqs=8,
        speculation=False,
    )  # fmt: skip
    served: list[Taken] = []
    plain: list[Taken] = []
    try:
        backend = engine.load(protocol.Load(id=engine.next_id(), plan=plan)).backend
        for number in range(workload.rounds):
            tell(f"one client, round {number + 1} of {workload.rounds}")
            ways: list[Callable[[], None]] = [
                lambda: served.append(Client(ours.port).complete(random_tokens(workload.n_prompt), workload.n_answer)),
                lambda: plain.append(_straight(engine, random_tokens(workload.n_prompt), workload.n_answer)),
            ]
            for way in ways if number % 2 else ways[::-1]:
                way()
                time.sleep(REST_S)
    finally:
        engine.close()
    rows = [
        _row("first token", "s", [t.ttft_s for t in served], [t.ttft_s for t in plain], "the engine"),
        _row("decode", "tokens/s", [t.decode_tps for t in served], [t.decode_tps for t in plain], "the engine"),
    ]
    return rows, backend


def _straight(engine: EngineClient, tokens: list[int], n_answer: int) -> Taken:
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=n_answer, ignore_eog=True, sampling=GREEDY, speculate=False
    )
    first_s = last_s = 0.0
    started = time.monotonic()
    for event in engine.generate(request):
        if isinstance(event, protocol.TokensGenerated) and event.text:
            last_s = time.monotonic()
            first_s = first_s or last_s
    return Taken(first_s - started, (n_answer - 1) / (last_s - first_s), 0)


# Against llama-server


def _against_peer(
    workload: ServeWorkload, ours: OurServer, peer: Path, backend: str, tell: Callable[[str], None]
) -> Iterator[ServeRow]:
    module = next(m for m in find_bundle().modules if m.name == backend)
    served: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    theirs = LlamaServer(
        peer, module.path, workload.model, n_ctx=n_ctx(workload), n_threads=workload.n_threads,
        n_batch=N_BATCH, arguments=["-np", str(N_CLIENTS), "-kvu"],
    )  # fmt: skip
    sides: list[tuple[OurServer | LlamaServer, dict[str, list[float]]]] = [(ours, served), (theirs, others)]
    try:
        for number in range(workload.rounds):
            tell(f"against llama-server, round {number + 1} of {workload.rounds}")
            prompts = _prompts(workload)
            four = [random_tokens(workload.n_prompt) for _ in range(N_CLIENTS)]
            for server, figures in sides if number % 2 else sides[::-1]:
                for name, figure in _turns(server, prompts, workload):
                    figures.setdefault(name, []).append(figure)
                figures.setdefault(_FOUR, []).append(Client(server.port).together(four, workload.n_answer))
                time.sleep(REST_S)
    finally:
        theirs.close()
    for name, taken in served.items():
        yield _row(name, "tokens/s" if name in {_FOUR, _ONE} else "s", taken, others[name], "llama-server")


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


def _turns(
    server: OurServer | LlamaServer, prompts: dict[str, list[int]], workload: ServeWorkload
) -> Iterator[tuple[str, float]]:
    """What a conversation's turns take; what llama-server keeps for a restart is restored in that time, too."""
    for name, prompt in prompts.items():
        resumed_s = 0.0
        if "restart" in name:
            Client(server.port).complete(prompts["next turn, first token"], 1)
            server.restart()
            started = time.monotonic()
            server.resume()
            resumed_s = time.monotonic() - started
        taken = Client(server.port).complete(prompt, workload.n_answer if "first turn" in name else 1)
        yield name, taken.ttft_s + resumed_s
        if "first turn" in name:
            yield _ONE, taken.decode_tps
        time.sleep(REST_S)


def table(report: ServeReport) -> str:
    """The report for people."""
    lines = [f"{'':36}{'ours':>12}{'other':>12}{'times better':>14}"]
    for row in report.rows:
        ours, other = statistics.median(row.ours), statistics.median(row.other)
        scale, unit = (1000, "ms") if row.unit == "s" else (1, row.unit)
        lines.append(
            f"{row.name + ', ' + unit:36}{ours * scale:>12.1f}{other * scale:>12.1f}{row.ratio:>14.3f}  {row.other_name}"
        )
    return "\n".join(lines)
