"""One of many: a list that is narrowed by what is typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgechat.chat.visible import visible

if TYPE_CHECKING:
    from textual.app import ComposeResult


class PickScreen(ModalScreen[str | None]):
    """Ends with what was chosen, or None."""

    DEFAULT_CSS = """
    PickScreen { align: center middle; background: $background 60%; }
    PickScreen > Vertical { width: 80%; max-width: 90; height: 80%; border: round $border; padding: 0 1; background: $surface; }
    PickScreen OptionList { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", id="pick.leave"),
        Binding("down", "move(1)", "Down", id="pick.down", show=False),
        Binding("up", "move(-1)", "Up", id="pick.up", show=False),
    ]

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
        wanted = self.query_one(Input).value.lower().split()
        found = [(i, shown) for i, shown in self._options if all(word in shown.lower() for word in wanted)]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(
            [Option(Text(visible(shown), no_wrap=True, overflow="ellipsis"), id=i) for i, shown in found]
        )
        options.highlighted = 0 if found else None

    def action_move(self, step: int) -> None:
        """In the list, from the filter too."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    @on(Input.Submitted)
    def _on_submitted(self) -> None:
        options = self.query_one(OptionList)
        if options.highlighted is not None:
            self.dismiss(options.get_option_at_index(options.highlighted).id)

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self.dismiss(message.option_id)

    def action_leave(self) -> None:
        """Nothing."""
        self.dismiss(None)
