"""Copy text to the terminal's clipboard with OSC 52, and to a file for terminals without it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgechat import files, paths

MAX_CHARS: Final = 50_000
"""Maximum length of a text that is copied with OSC 52.

Terminals ignore sequences longer than about 100 kB; base64 turns 50,000 ASCII characters into 67 kB.
"""
# For GNU screen, which accepts strings of at most 768 bytes, the sequence is split into parts of this length.
_SCREEN_CHUNK_CHARS: Final = 700


def make_osc52_sequence(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the escape sequence that copies `text` to the terminal's clipboard.

    If `environment` belongs to a tmux or GNU screen session, the sequence is wrapped, because both programs intercept
    the unwrapped one. See OSC 52 in https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
    """
    sequence = f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\x07"
    if environment.get("TMUX"):
        return f"\x1bPtmux;{sequence.replace(chr(27), chr(27) * 2)}\x1b\\"
    if environment.get("STY"):
        parts = [sequence[i : i + _SCREEN_CHUNK_CHARS] for i in range(0, len(sequence), _SCREEN_CHUNK_CHARS)]
        return "".join(f"\x1bP{part}\x1b\\" for part in parts)
    return sequence


def save_copy(text: str) -> Path | None:
    """Write `text` to a file, for terminals that ignore OSC 52; return its path, or None if writing fails."""
    file = paths.cache_dir() / "copied.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file, text.encode("utf-8", "replace"))
    except OSError:
        return None
    return file


def summary(label: str, text: str, file: Path | None) -> str:
    """Return the notification text that is shown after `text` was copied.

    `label` names the text, such as "Reply"; `file` is the file that also contains it, or None.
    """
    is_copied = len(text) <= MAX_CHARS
    result = f"{label} copied" if is_copied else f"{label} is too long for the terminal's clipboard"
    return f"{result}. Also saved to {file}" if file is not None else result
