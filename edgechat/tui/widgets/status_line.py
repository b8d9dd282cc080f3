"""The status line above the prompt: current activity, generation speed and use of the context."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from textual.widgets import Static

from edgechat.terminal import escape_controls

# Minimum time between two updates while a reply is generated.
_UPDATE_INTERVAL_S: Final = 0.25
# A speed measured over a shorter time is mostly noise.
_MIN_SPEED_TIME_S: Final = 0.2
# Narrower lines leave out the name of the model.
_MODEL_NAME_COLUMNS: Final = 60
_KEY_HINT: Final = "y copy  c code  e edit  r retry  b branch  d delete  Enter: write"
_SHORT_KEY_HINT: Final = "y c e r b d   Enter: write"


class StatusContext(NamedTuple):
    """State of the chat that the line shows in addition to the current activity."""

    shows_message_keys: bool
    """True if keys act on a message: the line then lists these keys instead of the state."""
    unsent: Sequence[str]
    """What the composer holds: an edit, queued messages, attachments."""
    shows_end: bool
    """True if the end of the conversation is visible."""
    n_ctx: int | None
    """Context length of the loaded model in tokens; None without a model."""
    model_name: str
    download: str
    """Progress of a download; empty without one."""


class StatusLine(Static):
    """One line of fixed height, so that an update never lays out the screen."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 2; color: $text-muted; }
    """

    def __init__(self, context: Callable[[], StatusContext]) -> None:
        super().__init__("", id="live", markup=False)
        self._read_context = context
        self.state = "Starting"
        self.detail = ""
        self.context_tokens = 0
        self._drawn_at = 0.0
        self._first_token_at = 0.0
        self._n_tokens = 0

    def on_resize(self) -> None:
        self.redraw()

    def show_state(self, state: str, detail: str = "") -> None:
        """Show another activity, with a detail such as the speed of the last reply."""
        self.state, self.detail = state, detail
        self.redraw()

    def start_reply(self) -> None:
        """Reset the speed measurement for a new reply."""
        self._n_tokens, self._first_token_at = 0, 0.0

    def count_tokens(self, n_tokens: int, *, is_reasoning: bool) -> None:
        """Add generated tokens, and update the speed and the use of the context."""
        now = time.monotonic()
        if not self._first_token_at:
            # The tokens of the first event do not count for the speed: the time starts after them.
            self._first_token_at, self._n_tokens = now, -n_tokens
        self._n_tokens += n_tokens
        self.context_tokens += n_tokens
        if now - self._drawn_at >= _UPDATE_INTERVAL_S:
            elapsed_s = now - self._first_token_at
            is_measured = elapsed_s > _MIN_SPEED_TIME_S and self._n_tokens > 0
            speed = f"{self._n_tokens / elapsed_s:.0f} tokens/s" if is_measured else ""
            self.show_state("Reasoning" if is_reasoning else "Generating", speed)

    def redraw(self) -> None:
        """Update the line from the current state of the chat."""
        self._drawn_at = time.monotonic()
        context = self._read_context()
        if context.shows_message_keys:
            self._show(_KEY_HINT if self.size.width >= len(_KEY_HINT) + 4 else _SHORT_KEY_HINT)
            return
        parts = [self.state, self.detail, *context.unsent]
        if not context.shows_end:
            parts.append("More below (Ctrl+End)")
        if context.n_ctx is not None:
            parts.append(f"context {self.context_tokens}/{context.n_ctx}")
            if self.size.width >= _MODEL_NAME_COLUMNS:
                parts.append(context.model_name)
        parts.append(context.download)
        self._show("  ".join(part for part in parts if part))

    def _show(self, text: str) -> None:
        self.update(escape_controls(text).replace("\n", " "), layout=False)
