"""Progress output on standard error: a temporary status line, and the progress of a download."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from edgechat.errors import EngineDiedError
from edgechat.humanize import shorten
from edgechat.terminal import escape_controls, supports_escapes

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress

# Interval at which a status line with the elapsed time is redrawn.
_TICK_S: Final = 0.5
# Interval between progress lines if standard error is not a terminal.
_LINE_INTERVAL_S: Final = 10.0
# Time after which a command that waits without a terminal reports what it waits for.
_WAIT_NOTICE_S: Final = 3.0


class StderrStatus:
    """Temporary status line on standard error. It is shown only on a terminal, and cleared before other output.

    If standard error is not a terminal, a command that may take long prints the status as a line every 10 seconds.
    """

    def __init__(self, *, print_lines: bool = False) -> None:
        """Create an empty status; with `print_lines`, it is printed as lines if standard error is not a terminal."""
        self.is_active = supports_escapes(sys.stderr)
        self._print_lines = print_lines and not self.is_active
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
        self._is_shown = False
        self._text = ""
        self._elapsed_started_at: float | None = None
        """Start of the elapsed time in the status line (monotonic clock); None if the line shows no elapsed time."""
        self._is_notice_due = False
        """Whether the next status is also printed as a line."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def show_elapsed(self) -> Iterator[None]:
        """Show the seconds since the start of the block in the status line, so that the user sees activity."""
        is_over = threading.Event()

        def tick() -> None:
            while not is_over.wait(_TICK_S):
                with self._lock:
                    if self.is_active:
                        self._draw()
                    elif self._text and self._is_line_due():
                        echo_note(escape_controls(self._text) + self._format_elapsed())

        self._elapsed_started_at = time.monotonic()
        thread = threading.Thread(target=tick, name="status-line", daemon=True)
        is_ticking = self.is_active or self._print_lines
        if is_ticking:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            if is_ticking:
                thread.join()
            self._elapsed_started_at = None

    @contextlib.contextmanager
    def announce_wait(self) -> Iterator[None]:
        """Print the current status once, as a line, if the block takes seconds and standard error is not a terminal."""
        notice = threading.Timer(_WAIT_NOTICE_S, self._print_status)
        notice.daemon = True
        if not self.is_active:
            notice.start()
        try:
            yield
        finally:
            notice.cancel()
            self._is_notice_due = False

    def _print_status(self) -> None:
        with self._lock:
            text, self._is_notice_due = self._text, not self._text
        if text:
            echo_note(f"edgechat: {escape_controls(text)}")

    def show(self, text: str) -> None:
        """Show `text` as the status line; "" leaves the line unchanged."""
        with self._lock:
            self._text = text or self._text
            is_notice_due = self._is_notice_due
            if self.is_active and text:
                self._draw()
        if is_notice_due:
            self._print_status()
        if self.is_active:
            return
        with self._lock:
            if text and self._is_line_due():
                echo_note(escape_controls(text) + self._format_elapsed())

    def _is_line_due(self) -> bool:
        """Return whether the status is to be printed as a line now; if so, the next line is due after an interval."""
        if not self._print_lines or time.monotonic() < self._next_line_at:
            return False
        self._next_line_at = time.monotonic() + _LINE_INTERVAL_S
        return True

    def _format_elapsed(self) -> str:
        """Return the elapsed time in parentheses; "" outside `show_elapsed`."""
        started_at = self._elapsed_started_at
        return "" if started_at is None else f" ({time.monotonic() - started_at:.0f} s)"

    def _draw(self) -> None:
        if not self._text:
            return
        text = escape_controls(self._text)
        if elapsed_text := self._format_elapsed():
            # A wrapped line cannot be cleared, and would be printed again below the old line at each tick.
            text = text[: max(0, shutil.get_terminal_size().columns - 1 - len(elapsed_text))] + elapsed_text
        echo_note(f"\r\x1b[2K{text}", nl=False)
        self._is_shown = True

    def note(self, text: str) -> None:
        """Print `text` as a permanent line; "" prints nothing."""
        if text:
            self.clear()
            echo_note(f"edgechat: {escape_controls(shorten(text, EngineDiedError.max_chars))}")

    def clear(self) -> None:
        with self._lock:
            self._text = ""
            if self._is_shown:
                echo_note("\r\x1b[2K", nl=False)
                self._is_shown = False


def echo_note(text: str, *, nl: bool = True) -> None:
    """Print a note on standard error. Ignores errors such as a full disk, because commands work without notes."""
    with contextlib.suppress(OSError):
        click.echo(text, nl=nl, err=True)


class DownloadMeter:
    """Shows the progress of a download: one updated line on a terminal, otherwise a new line every 10 seconds."""

    def __init__(self, n_files: int) -> None:
        self._n_files = n_files
        self._status = StderrStatus(print_lines=True)

    def show(self, index: int, progress: DownloadProgress) -> None:
        """Show the progress of one file; `index` is its zero-based index among the files to download."""
        prefix = f"{index + 1} of {self._n_files}: " if self._n_files > 1 else ""
        self._status.show(prefix + progress.text)

    def clear(self) -> None:
        self._status.clear()
