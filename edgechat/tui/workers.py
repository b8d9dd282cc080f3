"""Thread workers of screens and widgets. An exception in a worker becomes a message on the screen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from textual import work
from textual.dom import DOMNode
from textual.worker import get_current_worker

from edgechat.errors import MAX_MESSAGE_CHARS, EdgechatError, UsageError
from edgechat.humanize import shorten
from edgechat.tui import textual_private

Node = TypeVar("Node", bound=DOMNode)


def format_error(error: Exception) -> str:
    """Return the text that is shown to the user for an error."""
    if isinstance(error, EdgechatError):
        return str(error)
    return shorten(f"Unexpected {type(error).__name__}: {error}", MAX_MESSAGE_CHARS)


def is_mistake(error: Exception, line: str) -> bool:
    """Return whether the user made a mistake: in the typed command `line`, or with a key if `line` is empty."""
    is_invalid = isinstance(error, EdgechatError) and error.exit_code == UsageError.exit_code
    return isinstance(error, UsageError) or (is_invalid and bool(line))


def thread_worker(
    show_error: Callable[[Node, str], object], *, group: str
) -> Callable[[Callable[..., None]], Callable[..., Any]]:
    """Decorate a method of a screen or widget so that each call runs it in a thread, and cancels the previous call.

    If the method raises an exception, `show_error(node, text)` is called in the main thread, unless the call was
    cancelled or the node was removed.
    """

    def decorate(method: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(node: Node, *arguments: Any) -> None:
            try:
                method(node, *arguments)
            except Exception as error:  # noqa: BLE001  (any error is shown)
                text, worker = format_error(error), get_current_worker()

                def show() -> None:
                    is_open = node.is_attached and not textual_private.is_being_removed(node)
                    if is_open and not worker.is_cancelled:
                        show_error(node, text)

                node.app.call_later(show)

        return work(thread=True, exclusive=True, group=group, exit_on_error=False)(run)

    return decorate
