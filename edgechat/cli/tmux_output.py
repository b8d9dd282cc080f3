"""Output of the last command, read from the screen of tmux."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

# Number of lines of the scrollback that are searched for the last command.
_MAX_LINES: Final = 2000
_TIMEOUT_S: Final = 2.0
_PANE: Final = re.compile(r"%\d+\Z")
_EXPLAIN: Final = re.compile(r"\bedgechat explain\b")


def read_last_output(command: str) -> str:
    """Return the output of the last `command` on the screen; "" outside of tmux, or if it is not found."""
    pane = os.environ.get("TMUX_PANE", "")
    if not os.environ.get("TMUX") or not _PANE.match(pane):
        return ""
    try:
        result = subprocess.run(
            ["tmux", "capture-pane", "-p", "-J", "-S", f"-{_MAX_LINES}", "-t", pane],  # noqa: S607
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return find_output(result.stdout.decode("utf-8", "replace"), command)


def find_output(screen: str, command: str) -> str:
    """Return the lines between the last line that ends with `command` and the first `edgechat explain` below it.

    Of a command with several lines, the last line is searched. Returns "" if one of the two lines is missing.
    """
    last_line = command.rstrip().split("\n")[-1].strip()
    lines = [line.rstrip() for line in screen.rstrip("\n").split("\n")]
    starts = [i for i, line in enumerate(lines) if _ends_with_command(line, last_line) and not _EXPLAIN.search(line)]
    if not starts or not last_line:
        return ""
    start = starts[-1] + 1
    end = next((i for i in range(start, len(lines)) if _EXPLAIN.search(lines[i])), None)
    return "" if end is None else "\n".join(lines[start:end])


def _ends_with_command(line: str, command: str) -> bool:
    """Return whether `line` is `command`, or a prompt and `command`: a prompt ends with a space or a sign."""
    return line.endswith(command) and not line[: -len(command)][-1:].isalnum()
