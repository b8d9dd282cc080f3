"""One of many: a list that is narrowed by what is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual import on
from textual.containers import Vertical
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen

if TYPE_CHECKING:
    from textual.app import ComposeResult


class PickerScreen(FilterListScreen[str | None]):
    """Ends with what was chosen, or None."""

    DEFAULT_CSS = """
    PickerScreen { align: center middle; background: $background 60%; }
    PickerScreen > Vertical { width: 80%; max-width: 90; height: 80%; border: round $border; padding: 0 1; background: $surface; }
    PickerScreen OptionList { height: 1fr; }
    """

    def __init__(self, title: str, options: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._options = options

    def compose(self) -> ComposeResult:
        """A filter and the list."""
        with Vertical() as box:
            box.border_title = self._title
            yield Input(placeholder="filter", compact=True)
            yield OptionList(markup=False)

    def on_mount(self) -> None:
        """Show all."""
        self._fill()

    @on(Input.Changed)
    def _fill(self) -> None:
        wanted = self.typed.lower().split()
        found = [(i, shown) for i, shown in self._options if all(word in shown.lower() for word in wanted)]
        options = self.options
        options.clear_options()
        options.add_options(
            [Option(Text(escape_controls(shown), no_wrap=True, overflow="ellipsis"), id=i) for i, shown in found]
        )
        options.highlighted = 0 if found else None

    def choose(self, at: int | None, option_id: str | None) -> None:  # noqa: ARG002
        """That one."""
        if option_id is not None:
            self.dismiss(option_id)
