"""Run programs in a pseudo-terminal and measure when a text appears in their output. POSIX only."""

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
    """A program that runs in a pseudo-terminal. `output` contains all bytes that were read from the terminal."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        import fcntl
        import pty
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            list(command), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={"LANG": "C.UTF-8", **env, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )  # fmt: skip
        os.close(slave)
        self.output = b""

    @property
    def pid(self) -> int:
        """Process ID of the program."""
        return self._process.pid

    def write(self, keys: str) -> float:
        """Write `keys` to the terminal and return the current `time.monotonic()`."""
        os.write(self._master, keys.encode())
        return time.monotonic()

    def wait_for(self, text: str, timeout_s: float = 60.0, start: int = 0) -> float:
        """Read until `text` appears in the output from byte `start` on, and return the current `time.monotonic()`.

        Raises EngineError if the text does not appear within `timeout_s`, or if the program ends.
        """
        expected_bytes = text.encode()
        deadline = time.monotonic() + timeout_s
        while expected_bytes not in self.output[start:]:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not self._read(remaining_s):
                raise EngineError(f"{text!r} did not appear within {timeout_s:.0f} s: {self.output[-500:]!r}")
        return time.monotonic()

    def read_for(self, duration_s: float) -> None:
        """Read output for `duration_s` seconds, to let the program run."""
        deadline = time.monotonic() + duration_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            self._read(remaining_s)

    def _read(self, timeout_s: float) -> bool:
        """Append the next output to `output`; return False after `timeout_s` without output or at the end of output."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:
            return False
        self.output += data
        return bool(data)

    def close(self) -> None:
        """Kill the program and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._master)


@contextlib.contextmanager
def run_in_pty(command: Sequence[str], env: Mapping[str, str]) -> Iterator[PtyProgram]:
    """Run a program in a pseudo-terminal, and kill it at the end of the `with` block."""
    program = PtyProgram(command, env)
    try:
        yield program
    finally:
        program.close()
