"""Signals that end a program: handlers, ignored signals, and the thread that watches them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from edgechat import signals
from tests.time_limit import HANG_S
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


def test_exit_code_is_that_of_shells() -> None:
    assert signals.exit_code(signal.SIGTERM) == 143
    assert signals.exit_code(signal.SIGHUP) == signals.HANGUP_EXIT_CODE


def test_handler_is_called_and_removed() -> None:
    numbers: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with signals.handle_signals(signals.ENDING_SIGNALS, lambda number, frame: numbers.append(number)):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: numbers == [signal.SIGTERM])
    assert signal.getsignal(signal.SIGTERM) == before


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handle_signals(signals.ENDING_SIGNALS, lambda number, frame: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Handle the ending signals by default; a shell ignores some of them for the programs that it starts with `&`."""
    previous_handlers = {number: signal.signal(number, signal.SIG_DFL) for number in signals.ENDING_SIGNALS}
    yield
    for number, handler in previous_handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
def test_watcher_is_called_while_the_main_thread_waits() -> None:
    numbers: list[int] = []
    both = threading.Event()

    def note(number: int) -> None:
        numbers.append(number)
        if len(numbers) == 2:
            both.set()

    with (
        signals.handle_signals(signals.ENDING_SIGNALS, lambda number, frame: None),
        signals.watch_signals(note),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGQUIT)
        assert both.wait(HANG_S)
    assert sorted(numbers) == sorted([signal.SIGTERM, signal.SIGQUIT])
