"""How the chat feels: first frame, keys while an answer comes, long conversations, memory, and what it costs when idle.

All is measured from outside, on a pseudo-terminal, in turn with the smallest Textual programs.
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
from edgechat.bench.pty_program import PtyProgram, watched
from edgechat.bench.scripted_session import CHARS_PER_TOKEN
from edgechat.hardware.memory import cpu_s, rss_bytes
from edgechat.store import open_store

Say = Callable[[str], None]

_FRAME: Final = "sk something"
_N_CONVERSATIONS: Final = 1000
_KEYS: Final = 120
_KEY_EVERY_S: Final = 0.17
_ALPHABET: Final = 0x3400
"""Keys are letters that stand nowhere else: when one comes back, it is on the screen."""
_IDLE_S: Final = 60.0
_QUESTION: Final = "Tell me a long story about the sea."
_DECODED: Final = 200


class TuiReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, unless a name says otherwise; lists are rounds, in turn."""

    first_frame_s: list[float]
    empty_first_frame_s: list[float]
    usable_after_s: list[float]
    """From the first frame until a key that was pressed then is on the screen."""
    key_p99_s: list[float]
    stock_key_p99_s: list[float]
    key_worst_s: float
    focus_flip_s: list[float]
    theme_s: list[float]
    open_s: list[float]
    """From the key until the end of the long conversation is on the screen."""
    ui_rss_bytes: int
    idle_cpu_share: float
    decode_tps: list[float]
    ask_decode_tps: list[float]


def run(rounds: int, say: Say, idle_s: float = _IDLE_S) -> TuiReport:
    """Measure everything. Raises EngineError where something never appears."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        env = _environment(Path(home))
        say(f"writing {_N_CONVERSATIONS} conversations and one of {textual_baseline.N_MESSAGES} messages")
        with _home(home):
            store = open_store()
            long_id = textual_baseline.fill(store, _N_CONVERSATIONS, textual_baseline.N_MESSAGES).id
            store.close()
        first, empty, usable = _first_frames(rounds, env, say)
        keys, stock, flips, themes, opened, rss = _typing(rounds, env, long_id, say)
        say(f"idle for {idle_s:.0f} s")
        share = _idle(env, long_id, idle_s)
        ours, ask = _decoding(rounds, env, say)
    return TuiReport(
        first_frame_s=first, empty_first_frame_s=empty, usable_after_s=usable,
        key_p99_s=[_p99(k) for k in keys], stock_key_p99_s=[_p99(k) for k in stock],
        key_worst_s=max(max(k) for k in keys), focus_flip_s=flips, theme_s=themes, open_s=opened, ui_rss_bytes=rss,
        idle_cpu_share=share, decode_tps=ours, ask_decode_tps=ask,
    )  # fmt: skip


def _environment(home: Path) -> dict[str, str]:
    # Compiled files are what an installed program has; where they are not written, every start compiles.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGECHAT_") and k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "EDGECHAT_HOME": str(home)}


@contextlib.contextmanager
def _home(home: str) -> Iterator[None]:
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


def _first_frames(rounds: int, env: dict[str, str], say: Say) -> tuple[list[float], list[float], list[float]]:
    ours, empty, usable = [], [], []
    for number in range(rounds + 1):  # the first fills the system's caches
        say(f"first frame {number} of {rounds}")
        with watched([sys.executable, "-c", textual_baseline.EMPTY_APP], env) as program:
            empty.append(program.until(_FRAME) - program.started_s)
        with watched(_edgechat(), env) as program:
            ours.append(program.until(_FRAME) - program.started_s)
            pressed_s = program.write("\u0416")
            usable.append(program.until("\u0416") - pressed_s)
    return ours[1:], empty[1:], usable[1:]


@contextlib.contextmanager
def _copy(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same conversations elsewhere: what is said to them is gone with the copy."""
    with tempfile.TemporaryDirectory(prefix="edgechat-bench-") as home:
        shutil.copytree(env["EDGECHAT_HOME"], home, dirs_exist_ok=True)
        yield {**env, "EDGECHAT_HOME": home}


def _chat(env: dict[str, str], long_id: str) -> contextlib.AbstractContextManager[PtyProgram]:
    code = f"from edgechat.bench.textual_baseline import chat; chat({long_id!r})"
    return watched([sys.executable, "-c", code], env)


def _stock(env: dict[str, str]) -> contextlib.AbstractContextManager[PtyProgram]:
    per_tick = textual_baseline.TOKENS_PER_S * CHARS_PER_TOKEN // 12
    return watched(
        [sys.executable, "-c", textual_baseline.STOCK_APP.format(per_tick=per_tick), textual_baseline.PROSE * 20], env
    )


