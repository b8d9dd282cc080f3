"""llama.cpp's log goes to a file, never to the terminal.

The engine process starts with its standard error in that file, so that what C libraries print is kept too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgechat import paths

MAX_BYTES = 1 << 20


def open_log() -> IO[bytes] | None:
    """The engine's log, opened for appending, rotated when it is over `MAX_BYTES`; None if it cannot be."""
    path = paths.log_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_BYTES:
            os.replace(path, path.with_suffix(".log.1"))  # noqa: PTH105
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except OSError:
        return None


def size() -> int:
    """Bytes in the log; 0 if there is none."""
    try:
        return paths.log_file().stat().st_size
    except OSError:
        return 0


def last_lines(path: Path, start: int, count: int = 5) -> list[str]:
    """The last non-empty lines of a log after byte `start`; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]


class LogSink:
    """Receives llama.cpp's log lines, writes them to standard error, and keeps the last errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def callback(self) -> Callable[[int, bytes, object], None]:
        """The function for llama_log_set: (level, text, user data)."""
        last_level = _INFO_LEVEL

        def write(level: int, text: bytes, _user_data: object) -> None:
            nonlocal last_level
            last_level = level = last_level if level == _CONTINUED else level
            if level < _INFO_LEVEL:
                return  # a thousand lines for every context
            if level == _ERROR_LEVEL:
                self.errors = [*self.errors[-9:], text.decode("utf-8", "replace").strip()]
            try:
                os.write(2, text)
            except OSError:
                pass  # a full disk must not stop an answer

        return write

    def take_errors(self) -> list[str]:
        """The errors since the last call."""
        errors, self.errors = self.errors, []
        return [e for e in errors if e]


# ggml_log_level of ggml.h
_INFO_LEVEL = 2
_ERROR_LEVEL = 4
_CONTINUED = 5
