"""The status line above the prompt: current activity, generation speed and context usage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from textual.widgets import Static

from edgechat.terminal import escape_controls

# Minimum time between two updates while a reply is generated.
_UPDATE_INTERVAL_S: Final = 0.25
# Minimum duration of a speed measurement; shorter measurements are mostly noise.
_MIN_MEASUREMENT_S: Final = 0.2
# Minimum width in columns to show the name of the model.
_MODEL_NAME_COLUMNS: Final = 60
_KEY_HINT: Final = "y copy  c code  e edit  r retry  b branch  d delete  Enter: write"
_SHORT_KEY_HINT: Final = "y c e r b d   Enter: write"


class ChatStatus(NamedTuple):
    """State of the chat that the status line shows in addition to the current activity."""

    shows_message_keys: bool
    """True if the line lists the keys that act on a message, instead of the state of the chat."""
    composer_status: Sequence[str]
    """Short texts about the edit, the queued messages and the attachments."""
    shows_end: bool
    """True if the last row of the conversation is visible."""
    n_ctx: int | None
    """Context length in tokens; None if no model is loaded."""
    model_name: str
    download_status: str
    """Progress of the download; empty if no download is running."""


class StatusLine(Static):
    """Status text in one row of fixed height, so that an update does not lay out the screen again."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 2; color: $text-muted; }
    """

    def __init__(self, read_status: Callable[[], ChatStatus]) -> None:
        super().__init__("", id="live", markup=False)
        self._read_status = read_status
        self.state = "Starting"
        self.detail = ""
        self.context_tokens = 0
        self._drawn_at = 0.0
        self._first_token_at = 0.0
        self._n_tokens = 0

    def on_resize(self) -> None:
        self.redraw()

    def show_state(self, state: str, detail: str = "") -> None:
        """Show `state`, the current activity, and `detail`, such as the speed of the last reply."""
        self.state, self.detail = state, detail
        self.redraw()

    def start_reply(self) -> None:
        """Reset the speed measurement for a new reply."""
        self._n_tokens, self._first_token_at = 0, 0.0

    def count_tokens(self, n_tokens: int, *, is_reasoning: bool) -> None:
        """Count generated tokens, and update the displayed speed and context usage."""
        now = time.monotonic()
        if not self._first_token_at:
            # The speed excludes the tokens of the first event, because the measurement starts when they arrive.
            self._first_token_at, self._n_tokens = now, -n_tokens
        self._n_tokens += n_tokens
        self.context_tokens += n_tokens
        if now - self._drawn_at >= _UPDATE_INTERVAL_S:
            elapsed_s = now - self._first_token_at
            is_measured = elapsed_s > _MIN_MEASUREMENT_S and self._n_tokens > 0
            speed = f"{self._n_tokens / elapsed_s:.0f} tokens/s" if is_measured else ""
            self.show_state("Reasoning" if is_reasoning else "Generating", speed)

    def redraw(self) -> None:
        """Update the line from the current state of the chat."""
        self._drawn_at = time.monotonic()
        status = self._read_status()
        if status.shows_message_keys:
            self._show(_KEY_HINT if self.size.width >= len(_KEY_HINT) + 4 else _SHORT_KEY_HINT)
            return
        parts = [self.state, self.detail, *status.composer_status]
        if not status.shows_end:
            parts.append("More below (Ctrl+End)")
        if status.n_ctx is not None:
            parts.append(f"context {self.context_tokens}/{status.n_ctx}")
            if self.size.width >= _MODEL_NAME_COLUMNS:
                parts.append(status.model_name)
        parts.append(status.download_status)
        self._show("  ".join(part for part in parts if part))

    def _show(self, text: str) -> None:
        self.update(escape_controls(text).replace("\n", " "), layout=False)
