"""Control characters of terminals: escaping, so that a model cannot send them, and terminals that support them."""

from __future__ import annotations

import os
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
