"""Numbers of inputs and repetitions of long tests: `make test-long` shortens them, `make test-exhaustive` does not."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("EDGECHAT_FUZZ_SHARE", "0.05"))
"""Share of the inputs of the fuzz tests to try."""
IS_EXHAUSTIVE = SHARE >= 1
"""True in `make test-exhaustive`, which does not shorten long tests either."""


def scale(count: int) -> int:
    """Return the number of inputs to try of `count`."""
    return max(1, round(count * SHARE))


def shorten(full: int, usual: int) -> int:
    """Return how often a long test repeats its action: `usual` times, or `full` times if no test is shortened."""
    return full if IS_EXHAUSTIVE else usual
