"""Filter input whose editing keys act in the order in which they were typed, even after fast typing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.binding import Binding
from textual.widgets import Input

if TYPE_CHECKING:
    from textual.events import Key

# Actions of editing keys. Enter is not one of them: it must wait until the list is filled for the last change.
_EDITING_ACTIONS: Final = {
    key: binding.action
    for binding in Input.BINDINGS
    if isinstance(binding, Binding) and binding.action != "submit"
    for key in binding.key.split(",")
}


class FilterInput(Input):
    """One-line input that runs the actions of editing keys at once.

    Textual runs these actions after all letters that arrived in the same packet, so that Backspace or Ctrl+U would also
    delete letters that were typed after it.
    """

    def __init__(self, text: str = "", *, placeholder: str, id: str | None = None) -> None:  # noqa: A002
        """`text` is the initial text."""
        super().__init__(text, placeholder=placeholder, id=id, compact=True, select_on_focus=False)

    async def on_key(self, event: Key) -> None:
        action = None if event.is_printable else _EDITING_ACTIONS.get(event.key)
        if action is not None:
            event.prevent_default()
            event.stop()
            await self.run_action(action)
