"""Control characters of terminals: escaping, so that a model cannot send them, and terminals that support them."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final, TextIO

_ESCAPES: Final = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},  # C0 controls except tab and newline
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # C1 controls: on some terminals 0x9B alone starts an escape sequence
    # Line and paragraph separators and bidirectional marks do not change the terminal's state, but they reorder text on
    # the screen, so that a harmful command could look harmless.
    **dict.fromkeys((0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}


def escape_controls(text: str) -> str:
    """Replace control characters except tab and newline with their Unicode pictures (U+2400...) or with U+FFFD."""
    return text.replace("\r\n", "\n").translate(_ESCAPES)


def supports_escapes(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that interprets escape sequences; with TERM=dumb, it prints them."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_gone(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that was closed, so that reading and writing fail."""
    if sys.platform == "win32":
        return False
    import termios

    try:
        termios.tcgetattr(stream.fileno())
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    except (OSError, ValueError):
        return False
    return False


def discard_broken_output() -> None:
    """Redirect standard output and standard error to the null device if they cannot be written any more.

    Otherwise the interpreter reports an error and changes the exit code when it closes them.
    """
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed and not _can_flush(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _can_flush(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True
