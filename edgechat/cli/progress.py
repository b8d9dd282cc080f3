"""Progress output of a download, on a terminal or in a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress

# Interval between lines when standard error is not a terminal.
_LINE_EVERY_S: Final = 10.0


class Meter:
    """Progress of a download: one updated line on a terminal, a new line every 10 seconds elsewhere."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._is_shown = False
        self._next_s = time.monotonic() + _LINE_EVERY_S

    def show(self, number: int, progress: DownloadProgress) -> None:
        """Show the progress of file `number`, counted from 0."""
        is_terminal = sys.stderr.isatty()
        if not is_terminal and time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _LINE_EVERY_S
        self._is_shown = is_terminal
        part = f"{number + 1} of {self._n_files}: " if self._n_files > 1 else ""
        text = part + progress.text
        click.echo(f"\r\x1b[2K{text}" if is_terminal else text, nl=not is_terminal, err=True)

    def end(self) -> None:
        """Clear the progress line."""
        if self._is_shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
        self._is_shown = False
