"""Output of the chat while a reply streams: few bytes, and keys first on a slow line."""

from __future__ import annotations

import sys
import time

import pytest

from tests.terminal import Terminal, terminal

pytestmark = pytest.mark.cold

PROGRAM = [sys.executable, "-m", "tests.tui.scripted_program", "0.05"]  # 20 tokens of 4 characters each second
PARAGRAPHS = (
    "Some words about the matter, with **bold** ones and `code`. It goes on for a while, so that the paragraph has "
    "several rows on any screen, and ends here.\n\n- a first point that is long enough to be wrapped on a screen\n"
    "- a second point\n\n"
) * 200
CODE = "```python\n" + "".join(f"def function_{n}(a: int) -> int:\n    return a * {n}\n\n" for n in range(900))
MEASURED_S = 8.0


def start_reply(t: Terminal, n_fast_rows: int = 0) -> None:
    t.until_stable("Ready")
    t.type("Question\r")
    t.until("tokens/s")
    if n_fast_rows:
        t.until(lambda: "▌ Question" not in t.text())


@pytest.mark.parametrize("reply", [PARAGRAPHS, CODE], ids=["prose", "code"])
@pytest.mark.parametrize(("size", "max_kb_per_s"), [((100, 30), 6), ((200, 60), 10)], ids=["100x30", "200x60"])
def test_streaming_reply_costs_few_bytes(reply: str, size: tuple[int, int], max_kb_per_s: float) -> None:
    """Measured before only changed cells were written: 30 kB/s of prose at 100x30, 129 kB/s at 200x60."""
    with terminal(*PROGRAM, reply, "2000", size=size) as t:
        start_reply(t, n_fast_rows=size[1])
        n_before, started_at = len(t.output), time.monotonic()
        t.until(lambda: time.monotonic() - started_at > MEASURED_S)
        rate = (len(t.output) - n_before) / (time.monotonic() - started_at)
        assert 100 < rate < 1000 * max_kb_per_s


@pytest.mark.parametrize(("bytes_per_s", "key_s", "escape_s"), [(12_000, 5.0, 5.0), (2_000, 10.0, 10.0)])
def test_keys_are_shown_soon_on_a_slow_line(bytes_per_s: int, key_s: float, escape_s: float) -> None:
    """Measured: 0.1 s. Before, a key was shown after more than 15 s at 12 kB/s, and never at 2 kB/s."""
    with terminal(*PROGRAM, PARAGRAPHS, "500", size=(100, 30)) as t:
        t.bytes_per_s = bytes_per_s
        start_reply(t)
        for letter in "ЖЩФ":
            pressed_at = time.monotonic()
            t.type(letter)
            t.until(letter)
            assert time.monotonic() - pressed_at < key_s
        pressed_at = time.monotonic()
        t.type("\x1b")
        t.until("(Stopped; ")
        assert time.monotonic() - pressed_at < escape_s
