"""One-line input for the path of a folder or a file, which suggests the rest of the path."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from textual.suggester import Suggester

from edgechat.tui.widgets.filter_input import FilterInput

if TYPE_CHECKING:
    from textual.events import Key


class _PathSuggester(Suggester):
    """Suggests the first folder or file whose path starts with the typed text."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        from edgechat.tui.completion import complete_path

        paths = await asyncio.to_thread(complete_path, value) if value else []
        return next((path for path in paths if path.startswith(value) and path != value), None)


class PathInput(FilterInput):
    """Input for a path. Tab accepts the suggestion, and Right at the end of the text, too."""

    def __init__(self, *, placeholder: str, id: str | None = None) -> None:  # noqa: A002
        super().__init__(placeholder=placeholder, id=id)
        self.suggester = _PathSuggester()

    async def on_key(self, event: Key) -> None:
        if event.key == "tab":
            event.prevent_default()
            event.stop()
            self.action_end()
            self.action_cursor_right()
            return
        await super().on_key(event)
