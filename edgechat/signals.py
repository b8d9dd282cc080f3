"""Signals that end a program: handlers for them, and the exit codes that shells use."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

Handler = Callable[[int, "FrameType | None"], object]

ENDING_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
)
"""Signals that end a program and can be caught, except SIGINT (Ctrl-C), whose meaning depends on the program."""
HANGUP_EXIT_CODE: Final = 129
"""Exit code after SIGHUP; also used if the terminal is gone without a signal."""


def exit_code(signal_number: int) -> int:
    """Return the exit code of a program that a signal ended, as shells report it."""
    return 128 + signal_number


@contextlib.contextmanager
def handle_signals(signals: tuple[int, ...], handler: Handler) -> Iterator[None]:
    """Call `handler` for `signals` during the `with` block. Call this only in the main thread.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP for the programs that it starts.
    """
    numbers = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    previous_handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous_handler in previous_handlers.items():
            signal.signal(number, previous_handler)


@contextlib.contextmanager
def watch_signals(on_signal: Callable[[int], object]) -> Iterator[None]:
    """Call `on_signal` in a thread for each signal that has a handler, during the `with` block.

    A handler runs late if another thread receives the signal while the main thread waits in a system call. Call this
    only in the main thread. On Windows, where asyncio needs the same mechanism, `on_signal` is never called.
    """
    if sys.platform == "win32":
        yield
        return
    import socket

    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def run() -> None:
        while data := reader.recv(64):
            for number in data:
                on_signal(number)

    thread = threading.Thread(target=run, name="signals", daemon=True)
    thread.start()
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        writer.close()
        thread.join()
        reader.close()
