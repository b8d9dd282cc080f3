"""Output of the chat while a reply streams: few bytes, and keys first on a slow line."""

from __future__ import annotations

import re
import sys

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
N_MEASURED_TOKENS = 80


def start_reply(t: Terminal, n_fast_rows: int = 0) -> None:
    t.until_stable("Ready")
    t.type("Question\r")
    t.until("tokens/s")
    if n_fast_rows:
        t.until(lambda: "▌ Question" not in t.text())


def count_tokens(t: Terminal) -> int:
    """Return the number of tokens that the status line shows, of the question and of the reply so far."""
    counts = re.findall(r"(\d+)/32768", t.text())
    return int(counts[-1]) if counts else 0


@pytest.mark.parametrize(
    ("reply", "size", "max_bytes"),
    [(PARAGRAPHS, (100, 30), 300), (CODE, (200, 60), 500)],
    ids=["prose at 100x30", "code at 200x60"],
)
def test_streaming_reply_costs_few_bytes(reply: str, size: tuple[int, int], max_bytes: float) -> None:
    """Check the number of bytes for each token of the reply.

    Measured before only changed cells were written: 1,500 bytes of prose at 100x30, 6,450 at 200x60.
    """
    with terminal(*PROGRAM, reply, "2000", size=size) as t:
        start_reply(t, n_fast_rows=size[1])
        n_bytes, n_tokens = len(t.output), count_tokens(t)
        t.until(lambda: count_tokens(t) >= n_tokens + N_MEASURED_TOKENS)
        bytes_per_token = (len(t.output) - n_bytes) / (count_tokens(t) - n_tokens)
        assert 3 < bytes_per_token < max_bytes


@pytest.mark.parametrize(("bytes_per_s", "max_bytes"), [(12_000, 60_000), (2_000, 20_000)])
def test_keys_are_shown_soon_on_a_slow_line(bytes_per_s: int, max_bytes: int) -> None:
    """Check how much the terminal reads before it shows a key; the time depends on the load of the machine, too.

    Measured: 0.1 s. Before, a key was shown after more than 15 s at 12 kB/s, and never at 2 kB/s.
    """
    with terminal(*PROGRAM, PARAGRAPHS, "500", size=(100, 30)) as t:
        t.bytes_per_s = bytes_per_s
        start_reply(t)
        for key, shown in [*zip("ЖЩФ", "ЖЩФ", strict=True), ("\x1b", "(Stopped; ")]:
            n_bytes = len(t.output)
            t.type(key)
            t.until(shown)
            assert len(t.output) - n_bytes < max_bytes
