"""The clipboard of the terminal, wherever that is: OSC 52, wrapped for what stands between; and a file beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgechat import files, paths

MAX_CHARS: Final = 50_000
"""Terminals drop sequences of more than about 100 kB; base64 and UTF-8 take up to half of that."""
# GNU screen takes strings of at most 768 bytes.
_SCREEN_PART: Final = 700


def osc52_sequence(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """What asks a terminal to take `text`. https://invisible-island.net/xterm/ctlseqs/ctlseqs.html, OSC 52."""
    plain = f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\x07"
    if environment.get("TMUX"):
        return f"\x1bPtmux;{plain.replace(chr(27), chr(27) * 2)}\x1b\\"
    if environment.get("STY"):
        parts = [plain[i : i + _SCREEN_PART] for i in range(0, len(plain), _SCREEN_PART)]
        return "".join(f"\x1bP{part}\x1b\\" for part in parts)
    return plain


def save_copy(text: str) -> Path | None:
    """Write it where it can be found if the terminal did not take it; None if that cannot be written either."""
    file = paths.cache_dir() / "copied.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file, text.encode("utf-8", "replace"))
    except OSError:
        return None
    return file
