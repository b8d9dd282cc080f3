"""Progress output on standard error: a temporary status line, and the progress of a download."""

from __future__ import annotations

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
    """Temporary status line on standard error. It is shown only on a terminal, and cleared before other output."""

    def __init__(self) -> None:
        self.is_active = supports_escapes(sys.stderr)
        self._is_shown = False

    def show(self, text: str) -> None:
        """Show `text` as the status line; "" leaves the line unchanged."""
        if self.is_active and text:
            click.echo(f"\r\x1b[2K{escape_controls(text)}", nl=False, err=True)
            self._is_shown = True

    def note(self, text: str) -> None:
        """Print `text` as a permanent line; "" prints nothing."""
        if text:
            self.clear()
            click.echo(f"edgechat: {escape_controls(shorten(text, EngineDiedError.max_chars))}", err=True)

    def clear(self) -> None:
        if self._is_shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._is_shown = False


class DownloadMeter:
    """Shows the progress of a download: one updated line on a terminal, otherwise a new line every 10 seconds."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._status = StderrStatus()
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S

    def show(self, index: int, progress: DownloadProgress) -> None:
        """Show the progress of one file; `index` is its zero-based index among the files to download."""
        prefix = f"{index + 1} of {self._n_files}: " if self._n_files > 1 else ""
        if self._status.is_active:
            self._status.show(prefix + progress.text)
        elif time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
            click.echo(prefix + progress.text, err=True)

    def clear(self) -> None:
        self._status.clear()
