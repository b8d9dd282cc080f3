"""Benchmark of the terminal interface: first frame, key latency, long conversations, memory, idle CPU, decode speed.

All programs run in a pseudo-terminal; edgechat alternates with minimal Textual programs as the baseline.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.bench import textual_baseline
from edgechat.bench.child_programs import edgechat_command, make_environment, replace_variables
from edgechat.bench.pty_program import PtyProgram, run_in_pty
from edgechat.bench.scripted_session import CHARS_PER_TOKEN
from edgechat.hardware.memory import read_cpu_time_s, read_rss_bytes
from edgechat.humanize import format_size
from edgechat.store import open_store

ProgressCallback = Callable[[str], None]

_FIRST_FRAME_TEXT: Final = "sk something"
_N_CONVERSATIONS: Final = 1000
_N_KEYS: Final = 120
_KEY_INTERVAL_S: Final = 0.17
_FIRST_LETTER_CODE_POINT: Final = 0x3400
"""Code point of the first typed letter. No other output contains the letters, so a letter in the output is an echo."""
_IDLE_S: Final = 60.0
_QUESTION: Final = "Tell me a long story about the sea."
_N_DECODED_TOKENS: Final = 200


class TuiReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the terminal benchmark; lists have one value per round."""

    first_frame_s: list[float]
    """Seconds from the start of the process until the first frame of the chat."""
    empty_first_frame_s: list[float]
    """Seconds from the start of the process until the first frame of an empty Textual app."""
    first_key_s: list[float] = msgspec.field(name="usable_after_s")
    """Seconds from the first frame until a key pressed at that moment is visible."""
    key_p99_s: list[float]
    """99th percentile of the time in seconds to show a letter typed during a reply."""
    stock_key_p99_s: list[float]
    """99th percentile of the time in seconds to show a letter typed in an app of unmodified Textual widgets."""
    max_key_s: float = msgspec.field(name="key_worst_s")
    """Longest time in seconds to show a letter typed during a reply."""
    focus_change_s: list[float] = msgspec.field(name="focus_flip_s")
    """Seconds to show a letter typed directly after the terminal lost and regained the focus."""
    theme_change_s: list[float] = msgspec.field(name="theme_s")
    """Seconds to show a letter typed directly after a change of the theme."""
    conversation_open_s: list[float] = msgspec.field(name="open_s")
    """Seconds from the key press until the end of the long conversation is visible."""
    ui_rss_bytes: int
    idle_cpu_share: float
    decode_tps: list[float]
    ask_decode_tps: list[float]


