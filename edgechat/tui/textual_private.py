"""Access to Textual's private API, which `driver.py` and `terminal_parser.py` also use; checked against Textual 8.2.8.

`tests/unit/tui/test_textual_private.py` fails if a newer Textual lacks an attribute, and names the attribute.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from textual import constants
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.app import App

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType
    from textual.dom import DOMNode
    from textual.driver import Driver
    from textual.geometry import Size
    from textual.screen import Screen
    from textual.strip import Strip
    from textual.widget import Widget

    from edgechat.tui.painter import Painter

ReturnType = TypeVar("ReturnType")
_CATCH_UP_S: Final = 0.05
"""Delay of the next frame if the terminal is behind."""


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


def is_being_removed(node: DOMNode) -> bool:
    """Return whether Textual is removing a screen or widget, which then cannot mount any more widgets."""
    return node._pruning  # noqa: SLF001


def set_clipboard(app: App[ReturnType], text: str) -> None:
    """Set `app.clipboard` without sending an escape sequence to the terminal."""
    app._clipboard = text  # noqa: SLF001


def write_to_terminal(app: App[ReturnType], data: str) -> bool:
    """Send an escape sequence to the terminal; before the application runs, do nothing and return False."""
    if app._driver is None:  # noqa: SLF001
        return False
    app._driver.write(data)  # noqa: SLF001
    return True


def write_below_frame(app: App[ReturnType], data: str) -> None:
    """Write text to the terminal, and let the next frame overwrite it by painting the whole screen."""
    write_to_terminal(app, data)
    painter: Painter | None = getattr(app._driver, "painter", None)  # noqa: SLF001
    if painter is not None:
        painter.invalidate()


def restrict_output(app: App[ReturnType], *, ascii_only: bool) -> None:
    """Set whether output and window title contain only ASCII, with question marks in place of other characters."""
    painter: Painter | None = getattr(app._driver, "painter", None)  # noqa: SLF001
    if painter is not None and painter.ascii_only != ascii_only:
        painter.ascii_only = ascii_only
        painter.invalidate()
        app._driver.update_window_title()  # type: ignore[union-attr]  # noqa: SLF001


def changed_rows(update: LayoutUpdate | ChopsUpdate) -> Iterator[tuple[int, list[tuple[int, Strip]]]]:
    """Yield the rows of a screen update: the row number, and pairs of a column and the cells from there on."""
    if isinstance(update, LayoutUpdate):
        for y, strips in enumerate(update.strips, update.region.y):
            x, parts = update.region.x, []
            for strip in strips:
                parts.append((x, strip))
                x += strip.cell_length
            yield y, parts
        return
    for y, first, last in update.spans:
        ends = zip(update.chops[y].items(), update.chop_ends[y])  # noqa: B905  (the last end is the width)
        yield y, [(x, strip) for (x, strip), end in ends if strip is not None and x <= last and end > first]


def suspend_driver(app: App[ReturnType]) -> None:
    """Restore the terminal until the program is resumed."""
    driver = app._driver  # noqa: SLF001
    if driver is not None:
        driver.suspend_application_mode()
        driver._must_signal_resume = True  # type: ignore[attr-defined]  # noqa: SLF001


def redraw(app: App[ReturnType]) -> None:
    """Write the whole screen again, for example because another program wrote to the terminal."""
    painter: Painter | None = getattr(app._driver, "painter", None)  # noqa: SLF001
    if painter is not None:
        painter.invalidate()
    app.screen.refresh()


class _Frame(CompositorUpdate):
    """Output that is written as one frame."""

    def __init__(self, output: str) -> None:
        self._output = output

    def render_segments(self, console: Console) -> str:  # noqa: ARG002
        return self._output


def set_window_title(app: App[ReturnType], text: str) -> None:
    """Set the title of the terminal's window, if the driver of the application can restore the previous one."""
    set_title = getattr(app._driver, "set_window_title", None)  # noqa: SLF001
    if set_title is not None:
        set_title(text)


class CrashReportApp(App[ReturnType]):
    """Application that calls `report_crash` for an unhandled exception, instead of printing Textual's traceback.

    If its driver has a `Painter`, only the cells that changed are written to the terminal.
    """

    _paints_later = False

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        painter = self._painter
        if painter is not None and isinstance(renderable, (LayoutUpdate, ChopsUpdate)):
            painter.add(changed_rows(renderable), self.size)
            if self._batch_count == 0:
                self.paint()
        else:
            super()._display(screen, renderable)

    def paint(self) -> None:
        """Write the changes that the painter allows now; if the terminal is behind, write the others later."""
        painter = self._painter
        if painter is None or self._closed or not self._running:
            return
        output = painter.take(self.cursor_position)
        if output:
            super()._display(self.screen, _Frame(output))  # type: ignore[arg-type]
        if painter.is_behind and not self._paints_later:
            self._paints_later = True
            asyncio.get_running_loop().call_later(_CATCH_UP_S, self._paint_rest)

    def _paint_rest(self) -> None:
        self._paints_later = False
        self.paint()

    @property
    def _painter(self) -> Painter | None:
        return getattr(self._driver, "painter", None)

    def on_resize(self) -> None:
        """Write the whole screen again, because terminals move text when their size changes."""
        if self._painter is not None:
            self._painter.invalidate()

    def get_driver_class(self) -> type[Driver]:
        """Return a driver that accepts any input, or the driver that $TEXTUAL_DRIVER names."""
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
