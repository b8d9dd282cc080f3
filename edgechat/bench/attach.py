"""Benchmark of programs that share an engine: time to the first text of `ask`, and memory of all processes.

All programs are children with their files in a temporary directory. The variants of a measurement alternate.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench.child_programs import edgechat_command, make_environment, open_temporary_home
from edgechat.chat.events import TurnFinished, TurnInterrupted
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.engine.resident_client import PRIVATE_MODE, stop_engine
from edgechat.engine.resident_files import list_records
from edgechat.errors import EngineError
from edgechat.hardware.memory import read_tree_pss_bytes
from edgechat.humanize import format_size
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.store import open_ephemeral_store

ProgressCallback = Callable[[str], None]

_MAX_TOKENS: Final = 4
# Time after which a program that prints nothing is an error.
_REPLY_TIMEOUT_S: Final = 300.0


class AttachReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the benchmark; lists have one value per round. Seconds are from the start of the program."""

    running_first_byte_s: list[float]
    """Seconds until the first byte of the reply of `ask`, with an engine that has the model loaded."""
    shared_first_byte_s: list[float]
    """The same without an engine; `ask` starts one for other programs, too."""
    private_first_byte_s: list[float]
    """The same with EDGECHAT_ENGINE=private."""
    chat_first_token_s: list[float]
    """Seconds from sending a message in an open chat until the first text."""
    ask_first_token_s: list[float]
    """The same for the first message of another session on the engine of that chat, as `ask` opens it."""
    ask_process_first_token_s: list[float]
    """The same in an `ask` process, whose first prompt can wait for the start of its render process."""
    chat_pss_bytes: int
    """Proportional set size of all processes with one chat; 0 if the system does not report it."""
    shared_pss_bytes: int
    """The same with a second chat that uses the same engine."""
    private_pss_bytes: int
    """The same with a second chat that has an engine of its own."""


def run(model: Path, rounds: int, on_progress: ProgressCallback) -> AttachReport:
    """Run all measurements. Raises EngineError if a program fails."""
    with open_temporary_home(EDGECHAT_ENGINE=None) as home:
        env = make_environment(home)
        try:
            running_s = _measure_running(model, rounds, env, on_progress)
            shared_s, private_s = _measure_starts(model, rounds, env, on_progress)
            chat_s, ask_s, process_s = _measure_first_tokens(model, rounds, env, on_progress)
            _stop_engines()
            on_progress("measuring memory")
            chat_bytes, shared_bytes, private_bytes = _measure_memory(model, env)
        finally:
            _stop_engines()
    return AttachReport(
        running_first_byte_s=running_s, shared_first_byte_s=shared_s, private_first_byte_s=private_s,
        chat_first_token_s=chat_s, ask_first_token_s=ask_s, ask_process_first_token_s=process_s,
        chat_pss_bytes=chat_bytes, shared_pss_bytes=shared_bytes,
        private_pss_bytes=private_bytes,
    )  # fmt: skip


def _measure_running(model: Path, rounds: int, env: Mapping[str, str], on_progress: ProgressCallback) -> list[float]:
    """Return the times to the first byte of `ask` after `ask`; the first one, which loads the model, is discarded."""
    times_s = []
    for number in range(rounds + 1):
        on_progress(f"measuring `ask` with a running engine, round {number} of {rounds}")
        times_s.append(_time_ask(model, f"Say hello {number}.", env))
    return times_s[1:]


def _measure_starts(
    model: Path, rounds: int, env: Mapping[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float]]:
    """Return the times to the first byte of `ask` without an engine: one that starts a shared, and a private engine."""
    shared_s, private_s = [], []
    for number in range(rounds):
        on_progress(f"measuring `ask` without an engine, round {number + 1} of {rounds}")
        _stop_engines()
        shared_s.append(_time_ask(model, f"Say hello {number}.", env))
        _stop_engines()
        private_s.append(_time_ask(model, f"Say hello {number}.", {**env, "EDGECHAT_ENGINE": PRIVATE_MODE}))
    return shared_s, private_s


def _measure_first_tokens(
    model: Path, rounds: int, env: Mapping[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float], list[float]]:
    """Return the times to the first token in an open chat, in other sessions, and in `ask`, all on the same engine."""
    chat_s, ask_s, process_s = [], [], []
    with _open_session(model) as chat:
        for number in range(rounds + 1):  # round 0 fills the caches; its times are discarded
            on_progress(f"measuring `ask` beside a chat, round {number} of {rounds}")
            chat_s.append(_send(chat, f"Say hello {number}."))
            with _open_session(model) as other:
                ask_s.append(_send(other, f"Say goodbye {number}."))
            command = _ask_command(model, f"Say something {number}.", "--json")
            ask = subprocess.run(command, env=env, check=False, capture_output=True, stdin=subprocess.DEVNULL)
            if ask.returncode:
                raise EngineError(f"`edgechat ask` failed: {ask.stderr.decode(errors='replace')}")
            process_s.append(float(json.loads(ask.stdout)["stats"]["ttft_s"]))
    return chat_s[1:], ask_s[1:], process_s[1:]


