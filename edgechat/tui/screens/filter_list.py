"""Base class of screens that show a list and an input to filter it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widgets import Input, OptionList

from edgechat.tui.screens.modal import Modal

if TYPE_CHECKING:
    from textual.timer import Timer

T = TypeVar("T")
_TYPING_PAUSE_S: Final = 0.15


class FilterListScreen(Modal[T]):
    """Screen with a filter `Input` and an `OptionList`. Up and Down move in the list, Enter chooses, Esc closes."""

    DEFAULT_CSS = """
    FilterListScreen { align: center middle; background: $background 60%; }
    FilterListScreen > Vertical {
        width: 100%; height: 100%; border: round $border; padding: 0 1; background: $surface;
    }
    FilterListScreen OptionList { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="listing.leave"),
        Binding("down", "move(1)", "Down", id="listing.down", show=False),
        Binding("up", "move(-1)", "Up", id="listing.up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="listing.page_down", show=False),
        Binding("pageup", "page(-1)", "Page up", id="listing.page_up", show=False),
        Binding("ctrl+home", "jump(0)", "Go to the first row", id="listing.first", show=False),
        Binding("ctrl+end", "jump(-1)", "Go to the last row", id="listing.last", show=False),
    ]

    _typing_timer: Timer | None = None

    def after_typing_pause(self, work: Callable[[], object] | None) -> None:
        """Call `work` after a pause in typing. A new call replaces a pending one; None only cancels it."""
        if self._typing_timer is not None:
            self._typing_timer.stop()
        self._typing_timer = self.set_timer(_TYPING_PAUSE_S, work) if work is not None else None

    @property
    def options(self) -> OptionList:
        return self.query_one(OptionList)

    @property
    def highlighted_id(self) -> str:
        """ID of the highlighted option; "" if there is none."""
        option = self.options.highlighted_option
        return (option.id or "") if option is not None else ""

    @property
    def list_width(self) -> int:
        """Width of a row of the list in columns; 0 before the first layout."""
        return self.options.scrollable_content_region.width

    @property
    def filter_text(self) -> str:
        """Text in the filter input."""
        return self.query_one(Input).value

    def choose(self, index: int | None, option_id: str | None) -> None:
        """Handle Enter or a click on an option; both arguments are None if no option is highlighted."""
        raise NotImplementedError

    def action_move(self, step: int) -> None:
        self.options.action_cursor_down() if step > 0 else self.options.action_cursor_up()

    def action_page(self, direction: int) -> None:
        self.options.action_page_down() if direction > 0 else self.options.action_page_up()  # type: ignore[no-untyped-call]

    def action_jump(self, index: int) -> None:
        self.options.action_first() if index == 0 else self.options.action_last()

    def action_leave(self) -> None:
        self.dismiss(None)

    @on(Input.Submitted)
    def _on_filter_submitted(self) -> None:
        index = self.options.highlighted
        self.choose(index, self.options.get_option_at_index(index).id if index is not None else None)

    @on(OptionList.OptionSelected)
    def _on_option_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self.choose(message.option_index, message.option_id)
