"""The list of completions above the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets.option_list import Option

from edgechat.tui.widgets.entry_list import EntryList

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.widgets import OptionList

    from edgechat.tui.completion import Completion


class CompletionPopup(EntryList, can_focus=False):
    """List of completions. It never takes the focus: the prompt keeps the focus and moves the highlight."""

    DEFAULT_CSS = """
    CompletionPopup { height: auto; max-height: 8; }
    """

    def __init__(self, on_accept: Callable[[], None]) -> None:
        """Create a hidden list. `on_accept` is called after a click has highlighted a completion."""
        super().__init__(markup=False)
        self.display = False
        self._on_accept = on_accept

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self._on_accept()


def make_completion_option(completion: Completion, width: int) -> Option:
    """Return the list option of a completion: its label padded to `width` columns, then its description."""
    text = Text(f"{completion.label:<{width}}", no_wrap=True, overflow="ellipsis")
    return Option(text.append(f"  {completion.description}", style="dim") if completion.description else text)
