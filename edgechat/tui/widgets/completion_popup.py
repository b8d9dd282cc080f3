"""What is offered above the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import OptionList
from textual.widgets.option_list import Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgechat.tui.completion import Completion


class CompletionPopup(OptionList, can_focus=False):
    """Some lines; the input keeps the focus, and moves in them."""

    DEFAULT_CSS = """
    CompletionPopup { display: none; height: auto; max-height: 8; padding: 0 1; }
    """

    def __init__(self, take: Callable[[], None]) -> None:
        """`take` is called when a line is clicked."""
        super().__init__(markup=False)
        self._take = take

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        """One was clicked."""
        message.stop()
        self._take()


def option(found: Completion, width: int) -> Option:
    """A line, with what it means after `width` columns."""
    text = Text(f"{found.shown:<{width}}", no_wrap=True, overflow="ellipsis")
    return Option(text.append(f"  {found.words}", style="dim") if found.words else text)
