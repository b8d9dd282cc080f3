"""Progress output of a download on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from edgechat.terminal import supports_escapes

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress

# Interval between progress lines if standard error is not a terminal.
_LINE_INTERVAL_S: Final = 10.0


class DownloadMeter:
    """Shows the progress of a download: one updated line on a terminal, otherwise a new line every 10 seconds."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._is_shown = False
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S

    def show(self, index: int, progress: DownloadProgress) -> None:
        """Show the progress of one file; `index` is its zero-based index among the files to download."""
        is_terminal = supports_escapes(sys.stderr)
        if not is_terminal and time.monotonic() < self._next_line_at:
            return
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
        self._is_shown = is_terminal
        prefix = f"{index + 1} of {self._n_files}: " if self._n_files > 1 else ""
        text = prefix + progress.text
        click.echo(f"\r\x1b[2K{text}" if is_terminal else text, nl=not is_terminal, err=True)

    def clear(self) -> None:
        if self._is_shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
        self._is_shown = False
