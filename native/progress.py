"""Progress of long commands during set-up: a line that updates on a terminal, and a few plain lines elsewhere.

    progress.py WHAT COMMAND [ARGUMENT ...]    run a command and show its progress; its output only if it fails

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# Progress of ninja, such as `[12/345] Building CXX object ...`.
_NINJA_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_INTERVAL_S = 0.25
# Fraction of the steps after which an estimate of the remaining time is shown.
_MIN_PART_DONE = 0.05
_LONG_S = 90


class Progress:
    """Progress display of one command on standard error.

    On a terminal, one line is updated; otherwise, a line is printed after each tenth of the steps.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._started_at = time.monotonic()
        self._n_done = self._n_steps = self._n_tenths = self._width = 0
        self._n_done_before: int | None = None
        """Number of steps that were done before this process began to read the output."""

    def read_line(self, line: str) -> None:
        """Update the number of steps from a line of the command's output."""
        step = _NINJA_STEP.match(line)
        if step:
            self._n_done, self._n_steps = int(step[1]), int(step[2])
            if self._n_done_before is None:
                self._n_done_before = self._n_done - 1

    def show(self) -> None:
        """Update the displayed progress, if necessary."""
        n_done, n_steps = self._n_done, self._n_steps
        elapsed_s = time.monotonic() - self._started_at
        text = f"{self._what}: {describe(n_done, n_steps, elapsed_s, self._n_done_before or 0)}"
        if self._is_terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        elif n_steps and 10 * n_done // n_steps > self._n_tenths:
            self._n_tenths = 10 * n_done // n_steps
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the progress line of a terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


def describe(n_done: int, n_steps: int, elapsed_s: float, n_done_before: int = 0) -> str:
    """Describe the progress of a command; `n_steps` is 0 if it is unknown.

    `n_done_before` is the number of steps that were done `elapsed_s` seconds ago.
    """
    if not n_steps:
        return f"{elapsed_s:.0f} s"
    text = f"step {n_done} of {n_steps}"
    n_new = n_done - n_done_before
    if n_new < max(1, _MIN_PART_DONE * n_steps):
        return text
    left_s = elapsed_s * (n_steps - n_done) / n_new
    return f"{text}, about " + (f"{left_s:.0f} s left" if left_s < _LONG_S else f"{left_s / 60:.0f} min left")


def wait_with_progress(is_done: Callable[[], bool], what: str, log: Path) -> None:
    """Wait until `is_done`, and show the progress of another program that writes `log`."""
    progress = Progress(what)
    while not is_done():
        try:
            lines = log.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        progress.read_line(next((line for line in reversed(lines) if _NINJA_STEP.match(line)), ""))
        progress.show()
        time.sleep(_INTERVAL_S)
    progress.end()


def run_with_progress(
    command: list[str], what: str, env: Mapping[str, str] | None = None, log: Path | None = None
) -> tuple[int, str]:
    """Run a command, show its progress as `what`, and return its exit code and output, which is appended to `log`."""
    progress, lines = Progress(what), []
    with (log or Path(os.devnull)).open("a", encoding="utf-8") as log_file, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        errors="replace", env=env,
    ) as child:  # fmt: skip
        is_done = threading.Event()

        def show_regularly() -> None:
            while not is_done.wait(_INTERVAL_S):
                progress.show()

        thread = threading.Thread(target=show_regularly, daemon=True)
        thread.start()
        try:
            for line in child.stdout or ():
                lines.append(line)
                log_file.write(line)
                log_file.flush()
                progress.read_line(line)
        finally:
            is_done.set()
            thread.join()
            progress.end()
    return child.returncode, "".join(lines)


def main() -> int:
    """Run the command in the arguments; print its output only if it fails."""
    what, *command = sys.argv[1:]
    exit_code, output = run_with_progress(command, what)
    if exit_code:
        print(output, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