@contextlib.contextmanager
def _open_session(model: Path) -> Iterator[Session]:
    """Open a session for the `with` block, and wait until its render process is ready."""
    session = Session(open_ephemeral_store(), Settings(temperature=0.0, max_tokens=_MAX_TOKENS), model)
    try:
        session.open()
        session.model.builder.formats.find(PromptOptions(think=False))
        yield session
    finally:
        session.close()


def _send(session: Session, text: str) -> float:
    """Send a message and return the time to the first token of the reply."""
    for event in session.send(text):
        if isinstance(event, (TurnFinished, TurnInterrupted)) and event.reply.stats is not None:
            return event.reply.stats.ttft_s
    raise EngineError("The reply in the chat has no statistics.")


def _ask_command(model: Path, prompt: str, *options: str) -> list[str]:
    return edgechat_command(
        "ask", "-m", str(model), "--temperature", "0", "--max-tokens", str(_MAX_TOKENS), *options, prompt
    )


def _time_ask(model: Path, prompt: str, env: Mapping[str, str]) -> float:
    """Run `ask` and return the time from the start of the process to the first byte of the reply, in seconds."""
    started_at = time.monotonic()
    with subprocess.Popen(
        _ask_command(model, prompt), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None  # noqa: S101  (for mypy)
        first_byte = process.stdout.read(1)
        duration_s = time.monotonic() - started_at
        _, error_text = process.communicate(timeout=_REPLY_TIMEOUT_S)
    if not first_byte or process.returncode:
        raise EngineError(f"`edgechat ask` failed: {error_text.decode(errors='replace')}")
    return duration_s


def _measure_memory(model: Path, env: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the memory of one chat, of two chats that share its engine, and of two chats with two engines."""
    with _run_chat(model, env) as chat:
        chat_bytes = read_tree_pss_bytes(chat)
        with _run_chat(model, env) as second:
            shared_bytes = read_tree_pss_bytes(chat) + read_tree_pss_bytes(second)
        with _run_chat(model, {**env, "EDGECHAT_ENGINE": PRIVATE_MODE}) as second:
            private_bytes = read_tree_pss_bytes(chat) + read_tree_pss_bytes(second)
    return chat_bytes, shared_bytes, private_bytes


@contextlib.contextmanager
def _run_chat(model: Path, env: Mapping[str, str]) -> Iterator[int]:
    """Run a line-by-line chat, wait for one reply, and yield the process ID; the chat ends after the `with` block."""
    command = edgechat_command("--plain", "-m", str(model), "--temperature", "0", "--max-tokens", str(_MAX_TOKENS))
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None  # noqa: S101  (for mypy)
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(b"Say hello.\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise EngineError("`edgechat --plain` ended without a reply.")
        yield process.pid
        process.communicate(timeout=_REPLY_TIMEOUT_S)  # closes the standard input, which ends the chat


def _stop_engines() -> None:
    for record in list(list_records()):
        stop_engine(record)


def format_table(report: AttachReport) -> str:
    """Format the report as a table of results and their limits."""
    shared_s, private_s = statistics.median(report.shared_first_byte_s), statistics.median(report.private_first_byte_s)
    chat_s, ask_s = statistics.median(report.chat_first_token_s), statistics.median(report.ask_first_token_s)
    rows = [
        ("first byte of `ask`, running engine", _format_ms(statistics.median(report.running_first_byte_s)), "250 ms"),
        ("first byte of `ask`, new shared engine", _format_ms(shared_s), ""),
        ("first byte of `ask`, private engine", _format_ms(private_s), ""),
        ("shared / private", f"{shared_s / private_s:.2f}", "1.00"),
        ("first token of a message in a chat", _format_ms(chat_s), ""),
        ("first token in a session beside the chat", _format_ms(ask_s), ""),
        ("session / chat", f"{ask_s / chat_s:.2f}", "1.20"),
        ("first token in `ask` beside the chat", _format_ms(statistics.median(report.ask_process_first_token_s)), ""),
    ]
    if report.chat_pss_bytes:
        rows += [
            ("memory of one chat", format_size(report.chat_pss_bytes), ""),
            ("two chats, shared engine", format_size(report.shared_pss_bytes), ""),
            ("two chats, private engine", format_size(report.private_pss_bytes), ""),
        ]
    width = max(len(name) for name, *_ in rows)
    return "\n".join(
        f"{name:<{width}}{value:>10}{f'   limit: {limit}' if limit else ''}" for name, value, limit in rows
    )


def _format_ms(duration_s: float) -> str:
    return f"{1000 * duration_s:.0f} ms"
