"""A list that is narrowed by what is typed above it: what such screens have in common."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from textual import on
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList

T = TypeVar("T")


class FilterListScreen(ModalScreen[T]):
    """Has an `Input` and an `OptionList`. Up and Down move in the list from both, Enter chooses, Esc leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", id="listing.leave"),
        Binding("down", "move(1)", "Down", id="listing.down", show=False),
        Binding("up", "move(-1)", "Up", id="listing.up", show=False),
    ]

    @property
    def options(self) -> OptionList:
        """The list."""
        return self.query_one(OptionList)

    @property
    def typed(self) -> str:
        """What is to narrow it."""
        return self.query_one(Input).value

    def choose(self, at: int | None, option_id: str | None) -> None:
        """Something was chosen: by its place and its id; None if nothing is marked."""
        raise NotImplementedError

    def action_move(self, step: int) -> None:
        """In the list, from the line above it too."""
        self.options.action_cursor_down() if step > 0 else self.options.action_cursor_up()

    def action_leave(self) -> None:
        """Nothing."""
        self.dismiss(None)

    @on(Input.Submitted)
    def _on_line_entered(self) -> None:
        at = self.options.highlighted
        self.choose(at, self.options.get_option_at_index(at).id if at is not None else None)

    @on(OptionList.OptionSelected)
    def _on_option_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self.choose(message.option_index, message.option_id)
