"""The input: several lines; Enter sends, Ctrl+J makes a new line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import TextArea

if TYPE_CHECKING:
    from textual.events import Key


class Prompt(TextArea):
    """A multi-line editor that grows with its text."""

    DEFAULT_CSS = """
    Prompt { height: auto; min-height: 3; max-height: 10; border: round $primary; }
    """

    class Sent(Message):
        """The user sent a message."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str) -> None:  # noqa: A002  (Textual's name)
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Enter sends, Ctrl+J new line, Esc stops, Ctrl+Q quits",
        )

    async def _on_key(self, event: Key) -> None:
        # Not bindings with priority: those act when a key arrives, while the letters before it still wait in
        # this widget's queue. A line and its Enter that come in one packet would be torn apart.
        if event.key == "enter":
            self.action_send()
        elif event.key == "ctrl+j":
            self.insert("\n")
        elif event.key == "ctrl+d" and not self.text:
            await self.app.action_quit()
        else:
            await super()._on_key(event)
            return
        event.prevent_default()
        event.stop()

    def action_send(self) -> None:
        """Hand the text over, if there is any."""
        text = self.text.strip()
        if text:
            self.clear()
            self.post_message(self.Sent(text))
