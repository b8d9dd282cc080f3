"""Benchmark of the terminal interface: first frame, key latency, long conversations, memory, idle CPU, decode speed.

Everything is measured from outside on a pseudo-terminal, in alternating order with minimal Textual programs.
"""

from __future__ import annotations

import contextlib
import json
import os
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
from edgechat.bench.pty_program import PtyProgram, run_in_pty
from edgechat.bench.scripted_session import CHARS_PER_TOKEN
from edgechat.hardware.memory import cpu_s, rss_bytes
from edgechat.humanize import size
from edgechat.store import open_store

ProgressCallback = Callable[[str], None]

_FIRST_FRAME_TEXT: Final = "sk something"
_N_CONVERSATIONS: Final = 1000
_N_KEYS: Final = 120
_KEY_INTERVAL_S: Final = 0.17
_ALPHABET: Final = 0x3400
"""First code point of the typed letters. They occur nowhere else, so an echoed letter is on the screen."""
_IDLE_S: Final = 60.0
_QUESTION: Final = "Tell me a long story about the sea."
_N_DECODED: Final = 200


class TuiReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the terminal benchmark; lists have one value per round."""

    first_frame_s: list[float]
    empty_first_frame_s: list[float]
    usable_after_s: list[float]
    """Seconds from the first frame until a key pressed at that moment is visible."""
    key_p99_s: list[float]
    stock_key_p99_s: list[float]
    key_worst_s: float
    focus_flip_s: list[float]
    theme_s: list[float]
    open_s: list[float]
    """Seconds from the key press until the end of the long conversation is visible."""
    ui_rss_bytes: int
    idle_cpu_share: float
    decode_tps: list[float]
    ask_decode_tps: list[float]


def run(rounds: int, on_progress: ProgressCallback, idle_s: float = _IDLE_S) -> TuiReport:
    """Run all measurements. Raises EngineError if an expected text never appears."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        env = _environment(Path(home))
        on_progress(f"writing {_N_CONVERSATIONS} conversations and one of {textual_baseline.N_MESSAGES} messages")
        with _edgechat_home(home):
            store = open_store()
            long_id = textual_baseline.fill_store(store, _N_CONVERSATIONS, textual_baseline.N_MESSAGES).id
            store.close()
        first, empty, usable = _measure_first_frames(rounds, env, on_progress)
        keys, stock, flips, themes, opened, rss = _measure_typing(rounds, env, long_id, on_progress)
        on_progress(f"idle for {idle_s:.0f} s")
        share = _measure_idle(env, long_id, idle_s)
        own_tps, ask = _measure_decoding(rounds, env, on_progress)
    return TuiReport(
        first_frame_s=first, empty_first_frame_s=empty, usable_after_s=usable,
        key_p99_s=[_p99(k) for k in keys], stock_key_p99_s=[_p99(k) for k in stock],
        key_worst_s=max(max(k) for k in keys), focus_flip_s=flips, theme_s=themes, open_s=opened, ui_rss_bytes=rss,
        idle_cpu_share=share, decode_tps=own_tps, ask_decode_tps=ask,
    )  # fmt: skip


def _environment(home: Path) -> dict[str, str]:
    # An installed program has compiled files; without them every start would compile.
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("EDGECHAT_") and k != "PYTHONDONTWRITEBYTECODE"
    }
    return {**inherited, "EDGECHAT_HOME": str(home)}


@contextlib.contextmanager
def _edgechat_home(home: str) -> Iterator[None]:
    before = os.environ.get("EDGECHAT_HOME")
    os.environ["EDGECHAT_HOME"] = home
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGECHAT_HOME"]
        else:
            os.environ["EDGECHAT_HOME"] = before


def _edgechat(*arguments: str) -> list[str]:
    return [shutil.which("edgechat", path=str(Path(sys.executable).parent)) or "edgechat", *arguments]


def _measure_first_frames(
    rounds: int, env: dict[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float], list[float]]:
    edgechat, empty, usable = [], [], []
    for number in range(rounds + 1):  # the first round fills the page cache
        on_progress(f"first frame {number} of {rounds}")
        with run_in_pty([sys.executable, "-c", textual_baseline.EMPTY_APP], env) as program:
            empty.append(program.wait_for(_FIRST_FRAME_TEXT) - program.started_at)
        with run_in_pty(_edgechat(), env) as program:
            edgechat.append(program.wait_for(_FIRST_FRAME_TEXT) - program.started_at)
            pressed_s = program.write("\u0416")
            usable.append(program.wait_for("\u0416") - pressed_s)
    return edgechat[1:], empty[1:], usable[1:]


