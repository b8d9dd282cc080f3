"""Benchmark of agent sessions: the time to the first token of each turn, compared with the cost of its new tokens."""

from __future__ import annotations

import contextlib
import http.client
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from edgechat.bench.agent_session import remove_header
from edgechat.bench.child_programs import make_environment
from edgechat.bench.edgechat_server import EdgechatServer
from edgechat.bench.llama_server import LlamaServer
from edgechat.bench.prefix import N_BATCH
from edgechat.engine.client import EngineClient
from edgechat.engine.resident_client import PRIVATE_MODE
from edgechat.errors import EngineError
from edgechat.runtime.backends.bundle import find_bundle

_N_REPLY_TOKENS: Final = 16
_RESPONSE_TIMEOUT_S: Final = 1800.0
# A tool of an agent runs for at least this time. Meanwhile the engine saves the new tokens.
_TOOL_S: Final = 2.0
ProgressCallback = Callable[[str], None]


class AgentTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn on one server."""

    ttft_s: float
    """Seconds from sending the request until the first token, including rendering and tokenising the prompt."""
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    """Number of tokens that the prompt has more than that of the turn before."""
    cost_s: float
    """Time to process as many tokens as `new_tokens`, at the prefill speed that the server measured in this turn."""
    is_after_kill: bool
    """True for turns after all processes of the server were killed, which the server has had no time to prepare for."""

    @property
    def ratio(self) -> float:
        """Time to the first token divided by the cost of the new tokens."""
        return self.ttft_s / self.cost_s if self.cost_s else 0.0


class AgentReport(msgspec.Struct, frozen=True, kw_only=True):
    """Turns of each server, without the first turn of the session, in which every token is new."""

    model: str
    kill_after: int
    turns: dict[str, list[AgentTurn]]


class AgentServer(Protocol):
    """Server with the OpenAI API that can be killed and started again."""

    port: int

    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL, and start it again."""

    def close(self) -> None: ...


def run(
    model: str, requests: Sequence[dict[str, Any]], peer: Path | None, *, n_threads: int, n_ctx: int, kill_after: int,
    n_peer_turns: int, on_progress: ProgressCallback = lambda text: None,
) -> AgentReport:  # fmt: skip
    """Send the requests of a session to edgechat and, if given, to the llama-server binary `peer`, turn by turn.

    Two llama-servers get the requests: one as they are, and one without the line that changes. The first of them gets
    only `n_peer_turns` turns before the servers are killed, and one after it, because it processes whole prompts.
    Raises EngineError.
    """
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as scratch_dir, contextlib.ExitStack() as stack:
        environment = make_environment(Path(scratch_dir) / "home") | {"EDGECHAT_ENGINE": PRIVATE_MODE}
        options = ("-m", model, "--threads", str(n_threads), "--ctx", str(n_ctx))
        servers: dict[str, AgentServer] = {"edgechat": EdgechatServer(*options, environment=environment)}
        stack.callback(servers["edgechat"].close)
        if peer is not None:
            engine = EngineClient()
            try:
                backend = engine.list_devices(benchmark=False).backend
            finally:
                engine.close()
            module = next(m.path for m in find_bundle().modules if m.name == backend)
            for name in (_PEER_WITHOUT_HEADER, _PEER):
                servers[name] = LlamaServer(
                    peer, module, model, n_ctx=n_ctx, n_threads=n_threads, n_batch=N_BATCH,
                    arguments=["--jinja", "-np", "1"],
                )  # fmt: skip
                stack.callback(servers[name].close)
        return _measure(model, servers, requests, kill_after, n_peer_turns, on_progress)


_PEER: Final = "llama-server"
_PEER_WITHOUT_HEADER: Final = "llama-server, no header"


