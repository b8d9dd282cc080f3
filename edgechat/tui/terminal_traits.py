"""Queries for the background colour and the character encoding of the terminal, and the encoding of the locale."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from textual.message import Message

_BACKGROUND_QUERY: Final = "\x1b]11;?\x1b\\"
"""Query for the background colour (OSC 11); see https://invisible-island.net/xterm/ctlseqs/ctlseqs.html."""
_COERCED_LOCALES: Final = frozenset({"c.utf-8", "c.utf8", "utf-8"})
"""Values of $LC_CTYPE that Python itself sets when the locale is C (PEP 538)."""


class BackgroundReported(Message):
    """The terminal has reported the colour of its background."""

    def __init__(self, *, is_light: bool) -> None:
        super().__init__()
        self.is_light = is_light


def make_background_query(environment: Mapping[str, str]) -> str:
    """Return the escape sequences that ask for the background colour.

    tmux answers the plain sequence since version 3.4. It passes the wrapped sequence on to its terminal if
    `allow-passthrough` is on.
    """
    if environment.get("TMUX"):
        return _BACKGROUND_QUERY + "\x1bPtmux;" + _BACKGROUND_QUERY.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return _BACKGROUND_QUERY


def make_utf8_query(row: int) -> str:
    """Return output that writes a character of two bytes at the start of a row and asks for the cursor's position.

    The cursor is in the second column if the terminal decodes UTF-8, otherwise in the third.
    """
    return f"\x1b[{row + 1};1H\u00e9\x1b[6n"


def has_utf8_locale(environment: Mapping[str, str]) -> bool:
    """Return whether the charset of the locale is UTF-8. True if no variable is set, because containers set none."""
    if sys.platform == "win32":
        return True
    names = [environment.get(variable, "") for variable in ("LC_ALL", "LC_CTYPE", "LANG")]
    if not names[0] and names[1].lower() in _COERCED_LOCALES and names[2] in ("C", "POSIX"):
        names[1] = ""
    name = next((name for name in names if name), "utf8")
    return "utf8" in name.lower().replace("-", "")
