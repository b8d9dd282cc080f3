"""Limit the time of a test whose code could wait for ever, such as for the writer of a named pipe."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Final

import pytest

HANG_S: Final = 120
"""Seconds after which code that usually takes less than a second hangs, also on a busy or emulated machine."""


@contextlib.contextmanager
def ends_within(seconds: int = HANG_S) -> Iterator[None]:
    """Fail the test if the `with` block takes longer. Only on the main thread of POSIX systems; else no limit."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def fail(_number: int, _frame: object) -> None:
        pytest.fail(f"still waiting after {seconds} s")

    previous_handler = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous_handler)
