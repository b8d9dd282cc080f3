"""Engine log file, and the receiver of llama.cpp's log messages.

The engine process starts with its standard error redirected to the log file, so that the file also receives the output
of C libraries.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from edgechat import files, paths

MAX_LOG_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 8192
_MAX_ERRORS: Final = 10
# Values of the enum ggml_log_level in ggml.h.
_INFO_LEVEL: Final = 2
_ERROR_LEVEL: Final = 4
_CONTINUE_LEVEL: Final = 5


def open_log() -> IO[bytes] | None:
    """Open the engine log for appending, after rotating a log larger than 1 MiB; None if the log cannot be opened."""
    path = paths.log_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            os.replace(path, path.with_suffix(".log.1"))  # noqa: PTH105
        return files.open_private(path, os.O_APPEND)
    except OSError:
        return None


def size() -> int:
    """Return the size of the engine log in bytes; 0 if the file is missing."""
    try:
        return paths.log_file().stat().st_size
    except OSError:
        return 0


def read_last_lines(path: Path, start: int, count: int = 5) -> list[str]:
    """Return the last `count` non-empty lines after byte `start` of a log; an empty list if the log is unreadable."""
    try:
        with files.open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]


class LogSink:
    """Log receiver that writes llama.cpp's log messages to standard error and stores the last ten errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def make_callback(self) -> Callable[[int, bytes, object], None]:
        """Return a callback for llama_log_set, called with the level, the text and an unused pointer."""
        last_level = _INFO_LEVEL

        def write(level: int, text: bytes, _user_data: object) -> None:
            nonlocal last_level
            last_level = level = last_level if level == _CONTINUE_LEVEL else level
            if level < _INFO_LEVEL:
                return  # debug output has about a thousand lines per context
            if level == _ERROR_LEVEL:
                self.errors = [*self.errors[1 - _MAX_ERRORS :], text.decode("utf-8", "replace").strip()]
            with contextlib.suppress(OSError):  # a full disk must not stop the engine
                os.write(2, text)

        return write

    def take_errors(self) -> list[str]:
        """Return the errors since the previous call, and clear the list of errors."""
        errors, self.errors = self.errors, []
        return [e for e in errors if e]
