"""The progress of a download, on a terminal or in a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import Progress

# Where progress goes to a file.
_LINE_EVERY_S: Final = 10.0


class Meter:
    """One line of progress on a terminal, a new one now and then elsewhere."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._is_shown = False
        self._next_s = time.monotonic() + _LINE_EVERY_S

    def show(self, number: int, progress: Progress) -> None:
        """Of file `number` so much is there."""
        is_terminal = sys.stderr.isatty()
        if not is_terminal and time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _LINE_EVERY_S
        self._is_shown = is_terminal
        part = f"{number + 1} of {self._n_files}: " if self._n_files > 1 else ""
        words = part + progress.words
        click.echo(f"\r\x1b[2K{words}" if is_terminal else words, nl=not is_terminal, err=True)

    def end(self) -> None:
        """Leave the line as if nothing had been there."""
        if self._is_shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
        self._is_shown = False
