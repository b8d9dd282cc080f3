"""A program in a pseudo-terminal, watched from outside: when what appears on it. POSIX only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from edgechat.errors import EngineError

_COLUMNS: Final = 100
_ROWS: Final = 30


class PtyProgram:
    """What a program writes to its terminal, as it comes."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        import fcntl
        import pty
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self.started_s = time.monotonic()
        self._child = subprocess.Popen(
            list(command), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._child.pid

    def write(self, keys: str) -> float:
        """Press keys; returns when."""
        os.write(self._master, keys.encode())
        return time.monotonic()

    def until(self, words: str, timeout_s: float = 60.0, start: int = 0) -> float:
        """When these words came, after `start` bytes of all output. Raises EngineError if they do not come."""
        wanted = words.encode()
        end_s = time.monotonic() + timeout_s
        while wanted not in self.seen[start:]:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not self._read(left_s):
                raise EngineError(f"{words!r} did not appear within {timeout_s:.0f} s: {self.seen[-500:]!r}")
        return time.monotonic()

    def idle(self, seconds: float) -> None:
        """Read on for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._read(left_s)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:
            return False
        self.seen += data
        return bool(data)

    def close(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        os.close(self._master)


@contextlib.contextmanager
def watched(command: Sequence[str], env: Mapping[str, str]) -> Iterator[PtyProgram]:
    """Run a program, and end it."""
    program = PtyProgram(command, env)
    try:
        yield program
    finally:
        program.close()