def _measure(
    model: str, servers: dict[str, AgentServer], requests: Sequence[dict[str, Any]], kill_after: int, n_peer_turns: int,
    on_progress: ProgressCallback,
) -> AgentReport:  # fmt: skip
    turns: dict[str, list[AgentTurn]] = {name: [] for name in servers}
    n_before = dict.fromkeys(servers, 0)
    """Number of prompt tokens of the turn before, by server."""
    new_tokens = 0
    for number, request in enumerate(requests, 1):
        if number == kill_after + 1:
            on_progress("killing and starting all servers")
            time.sleep(_TOOL_S)
            for server in servers.values():
                server.kill()
        for name, server in servers.items():
            if name == _PEER and not (number <= n_peer_turns or number == kill_after + 1):
                continue
            on_progress(f"turn {number} of {len(requests)}: {name}")
            body = remove_header(request) if name == _PEER_WITHOUT_HEADER else request
            ttft_s, prompt_tokens, cached_tokens, prefill_s = _send(server.port, body)
            if name != _PEER:  # which skips turns, and whose prompts grow by the same tokens as those without header
                new_tokens, n_before[name] = prompt_tokens - n_before[name], prompt_tokens
            if number > 1:
                turns[name].append(AgentTurn(
                    ttft_s=ttft_s, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, new_tokens=new_tokens,
                    cost_s=prefill_s / max(1, prompt_tokens - cached_tokens) * new_tokens,
                    is_after_kill=number > kill_after,
                ))  # fmt: skip
        time.sleep(_TOOL_S)
    return AgentReport(model=model, kill_after=kill_after, turns=turns)


def _send(port: int, body: dict[str, Any]) -> tuple[float, int, int, float]:
    """Send a request; return the seconds to the first token, prompt and cached tokens, and the seconds of the prefill.

    Raises EngineError if the server refuses the request.
    """
    options = {
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": _N_REPLY_TOKENS, "temperature": 0.0,
        "cache_prompt": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_RESPONSE_TIMEOUT_S)
    data = msgspec.json.encode(body | options)
    started_at = time.monotonic()
    connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise EngineError(f"The server responded with HTTP status {response.status}: {_read_error(response.read())}")
    first_token_at = 0.0
    timings: dict[str, Any] = {}
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = msgspec.json.decode(line[6:])
        delta = chunk["choices"][0].get("delta", {}) if chunk.get("choices") else {}
        if not first_token_at and any(delta.get(key) for key in ("content", "reasoning_content", "tool_calls")):
            first_token_at = time.monotonic()
        timings = chunk.get("timings") or timings
    connection.close()
    if not timings:
        raise EngineError("The server sent no timings. This benchmark needs edgechat or llama-server.")
    first_token_at = first_token_at or time.monotonic()
    n_cached = int(timings["cache_n"])
    return first_token_at - started_at, n_cached + int(timings["prompt_n"]), n_cached, timings["prompt_ms"] / 1000


def _read_error(body: bytes) -> str:
    """Return the message of an error response."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")


def format_table(report: AgentReport) -> str:
    """Format the report as a table, with medians before and after the kill."""
    lines = [f"{'':42}{'turns':>6}{'new':>7}{'computed':>10}{'first token':>13}{'ratio':>8}{'highest':>9}"]
    for name, turns in report.turns.items():
        groups = {
            "": [t for t in turns if not t.is_after_kill],
            ", first after kill": [t for t in turns if t.is_after_kill][:1],
            ", later turns": [t for t in turns if t.is_after_kill][1:],
        }
        for suffix, group in groups.items():
            if group:
                lines.append(_format_row(f"{name}{suffix}", group))
    return "\n".join([*lines, "", "ratio: time to the first token, divided by the cost of the tokens that are new"])


def _format_row(name: str, turns: Sequence[AgentTurn]) -> str:
    median = statistics.median
    new, computed = median(t.new_tokens for t in turns), median(t.prompt_tokens - t.cached_tokens for t in turns)
    ratios = [t.ratio for t in turns]
    ttft_s = median(t.ttft_s for t in turns)
    counts = f"{len(turns):6}{new:7.0f}{computed:10.0f}"
    return f"{name:42}{counts}{ttft_s:11.3f} s{median(ratios):8.2f}{max(ratios):9.2f}"