@contextlib.contextmanager
def _home_copy(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Copy the conversations, so that a measurement does not change the originals."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        shutil.copytree(env["EDGECHAT_HOME"], home, dirs_exist_ok=True)
        yield {**env, "EDGECHAT_HOME": home}


def _chat(env: dict[str, str], long_id: str) -> contextlib.AbstractContextManager[PtyProgram]:
    code = f"from edgechat.bench.textual_baseline import run_scripted_chat; run_scripted_chat({long_id!r})"
    return run_in_pty([sys.executable, "-c", code], env)


def _stock(env: dict[str, str]) -> contextlib.AbstractContextManager[PtyProgram]:
    per_tick = textual_baseline.TOKENS_PER_S * CHARS_PER_TOKEN // 12
    return run_in_pty(
        [sys.executable, "-c", textual_baseline.STOCK_APP.format(per_tick=per_tick), textual_baseline.PROSE * 20], env
    )


def _measure_typing(
    rounds: int, env: dict[str, str], long_id: str, on_progress: ProgressCallback
) -> tuple[list[list[float]], list[list[float]], list[float], list[float], list[float], int]:
    own_delays: list[list[float]] = []
    stock: list[list[float]] = []
    focus_changes: list[float] = []
    themes: list[float] = []
    opened: list[float] = []
    rss = 0
    for number in range(rounds):
        on_progress(f"keys during a reply, {number + 1} of {rounds}")
        with _stock(env) as program:
            program.wait_for("begun")
            program.read_for(1.0)
            stock.append(_measure_keys(program))
        with _home_copy(env) as copied, _chat(copied, long_id) as program:
            program.wait_for("Ready")
            program.read_for(0.5)
            pressed_s = program.write(textual_baseline.OPEN_KEY)
            opened.append(program.wait_for(textual_baseline.LAST_WORDS) - pressed_s)
            program.read_for(2.0)
            program.write("Go\r")
            program.wait_for("Generating")
            program.read_for(3.0)
            own_delays.append(_measure_keys(program))
            for keys, times in (("\x1b[O\x1b[I", focus_changes), (textual_baseline.THEME_KEY, themes)):
                pressed_s = program.write(f"{keys}\u04e8")
                times.append(program.wait_for("\u04e8", start=len(program.output)) - pressed_s)
                program.read_for(0.5)
            rss = max(rss, rss_bytes(program.pid))
    return own_delays, stock, focus_changes, themes, opened, rss


def _measure_keys(program: PtyProgram) -> list[float]:
    """Press many keys and return the seconds until each is visible."""
    times = []
    for number in range(_N_KEYS):
        letter = chr(_ALPHABET + number)
        start = len(program.output)
        pressed_s = program.write(letter)
        times.append(program.wait_for(letter, start=start) - pressed_s)
        program.read_for(_KEY_INTERVAL_S)
    return times


def _measure_idle(env: dict[str, str], long_id: str, idle_s: float) -> float:
    """Return the CPU share (1.0 = one core) of all processes while a conversation is open and idle."""
    with run_in_pty(_edgechat("-m", "starter", "--conversation", long_id), env) as program:
        program.wait_for("Ready", timeout_s=300)
        program.read_for(30.0)  # one-off idle work: prefill ahead and step costs
        before_s = cpu_s(program.pid)
        program.read_for(idle_s)
        return (cpu_s(program.pid) - before_s) / idle_s


def _measure_decoding(
    rounds: int, env: dict[str, str], on_progress: ProgressCallback
) -> tuple[list[float], list[float]]:
    """Return the decode speeds of the same reply in the chat and in `ask`, in tokens per second."""
    own_tps, ask = [], []
    options = ["-m", "starter", "--temperature", "0", "--max-tokens", str(_N_DECODED), "--no-speculation"]
    for number in range(rounds):
        on_progress(f"decoding, {number + 1} of {rounds}")
        completed = subprocess.run(
            _edgechat("ask", *options, "--json", "--ephemeral", _QUESTION), env=env, check=True, capture_output=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        ask.append(float(json.loads(completed.stdout)["stats"]["decode_tps"]))
        with run_in_pty(_edgechat(*options), env) as program:
            program.wait_for("Ready")
            program.write(f"{_QUESTION}\r")
            program.wait_for("tokens/s", start=len(program.output))
            program.wait_for("length limit")
            program.read_for(0.5)
        own_tps.append(_last_tps(env))
    return own_tps, ask


def _last_tps(env: dict[str, str]) -> float:
    command = _edgechat("history", "list", "-n", "1", "--json")
    listed = subprocess.run(command, env=env, check=True, capture_output=True)
    conversation_id = json.loads(listed.stdout)[0]["conversation"]["id"]
    command = _edgechat("history", "show", conversation_id, "--json")
    shown = subprocess.run(command, env=env, check=True, capture_output=True)
    return float(json.loads(shown.stdout)["messages"][-1]["stats"]["decode_tps"])


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def table(report: TuiReport) -> str:
    """Format the report as a table of figures and their bars."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def ratio(own: list[float], baseline: list[float]) -> float:
        return median([a / b for a, b in zip(own, baseline, strict=True)])

    rows = [
        ("first frame / empty app", f"{ratio(report.first_frame_s, report.empty_first_frame_s):.2f}", "1.20"),
        ("key at the first frame", f"{1000 * median(report.usable_after_s):.0f} ms", "100 ms"),
        ("key to paint / stock Textual, p99", f"{ratio(report.key_p99_s, report.stock_key_p99_s):.2f}", "1.20"),
        ("key to paint, p99", f"{1000 * median(report.key_p99_s):.0f} ms", "33 ms"),
        ("stock Textual, p99", f"{1000 * median(report.stock_key_p99_s):.0f} ms", ""),
        ("worst key", f"{1000 * report.key_worst_s:.0f} ms", "100 ms"),
        ("focus change and a key", f"{1000 * median(report.focus_flip_s):.0f} ms", "150 ms"),
        ("theme change and a key", f"{1000 * median(report.theme_s):.0f} ms", "150 ms"),
        ("opening 5,000 messages", f"{1000 * median(report.open_s):.0f} ms", "300 ms"),
        ("memory of the chat process", size(report.ui_rss_bytes), "150 MB"),
        ("idle CPU", f"{100 * report.idle_cpu_share:.2f} %", "0.50 %"),
        ("decode speed / `ask`", f"{ratio(report.decode_tps, report.ask_decode_tps):.3f}", "0.990"),
    ]
    width = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:<{width}}{value:>10}{f'   bar: {bar}' if bar else ''}" for name, value, bar in rows)