def _typing(
    rounds: int, env: dict[str, str], long_id: str, say: Say
) -> tuple[list[list[float]], list[list[float]], list[float], list[float], list[float], int]:
    ours: list[list[float]] = []
    stock: list[list[float]] = []
    flips: list[float] = []
    themes: list[float] = []
    opened: list[float] = []
    rss = 0
    for number in range(rounds):
        say(f"keys while an answer comes, {number + 1} of {rounds}")
        with _stock(env) as program:
            program.until("begun")
            program.idle(1.0)
            stock.append(_press(program))
        with _copy(env) as copied, _chat(copied, long_id) as program:
            program.until("ready")
            program.idle(0.5)
            pressed_s = program.write(textual_baseline.OPEN_KEY)
            opened.append(program.until(textual_baseline.LAST_WORDS) - pressed_s)
            program.idle(2.0)
            program.write("Go\r")
            program.until("generating")
            program.idle(3.0)
            ours.append(_press(program))
            for keys, times in (("\x1b[O\x1b[I", flips), (textual_baseline.THEME_KEY, themes)):
                pressed_s = program.write(f"{keys}\u04e8")
                times.append(program.until("\u04e8", start=len(program.seen)) - pressed_s)
                program.idle(0.5)
            rss = max(rss, rss_bytes(program.pid))
    return ours, stock, flips, themes, opened, rss


def _press(program: PtyProgram) -> list[float]:
    """Seconds from a key until it is on the screen, for many keys."""
    times = []
    for number in range(_KEYS):
        letter = chr(_ALPHABET + number)
        start = len(program.seen)
        pressed_s = program.write(letter)
        times.append(program.until(letter, start=start) - pressed_s)
        program.idle(_KEY_EVERY_S)
    return times


def _idle(env: dict[str, str], long_id: str, idle_s: float) -> float:
    """Share of a core that all our processes take with a conversation open and nothing to do."""
    with watched(_edgechat("-m", "starter", "--conversation", long_id), env) as program:
        program.until("ready", timeout_s=300)
        program.idle(30.0)  # what is read and measured in idle time, once
        before_s = cpu_s(program.pid)
        program.idle(idle_s)
        return (cpu_s(program.pid) - before_s) / idle_s


def _decoding(rounds: int, env: dict[str, str], say: Say) -> tuple[list[float], list[float]]:
    """Tokens a second of the same answer in the chat and of `ask`."""
    ours, ask = [], []
    options = ["-m", "starter", "--temperature", "0", "--max-tokens", str(_DECODED), "--no-speculation"]
    for number in range(rounds):
        say(f"decoding, {number + 1} of {rounds}")
        done = subprocess.run(
            _edgechat("ask", *options, "--json", "--ephemeral", _QUESTION), env=env, check=True, capture_output=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        ask.append(float(json.loads(done.stdout)["stats"]["decode_tps"]))
        with watched(_edgechat(*options), env) as program:
            program.until("ready")
            program.write(f"{_QUESTION}\r")
            program.until("tokens/s", start=len(program.seen))
            program.until("length limit")
            program.idle(0.5)
        ours.append(_last_tps(env))
    return ours, ask


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
    """For a person: each figure beside what it is to be."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def ratio(ours: list[float], theirs: list[float]) -> float:
        return median([a / b for a, b in zip(ours, theirs, strict=True)])

    rows = [
        ("first frame over an empty app's", f"{ratio(report.first_frame_s, report.empty_first_frame_s):.2f}", "1.20"),
        ("a key on the first frame", f"{1000 * median(report.usable_after_s):.0f} ms", "100 ms"),
        ("key to paint over stock, p99", f"{ratio(report.key_p99_s, report.stock_key_p99_s):.2f}", "1.20"),
        ("key to paint, p99", f"{1000 * median(report.key_p99_s):.0f} ms", "33 ms"),
        ("stock, p99", f"{1000 * median(report.stock_key_p99_s):.0f} ms", ""),
        ("worst key", f"{1000 * report.key_worst_s:.0f} ms", "100 ms"),
        ("focus flip and a key", f"{1000 * median(report.focus_flip_s):.0f} ms", "150 ms"),
        ("another theme and a key", f"{1000 * median(report.theme_s):.0f} ms", "150 ms"),
        ("opening 5,000 messages", f"{1000 * median(report.open_s):.0f} ms", "300 ms"),
        ("memory of the chat there", f"{report.ui_rss_bytes / 1e6:.0f} MB", "150 MB"),
        ("CPU when idle", f"{100 * report.idle_cpu_share:.2f} %", "0.50 %"),
        ("decoding over `ask`'s", f"{ratio(report.decode_tps, report.ask_decode_tps):.3f}", "0.990"),
    ]
    width = max(len(name) for name, *_ in rows)
    return "\n".join(f"{name:<{width}}{value:>10}{f'   bar: {bar}' if bar else ''}" for name, value, bar in rows)
