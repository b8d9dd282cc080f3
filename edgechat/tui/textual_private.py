"""Textual's private API, checked against Textual 8.2.8. `driver.py` and `terminal_parser.py` have the rest of its uses.

`tests/unit/tui/test_textual_private.py` fails if a newer Textual lacks an attribute, and names the attribute.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, TypeVar

from textual import constants
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.app import App

if TYPE_CHECKING:
    from textual.driver import Driver
    from textual.geometry import Size
    from textual.widget import Widget

ReturnType = TypeVar("ReturnType")


class _ExtraKeys(enum.Enum):
    """Keys that `textual.keys.Keys` does not define."""

    ALT_ENTER = "alt+enter"


def register_alt_enter() -> None:
    """Report Escape followed by Return as Alt+Enter; Textual reports it as Return.

    Terminals without the Kitty keyboard protocol send this sequence for Alt+Enter.
    """
    ANSI_SEQUENCES_KEYS["\x1b\r"] = (_ExtraKeys.ALT_ENTER,)  # type: ignore[index]


def update_scrollbars(widget: Widget, virtual_size: Size) -> None:
    """Update the scrollbars of a widget to the size of its content, without a layout of the screen."""
    widget._scroll_update(virtual_size)  # noqa: SLF001


def set_clipboard(app: App[ReturnType], text: str) -> None:
    """Set `app.clipboard` without sending an escape sequence to the terminal."""
    app._clipboard = text  # noqa: SLF001


def write_to_terminal(app: App[ReturnType], data: str) -> None:
    """Send an escape sequence to the terminal; do nothing before the application runs."""
    if app._driver is not None:  # noqa: SLF001
        app._driver.write(data)  # noqa: SLF001


class CrashReportApp(App[ReturnType]):
    """Application that calls `report_crash` for an unhandled exception, instead of printing Textual's traceback."""

    def get_driver_class(self) -> type[Driver]:
        """Return a driver that survives any input, or the driver that $TEXTUAL_DRIVER names."""
        if constants.DRIVER is not None:
            return super().get_driver_class()
        if sys.platform == "win32":
            from textual.drivers import win32

            from edgechat.tui.terminal_parser import ConsoleParser

            win32.XTermParser = ConsoleParser  # the input thread of Textual's driver creates its parser by this name
            return super().get_driver_class()
        from edgechat.tui.driver import ChatDriver

        return ChatDriver

    def _fatal_error(self) -> None:
        self.report_crash(self._exception or RuntimeError("unknown error"))

    def report_crash(self, error: Exception) -> None:
        """Report `error` and end the application."""
        raise NotImplementedError

    def restore_terminal(self) -> None:
        """Restore the terminal at once, without the event loop, before the process ends."""
        restore = getattr(self._driver, "restore_terminal", None)
        if restore is not None:
            restore()
