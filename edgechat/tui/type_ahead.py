"""Keys that are typed while a list or a screen opens go to its input, not to the part of the screen behind it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from textual import events

from edgechat.tui.textual_private import CrashReportApp

if TYPE_CHECKING:
    from textual.widget import Widget

ReturnType = TypeVar("ReturnType")
_OPENING_ACTIONS: Final = {
    *(f"command('{name}')" for name in ("open", "search", "model", "help", "settings", "plan", "persona")),
    "search_history",
    "command_palette",
}
"""Actions of keys that open a screen or a list with an input."""
# Maximum time for which keys are held, in case no input opens; opening one takes 0.1 s on slow machines.
_MAX_WAIT_S: Final = 0.5
_INTERVAL_S: Final = 0.01


class TypeAheadApp(CrashReportApp[ReturnType]):
    """Application that holds keys and pastes after a key that opens an input, until this input has the focus."""

    _waiting_events: list[events.Event] | None = None
    """Events that are held until an input has the focus; None if no input is opening."""

    async def on_event(self, event: events.Event) -> None:
        is_typed = isinstance(event, (events.Key, events.Paste)) and not event.is_forwarded
        if is_typed and self._waiting_events is not None:
            self._waiting_events.append(event)
            return
        if not isinstance(event, events.Key) or not is_typed or not self._opens_input(event):
            await super().on_event(event)
            return
        self._waiting_events = []
        focused = self.focused
        await super().on_event(event)
        await self._release(focused, time.monotonic() + _MAX_WAIT_S)

    def _opens_input(self, event: events.Key) -> bool:
        binding = self.screen.active_bindings.get(event.key) if not event.is_printable else None
        return binding is not None and binding.binding.action in _OPENING_ACTIONS

    async def _release(self, previous: Widget | None, deadline: float) -> None:
        """Handle the held events if the focus has moved from `previous` or the deadline has passed; else try later."""
        if not self.screen_stack:  # the application has ended
            return
        if self.focused in {None, previous} and time.monotonic() < deadline:
            self.set_timer(_INTERVAL_S, lambda: self._release(previous, deadline))
            return
        waiting_events, self._waiting_events = self._waiting_events or [], None
        for event in waiting_events:
            await self.on_event(event)
