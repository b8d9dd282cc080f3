"""The clipboard of the terminal, through OSC 52, and a file with the last copied text."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgechat import files, paths

MAX_CHARS: Final = 50_000
"""Terminals ignore sequences of more than about 100 kB; base64 and UTF-8 need up to half of that."""
# GNU screen accepts strings of at most 768 bytes.
_SCREEN_CHUNK_CHARS: Final = 700


def osc52_sequence(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the sequence that copies `text` to the terminal's clipboard, wrapped for tmux and GNU screen.

    See OSC 52 in https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
    """
    plain = f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\x07"
    if environment.get("TMUX"):
        return f"\x1bPtmux;{plain.replace(chr(27), chr(27) * 2)}\x1b\\"
    if environment.get("STY"):
        parts = [plain[i : i + _SCREEN_CHUNK_CHARS] for i in range(0, len(plain), _SCREEN_CHUNK_CHARS)]
        return "".join(f"\x1bP{part}\x1b\\" for part in parts)
    return plain


def save_copy(text: str) -> Path | None:
    """Write `text` to a file, for terminals that ignore OSC 52; return None if the file cannot be written."""
    file = paths.cache_dir() / "copied.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file, text.encode("utf-8", "replace"))
    except OSError:
        return None
    return file


def summary(subject: str, text: str, file: Path | None) -> str:
    """Return the message for the user after a copy; `file` holds the text as well."""
    is_copied = len(text) <= MAX_CHARS
    result = f"{subject} copied" if is_copied else f"{subject} is too long for the terminal's clipboard"
    return f"{result}. Also in {file}" if file is not None else result