def run(rounds: int, on_progress: ProgressCallback, idle_s: float = _IDLE_S) -> TuiReport:
    """Run all measurements. Raises EngineError if an expected text does not appear in the terminal."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        env = make_environment(Path(home))
        on_progress(
            f"writing {_N_CONVERSATIONS} short conversations and one with {textual_baseline.N_MESSAGES} messages"
        )
        with replace_variables(EDGECHAT_HOME=home):
            store = open_store()
            long_conversation_id = textual_baseline.fill_store(store, _N_CONVERSATIONS, textual_baseline.N_MESSAGES).id
            store.close()
        first_frame_s, empty_first_frame_s, first_key_s = _measure_first_frames(rounds, env, on_progress)
        key_delays_s, stock_key_delays_s, focus_change_s, theme_change_s, conversation_open_s, max_rss_bytes = (
            _measure_typing(rounds, env, long_conversation_id, on_progress)
        )
        on_progress(f"measuring idle CPU usage for {idle_s:.0f} s")
        cpu_share = _measure_idle(env, long_conversation_id, idle_s)
        chat_tps, ask_tps = _measure_decoding(rounds, env, on_progress)
    return TuiReport(
        first_frame_s=first_frame_s, empty_first_frame_s=empty_first_frame_s, first_key_s=first_key_s,
        key_p99_s=[_compute_p99(delays_s) for delays_s in key_delays_s],
        stock_key_p99_s=[_compute_p99(delays_s) for delays_s in stock_key_delays_s],
        max_key_s=max(max(delays_s) for delays_s in key_delays_s), focus_change_s=focus_change_s,
        theme_change_s=theme_change_s, conversation_open_s=conversation_open_s, ui_rss_bytes=max_rss_bytes,
        idle_cpu_share=cpu_share, decode_tps=chat_tps, ask_decode_tps=ask_tps,
    )  # fmt: skip


def _measure_first_frames(
    rounds: int, env: dict[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float], list[float]]:
    """Measure the first frames of the chat and of an empty app, and the delay of the first key, in seconds by round."""
    first_frame_s, empty_first_frame_s, first_key_s = [], [], []
    for number in range(rounds + 1):  # round 0 fills the page cache; its times are discarded
        on_progress(f"measuring the first frame, round {number} of {rounds}")
        with run_in_pty([sys.executable, "-c", textual_baseline.EMPTY_APP], env) as program:
            empty_first_frame_s.append(program.wait_for(_FIRST_FRAME_TEXT) - program.started_at)
        with run_in_pty(edgechat_command(), env) as program:
            first_frame_s.append(program.wait_for(_FIRST_FRAME_TEXT) - program.started_at)
            pressed_at = program.write("\u0416")
            first_key_s.append(program.wait_for("\u0416") - pressed_at)
    return first_frame_s[1:], empty_first_frame_s[1:], first_key_s[1:]


@contextlib.contextmanager
def _copy_home(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment with a copy of the conversations, so that measurements do not change the originals."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        shutil.copytree(env["EDGECHAT_HOME"], home, dirs_exist_ok=True)
        yield {**env, "EDGECHAT_HOME": home}


def _run_scripted_chat(env: dict[str, str], long_conversation_id: str) -> contextlib.AbstractContextManager[PtyProgram]:
    code = f"from edgechat.bench.textual_baseline import run_scripted_chat; run_scripted_chat({long_conversation_id!r})"
    return run_in_pty([sys.executable, "-c", code], env)


def _run_stock_app(env: dict[str, str]) -> contextlib.AbstractContextManager[PtyProgram]:
    chars_per_tick = textual_baseline.TOKENS_PER_S * CHARS_PER_TOKEN // 12
    code = textual_baseline.STOCK_APP.format(chars_per_tick=chars_per_tick)
    return run_in_pty([sys.executable, "-c", code, textual_baseline.PROSE * 20], env)


def _measure_typing(
    rounds: int, env: dict[str, str], long_conversation_id: str, on_progress: ProgressCallback
) -> tuple[list[list[float]], list[list[float]], list[float], list[float], list[float], int]:
    """Measure delays in seconds (keys, keys in the stock app, focus, theme, opening) and the resident set size."""
    key_delays_s: list[list[float]] = []
    stock_key_delays_s: list[list[float]] = []
    focus_change_s: list[float] = []
    theme_change_s: list[float] = []
    conversation_open_s: list[float] = []
    max_rss_bytes = 0
    for number in range(rounds):
        on_progress(f"measuring the key latency during a reply, round {number + 1} of {rounds}")
        with _run_stock_app(env) as program:
            program.wait_for("begun")
            program.read_for(1.0)
            stock_key_delays_s.append(_measure_keys(program))
        with _copy_home(env) as copy_env, _run_scripted_chat(copy_env, long_conversation_id) as program:
            program.wait_for("Ready")
            program.read_for(0.5)
            pressed_at = program.write(textual_baseline.OPEN_KEY)
            conversation_open_s.append(program.wait_for(textual_baseline.END_MARKER) - pressed_at)
            program.read_for(2.0)
            program.write("Go\r")
            program.wait_for("Generating")
            program.read_for(3.0)
            key_delays_s.append(_measure_keys(program))
            for keys, delays_s in (("\x1b[O\x1b[I", focus_change_s), (textual_baseline.THEME_KEY, theme_change_s)):
                pressed_at = program.write(f"{keys}\u04e8")
                delays_s.append(program.wait_for("\u04e8", start=len(program.output)) - pressed_at)
                program.read_for(0.5)
            max_rss_bytes = max(max_rss_bytes, read_rss_bytes(program.pid))
    return key_delays_s, stock_key_delays_s, focus_change_s, theme_change_s, conversation_open_s, max_rss_bytes


def _measure_keys(program: PtyProgram) -> list[float]:
    """Type `_N_KEYS` letters and return the seconds until each letter is visible."""
    delays_s = []
    for number in range(_N_KEYS):
        letter = chr(_FIRST_LETTER_CODE_POINT + number)
        start = len(program.output)
        pressed_at = program.write(letter)
        delays_s.append(program.wait_for(letter, start=start) - pressed_at)
        program.read_for(_KEY_INTERVAL_S)
    return delays_s


def _measure_idle(env: dict[str, str], long_conversation_id: str, idle_s: float) -> float:
    """Return the CPU usage (1.0 is one core) of the idle chat and its child processes with an open conversation."""
    with run_in_pty(edgechat_command("-m", "starter", "--conversation", long_conversation_id), env) as program:
        program.wait_for("Ready", timeout_s=300)
        program.read_for(30.0)  # wait for one-time work: prefill of the next prompt, measurement of step costs
        cpu_start_s = read_cpu_time_s(program.pid)
        program.read_for(idle_s)
        return (read_cpu_time_s(program.pid) - cpu_start_s) / idle_s


def _measure_decoding(
    rounds: int, env: dict[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float]]:
    """Return the decode speeds of the same reply in the chat and in `ask`, in tokens per second."""
    chat_tps, ask_tps = [], []
    options = ["-m", "starter", "--temperature", "0", "--max-tokens", str(_N_DECODED_TOKENS), "--no-speculation"]
    for number in range(rounds):
        on_progress(f"measuring the decode speed, round {number + 1} of {rounds}")
        command = edgechat_command("ask", *options, "--json", "--ephemeral", _QUESTION)
        ask_process = subprocess.run(command, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        ask_tps.append(float(json.loads(ask_process.stdout)["stats"]["decode_tps"]))
        with run_in_pty(edgechat_command(*options), env) as program:
            program.wait_for("Ready")
            program.write(f"{_QUESTION}\r")
            program.wait_for("tokens/s", start=len(program.output))
            program.wait_for("length limit")
            program.read_for(0.5)
        chat_tps.append(_read_last_tps(env))
    return chat_tps, ask_tps


def _read_last_tps(env: dict[str, str]) -> float:
    """Return the decode speed of the last reply of the newest conversation, in tokens per second."""
    command = edgechat_command("history", "list", "-n", "1", "--json")
    list_process = subprocess.run(command, env=env, check=True, capture_output=True)
    conversation_id = json.loads(list_process.stdout)[0]["conversation"]["id"]
    command = edgechat_command("history", "show", conversation_id, "--json")
    show_process = subprocess.run(command, env=env, check=True, capture_output=True)
    return float(json.loads(show_process.stdout)["messages"][-1]["stats"]["decode_tps"])


def _compute_p99(delays_s: list[float]) -> float:
    return statistics.quantiles(delays_s, n=100, method="inclusive")[98]


def format_table(report: TuiReport) -> str:
    """Format the report as a table of results and their limits."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def ratio(values: list[float], baselines: list[float]) -> float:
        return median([value / baseline for value, baseline in zip(values, baselines, strict=True)])

    rows = [
        ("first frame / empty app", f"{ratio(report.first_frame_s, report.empty_first_frame_s):.2f}", "1.20"),
        ("key pressed at the first frame", f"{1000 * median(report.first_key_s):.0f} ms", "100 ms"),
        ("key to paint / stock Textual, p99", f"{ratio(report.key_p99_s, report.stock_key_p99_s):.2f}", "1.20"),
        ("key to paint, p99", f"{1000 * median(report.key_p99_s):.0f} ms", "33 ms"),
        ("stock Textual, p99", f"{1000 * median(report.stock_key_p99_s):.0f} ms", ""),
        ("slowest key", f"{1000 * report.max_key_s:.0f} ms", "100 ms"),
        ("key after a focus change", f"{1000 * median(report.focus_change_s):.0f} ms", "150 ms"),
        ("key after a theme change", f"{1000 * median(report.theme_change_s):.0f} ms", "150 ms"),
        ("opening 5,000 messages", f"{1000 * median(report.conversation_open_s):.0f} ms", "300 ms"),
        ("memory of the chat process", format_size(report.ui_rss_bytes), "150 MB"),
        ("idle CPU", f"{100 * report.idle_cpu_share:.2f} %", "0.50 %"),
        ("decode speed / `ask`", f"{ratio(report.decode_tps, report.ask_decode_tps):.3f}", "0.990"),
    ]
    width = max(len(name) for name, *_ in rows)
    return "\n".join(
        f"{name:<{width}}{value:>10}{f'   limit: {limit}' if limit else ''}" for name, value, limit in rows
    )
