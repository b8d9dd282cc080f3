"""Escape sequences that set the title of the terminal's window, and that save and restore the previous title."""

from __future__ import annotations

import os
from typing import Final

from edgechat.terminal import escape_controls

SAVE: Final = "\x1b[22;2t"
RESTORE: Final = "\x1b[23;2t"
_MAX_CHARS: Final = 120
# Terminals without windows; some of them would print the text of an unknown escape sequence.
_TERMINALS_WITHOUT_TITLE: Final = ("", "dumb", "linux", "ansi", "cons25", "vt52", "vt100", "vt102", "vt220")


def has_title() -> bool:
    """Return whether the terminal that $TERM names has a window title."""
    return os.environ.get("TERM", "") not in _TERMINALS_WITHOUT_TITLE


def make_title_sequence(text: str) -> str:
    """Return the escape sequence (OSC 2) that sets the title to the first characters of `text`, in one line."""
    line = " ".join(escape_controls(text).split())
    return f"\x1b]2;{line[:_MAX_CHARS]}\x07"
