"""All uses of Textual's private API, checked against Textual 8.2.8.

`tests/unit/tui/test_textual_private.py` fails if a newer Textual lacks an attribute, and names the attribute.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.app import App

if TYPE_CHECKING:
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

    def _fatal_error(self) -> None:
        self.report_crash()

    def report_crash(self) -> None:
        """Report the current exception and end the application. Call this only in an except block."""
        super()._fatal_error()
