"""Terminal driver for Linux and macOS: Textual's driver, with filtered input and handling of a closed terminal.

It uses private API of Textual, checked against Textual 8.2.8 (see also `textual_private.py`).
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from edgechat.tui import window_title
from edgechat.tui.output_flow import CHUNK_CHARS, OutputFlow
from edgechat.tui.painter import Painter, replace_non_ascii
from edgechat.tui.render.screen_image import count_bytes
from edgechat.tui.terminal_parser import POLL_S, TerminalParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import App

_READ_BYTES: Final = 1 << 16
# Restores the terminal: turns off bracketed paste, reports of size and focus, the mouse and synchronized output; turns
# on line wrap; leaves the Kitty keyboard protocol and the alternate screen; shows the cursor.
_RESTORE: Final = (
    b"".join(b"\x1b[?%dl" % mode for mode in (2004, 2048, 1004, 1000, 1003, 1015, 1006, 1016, 2026))
    + b"\x1b[?7h\x1b[<u\x1b[?1049l\x1b[?25h"
    + window_title.RESTORE.encode()
)


class TerminalLost(Message):
    """The terminal is gone, for example because its window was closed."""


class ChatDriver(LinuxDriver):
    """Textual's Linux driver with edgechat's parser and painter; posts `TerminalLost` when the terminal is gone."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._flow = OutputFlow()
        self._output = _TerminalOutput(sys.__stderr__, self._flow, self._report_lost, self._report_error)  # type: ignore[arg-type]
        self._file = self._output  # type: ignore[assignment]
        self._is_started = False
        self.painter = Painter(lambda strip: strip.render(app.console), self._flow.budget)
        self._window_title = "edgechat"
        self._written_title = ""
        """Escape sequence that set the current title."""

    # Input

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except Exception as error:  # noqa: BLE001  (otherwise Textual would print a traceback and return 0)
            self._report_error(error)

    def run_input_thread(self) -> None:
        """Read the terminal until `exit_event` is set or the terminal is gone."""
        parser = TerminalParser()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if not selector.select(parser.remaining_s):
                    for event in parser.tick():
                        self.process_message(event)
                    continue
                try:
                    data = os.read(self.fileno, _READ_BYTES)
                except OSError:
                    data = b""
                if not data:  # the terminal is gone: in raw mode, Ctrl+D does not end the input
                    self._report_lost()
                    return
                for event in parser.feed(data):
                    self.process_message(event)

    # Output

    def write(self, data: str) -> None:
        """Write to the terminal. If it is gone, drop the output: the writer thread's queue would fill up and block."""
        if not self._output.is_lost:
            self._flow.count_queued(count_bytes(data))
            super().write(data)

    def _disable_mouse_support(self) -> None:
        if self._mouse_pixels:
            self.write("\x1b[?1016l")
        super()._disable_mouse_support()

    # Start and stop

    def start_application_mode(self) -> None:
        self.painter.invalidate()
        super().start_application_mode()  # type: ignore[no-untyped-call]
        self._is_started = self._writer_thread is not None and self._writer_thread.is_alive()
        if not self._is_started:  # Textual gives up silently if it cannot change the terminal's attributes
            self._output.is_lost = True
            self._report_lost()

        elif window_title.has_title():
            self.write(window_title.SAVE)
            self._written_title = ""
            self.update_window_title()

    def set_window_title(self, text: str) -> None:
        """Set the title of the terminal's window; `stop_application_mode` restores the previous one."""
        self._window_title = text
        self.update_window_title()

    def update_window_title(self) -> None:
        """Write the title if it has changed, or if the set of characters that the terminal shows has changed."""
        sequence = window_title.make_title_sequence(self._window_title)
        if self.painter.ascii_only:
            sequence = replace_non_ascii(sequence)
        if sequence != self._written_title and self._is_started and window_title.has_title():
            self.write(sequence)
            self._written_title = sequence

    def stop_application_mode(self) -> None:
        if self._is_started and window_title.has_title():
            self.write(window_title.RESTORE)
        super().stop_application_mode()
        self._is_started = False

    def _sigtstp_application(self, *_: object) -> None:
        """Suspend the program in the event loop. In a signal handler, the queue of the writer thread may be locked."""
        if self._auto_restart:
            self._loop.call_soon_threadsafe(super()._sigtstp_application)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _sigcont_application(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        """Restart application mode. After SIGSTOP, which no program can catch, stop this mode first."""
        if self._auto_restart:
            if self._is_started:
                self.suspend_application_mode()
            self.resume_application_mode()

    def restore_terminal(self) -> None:
        """Restore the terminal without the writer thread, which a terminal that does not read may block."""
        if not self._is_started or self._output.is_lost:
            return
        with contextlib.suppress(OSError, termios.error):
            if self.attrs_before is not None:
                termios.tcsetattr(self.fileno, termios.TCSANOW, self.attrs_before)
            if select.select([], [self._output.fileno()], [], POLL_S)[1]:
                os.write(self._output.fileno(), _RESTORE)

    # Problems, in any thread

    def _report_lost(self) -> None:
        if self._app.is_running:
            self.send_message(TerminalLost())

    def _report_error(self, error: Exception) -> None:
        self._app.call_later(self._app._handle_exception, error)  # noqa: SLF001


class _TerminalOutput:
    """Standard error, on which Textual draws. After an error of the device, all further output is dropped."""

    def __init__(
        self, file: TextIO, flow: OutputFlow, on_lost: Callable[[], None], on_error: Callable[[Exception], None]
    ) -> None:
        self._file = file
        self._flow = flow
        self._on_lost = on_lost
        self._on_error = on_error
        self.is_lost = False

    def write(self, text: str) -> None:
        """Write in parts, and record how long the terminal blocked each part."""
        for start in range(0, len(text), CHUNK_CHARS):
            part = text[start : start + CHUNK_CHARS]
            started_at = time.monotonic()
            self._attempt(lambda part=part: self._write_through(part))  # type: ignore[misc]
            self._flow.count_written(count_bytes(part), time.monotonic() - started_at)

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def _write_through(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.is_lost:
            return
        try:
            action()
        except OSError:
            self.is_lost = True
            self._on_lost()
        except Exception as error:  # noqa: BLE001  (if the writer thread ended, the next write would block)
            self.is_lost = True
            self._on_error(error)
