"""Run a program in a pseudo-terminal, press keys, and read the screen."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.waiting import source, until

SLOW_LINE_S = 0.05
"""Interval at which a terminal on a slow line reads."""
_UNSUPPORTED = re.compile(rb"\x1b\[(?:>1u|<u|\?2026\$p)")
# A read can end in the middle of an escape sequence.
_UNSUPPORTED_START = re.compile(rb"\x1b(?:\[(?:>1?|<|\?(?:2(?:0(?:2(?:6\$?)?)?)?)?)?)?\Z")


class Terminal:
    """Program that runs in a pseudo-terminal, with its screen and keyboard."""

    def __init__(
        self, command: list[str], size: tuple[int, int] = (80, 24), env: Mapping[str, str] = os.environ,
        *, is_controlling: bool = False,
    ) -> None:  # fmt: skip
        """If `is_controlling`, the program gets SIGHUP when the terminal is closed, and signals from keys."""
        import pty
        import termios

        pyte: Any = importlib.import_module("pyte")  # pyte has no type hints
        self._master, slave = pty.openpty()
        self._resize(*size)
        self.initial_modes = termios.tcgetattr(slave)
        self._slave = slave
        self.screen: Any = pyte.Screen(*size)
        self._stream: Any = pyte.ByteStream(self.screen)
        self.output = b""
        self._sequence_start = b""
        """Start of an escape sequence whose end has not been read yet."""
        self.started_at = time.monotonic()
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            preexec_fn=_take_terminal if is_controlling else None,  # noqa: PLW1509  (no thread of a test holds a lock)
        )  # fmt: skip
        self._lock = threading.Lock()
        self._ended = False
        self.reads = threading.Event()
        """While this is not set, the terminal reads no output, like one that is stopped with Ctrl+S."""
        self.reads.set()
        self.bytes_per_s: int | None = None
        """Rate at which the terminal reads output, like a slow line; None for any rate."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _resize(self, columns: int, rows: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        while not self._ended:
            self.reads.wait()
            try:
                if not select.select([self._master], [], [], 0.05)[0]:
                    continue
                data = os.read(self._master, self._n_readable())
            except (OSError, ValueError):
                return
            with self._lock:
                self.output += data
                self._stream.feed(self._remove_unsupported(data))

    def _remove_unsupported(self, data: bytes) -> bytes:
        """Remove the escape sequences that pyte does not support, which do not change the screen."""
        data = _UNSUPPORTED.sub(b"", self._sequence_start + data)
        start = _UNSUPPORTED_START.search(data)
        self._sequence_start = start[0] if start else b""
        return data.removesuffix(self._sequence_start)

    def _n_readable(self) -> int:
        """Return the number of bytes to read at once; on a slow line, wait for as long as the line needs for them."""
        if self.bytes_per_s is None:
            return 1 << 16
        time.sleep(SLOW_LINE_S)
        return max(1, int(self.bytes_per_s * SLOW_LINE_S))

    def text(self) -> str:
        """Return the rows of the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys: str) -> None:
        """Press keys; the program receives all of them in one read."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        with self._lock:
            self.screen.resize(rows, columns)
        self._resize(columns, rows)
        os.kill(self.child.pid, signal.SIGWINCH)

    def until(self, condition: str | Callable[[], object], timeout_s: float = 120) -> None:
        """Wait until a text is on the screen, or until a condition holds."""
        holds = (lambda: condition in self.text()) if isinstance(condition, str) else condition
        what = f"{condition!r} is on the screen" if isinstance(condition, str) else source(condition)
        until(holds, timeout_s, lambda: f"{what}; the screen:\n{self.text()}")

    def until_stable(self, text: str, stable_s: float = 0.3) -> None:
        """Wait until a text stays on the screen for `stable_s` seconds, since a frame is drawn in several parts."""
        seen_at: float | None = None

        def is_stable() -> bool:
            nonlocal seen_at
            if text not in self.text():
                seen_at = None
            elif seen_at is None:
                seen_at = time.monotonic()
            return seen_at is not None and time.monotonic() - seen_at >= stable_s

        until(is_stable, 60, lambda: f"{text!r} stays on the screen; the screen:\n{self.text()}")

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end of the program and return its exit code."""
        return self.child.wait(seconds)

    def hang_up(self) -> None:
        """Close the terminal, as a terminal emulator whose window is closed."""
        self._ended = True
        self._reader.join()
        os.close(self._master)
        self._master = -1

    def n_unread_bytes(self) -> int:
        """Return the number of bytes that the program has written and the terminal has not read."""
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(self._master, termios.FIONREAD, b"    "), sys.byteorder)

    def modes(self) -> object:
        """Return the terminal attributes; they equal `initial_modes` after the program has restored them."""
        import termios

        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        if self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
        self._ended = True
        self.reads.set()
        os.close(self._slave)
        self._reader.join()  # it would read another file that gets the number of the terminal
        if self._master >= 0:
            os.close(self._master)


def _take_terminal() -> None:
    """Make standard input the controlling terminal of this process, a new session."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(
    *command: str, size: tuple[int, int] = (80, 24), env: Mapping[str, str] = os.environ, is_controlling: bool = False
) -> Iterator[Terminal]:
    """Run a command in a new pseudo-terminal, and kill the program at the end."""
    if sys.platform == "win32":
        pytest.skip("needs POSIX pseudo-terminals")
    program = Terminal(list(command), size, env, is_controlling=is_controlling)
    try:
        yield program
    finally:
        program.close()
