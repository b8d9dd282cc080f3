"""The private attributes of Textual and Rich that edgechat uses still exist."""

from __future__ import annotations

import inspect

import pytest
import textual.app
from rich.markdown import Markdown
from textual.app import App
from textual.geometry import Size
from textual.widget import Widget

from edgechat.tui import textual_private
from edgechat.tui.render.markdown_renderer import ChatMarkdown


@pytest.mark.parametrize(
    ("owner", "name"), [(App(), "_driver"), (App(), "_clipboard"), (App, "_fatal_error"), (Widget, "_scroll_update")]
)
def test_textual_has_the_private_attribute(owner: object, name: str) -> None:
    assert hasattr(owner, name), f"Textual no longer has {name}: adapt edgechat/tui/textual_private.py"


def test_scroll_update_takes_a_virtual_size() -> None:
    inspect.signature(Widget._scroll_update).bind(Widget(), Size(1, 1))


def test_unhandled_errors_call_fatal_error() -> None:
    assert "self._fatal_error()" in inspect.getsource(textual.app.App._handle_exception)


def test_escape_return_is_registered_as_alt_enter() -> None:
    from textual._xterm_parser import XTermParser

    textual_private.register_alt_enter()
    assert [event.key for event in XTermParser().feed("\x1b\r")] == ["alt+enter"]  # type: ignore[attr-defined]


def test_chat_markdown_has_every_attribute_of_rich_markdown() -> None:
    assert vars(ChatMarkdown("", "monokai")).keys() == vars(Markdown("")).keys()
