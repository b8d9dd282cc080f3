"""The picker screen: choose one option from a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text
from textual import on
from textual.containers import Vertical
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgechat.terminal import escape_controls
from edgechat.tui.row_text import contains_words
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput

if TYPE_CHECKING:
    from textual.app import App, ComposeResult


class PickerScreen(FilterListScreen[str | None]):
    """List of options. Its result is the ID of the chosen option, or None after Esc."""

    DEFAULT_CSS = """
    PickerScreen > Vertical { width: 80%; max-width: 90; height: 80%; }
    """

    def __init__(
        self, title: str, options: Sequence[tuple[str, str]], current: str | None = None,
        on_highlighted: Callable[[str], object] = lambda option_id: None,
    ) -> None:  # fmt: skip
        """`options` are (ID, label) pairs; the option with the ID `current` is marked, and highlighted at the start.

        `on_highlighted` is called with the ID of each option that the user highlights.
        """
        super().__init__()
        self._title = title
        self._options = [(i, f"{label}  (current)" if i == current else label) for i, label in options]
        self._current = current
        self._on_highlighted = on_highlighted

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self._title
            box.border_subtitle = self.format_keys({"enter": "use", "listing.leave": "close"})
            yield FilterInput(placeholder="Filter")
            yield EntryList(markup=False)

    def on_mount(self) -> None:
        self._fill_list()

    @on(Input.Changed)
    def _fill_list(self) -> None:
        matches = [(i, label) for i, label in self._options if contains_words(label, self.filter_text)]
        options = self.options
        options.clear_options()
        options.add_options(
            [Option(Text(escape_controls(label), no_wrap=True, overflow="ellipsis"), id=i) for i, label in matches]
        )
        ids = [i for i, _ in matches]
        options.highlighted = ids.index(self._current) if self._current in ids else 0 if matches else None

    @on(OptionList.OptionHighlighted)
    def _report_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if message.option_id is not None:
            self._on_highlighted(message.option_id)

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if option_id is not None:
            self.dismiss(option_id)


def pick(
    app: App[Any], title: str, options: Sequence[tuple[str, str]], on_chosen: Callable[[str], object],
    *, current: str | None = None, on_highlighted: Callable[[str], object] = lambda option_id: None,
) -> None:  # fmt: skip
    """Show a picker for the (ID, label) pairs `options`; call `on_chosen` with the chosen ID, but not after Esc.

    `on_highlighted` is called with the ID of each highlighted option, and with `current` after Esc.
    """

    def report_choice(option_id: str | None) -> None:
        if option_id is not None:
            on_chosen(option_id)
        elif current is not None:
            on_highlighted(current)

    app.push_screen(PickerScreen(title, options, current, on_highlighted), report_choice)
