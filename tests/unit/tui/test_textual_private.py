"""The private attributes of Textual and Rich that edgechat uses still exist."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import textual.app
from rich.markdown import Markdown
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from edgechat.tui import textual_private
from edgechat.tui.render.markdown_renderer import ChatMarkdown
from edgechat.tui.terminal_parser import ConsoleParser


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (App(), "_driver"), (App(), "_clipboard"), (App(), "_exception"), (App, "_fatal_error"),
        (App, "_handle_exception"), (App, "_display"), (App(), "_batch_count"), (App(), "_running"),
        (App(), "_closed"), (Widget, "_scroll_update"), (Widget(), "_pruning"),
        (Screen, "_dispatch_message"), (XTermParser(), "_timeout_time"),
        (LinuxDriver, "_run_input_thread"), (LinuxDriver, "_disable_mouse_support"),
        (LinuxDriver, "_sigtstp_application"), (LinuxDriver, "_sigcont_application"),
    ],
)  # fmt: skip
def test_textual_has_the_private_attribute(owner: object, name: str) -> None:
    assert hasattr(owner, name), f"Textual no longer has {name}: adapt edgechat/tui/textual_private.py"


def test_scroll_update_takes_a_virtual_size() -> None:
    inspect.signature(Widget._scroll_update).bind(Widget(), Size(1, 1))


def test_unhandled_errors_call_fatal_error() -> None:
    assert "self._fatal_error()" in inspect.getsource(textual.app.App._handle_exception)


def test_screen_updates_have_rows_and_spans() -> None:
    blank = Strip.blank(4)
    full = LayoutUpdate([[blank], [blank]], Region(0, 3, 4, 2))
    assert list(textual_private.changed_rows(full)) == [(3, [(0, blank)]), (4, [(0, blank)])]
    partial = ChopsUpdate([{0: blank, 4: None, 8: blank}], [(0, 2, 6)], [[4, 8, 12]])
    assert list(textual_private.changed_rows(partial)) == [(0, [(0, blank)])]


def test_linux_driver_uses_what_the_own_driver_replaces() -> None:
    source = inspect.getsource(LinuxDriver)
    for text in (
        "WriterThread(self._file)", "target=self._run_input_thread", "self._writer_thread", "self._auto_restart",
        "self._mouse_pixels", "self.attrs_before", "self.exit_event.is_set()", "self._disable_mouse_support()",
    ):  # fmt: skip
        assert text in source, f"Textual's driver has changed: adapt edgechat/tui/driver.py to the lack of {text}"


def test_windows_driver_creates_its_parser_by_name() -> None:
    file = Path(inspect.getfile(LinuxDriver)).with_name("win32.py")
    assert "parser = XTermParser(debug=" in file.read_text()
    keys = list(ConsoleParser(debug=False).feed("a\x1b[?62;1;4cb"))
    assert [event.key for event in keys] == ["a", "b"]  # type: ignore[attr-defined]


def test_escape_return_is_registered_as_alt_enter() -> None:
    textual_private.register_alt_enter()
    assert [event.key for event in XTermParser().feed("\x1b\r")] == ["alt+enter"]  # type: ignore[attr-defined]


def test_chat_markdown_has_every_attribute_of_rich_markdown() -> None:
    assert vars(ChatMarkdown("", [], "monokai")).keys() == {*vars(Markdown("")), "inlines"}
