"""Progress output on standard error: a temporary status line, and the progress of a download."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from edgechat.errors import EngineDiedError
from edgechat.humanize import shorten
from edgechat.terminal import escape_controls, supports_escapes

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress

# Interval between progress lines if standard error is not a terminal.
_LINE_INTERVAL_S: Final = 10.0


class StderrStatus:
    """Temporary status line on standard error. It is shown only on a terminal, and cleared before other output.

    Elsewhere, such as in a log, a command that can take long prints the status as a line every 10 seconds.
    """

    def __init__(self, *, prints_lines: bool = False) -> None:
        """If `prints_lines`, print the status as lines if standard error is not a terminal."""
        self.is_active = supports_escapes(sys.stderr)
        self._prints_lines = prints_lines and not self.is_active
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
        self._is_shown = False

    def show(self, text: str) -> None:
        """Show `text` as the status line; "" leaves the line unchanged."""
        if self.is_active and text:
            echo_note(f"\r\x1b[2K{escape_controls(text)}", nl=False)
            self._is_shown = True
        elif self._prints_lines and text and time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
            echo_note(escape_controls(text))

    def note(self, text: str) -> None:
        """Print `text` as a permanent line; "" prints nothing."""
        if text:
            self.clear()
            echo_note(f"edgechat: {escape_controls(shorten(text, EngineDiedError.max_chars))}")

    def clear(self) -> None:
        if self._is_shown:
            echo_note("\r\x1b[2K", nl=False)
            self._is_shown = False


def echo_note(text: str, *, nl: bool = True) -> None:
    """Print a note on standard error. A command works even if its notes cannot be written, as on a full disk."""
    with contextlib.suppress(OSError):
        click.echo(text, nl=nl, err=True)


class DownloadMeter:
    """Shows the progress of a download: one updated line on a terminal, otherwise a new line every 10 seconds."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._status = StderrStatus(prints_lines=True)

    def show(self, index: int, progress: DownloadProgress) -> None:
        """Show the progress of one file; `index` is its zero-based index among the files to download."""
        prefix = f"{index + 1} of {self._n_files}: " if self._n_files > 1 else ""
        self._status.show(prefix + progress.text)

    def clear(self) -> None:
        self._status.clear()
