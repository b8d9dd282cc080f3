"""The status line above the prompt: current activity, generation speed and context usage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from edgechat.terminal import escape_controls
from edgechat.tui.widgets.title_line import shorten_model_name

# Minimum time between two updates while a reply is being generated.
_UPDATE_INTERVAL_S: Final = 0.25
# Minimum duration of a speed measurement; shorter measurements are mostly noise.
_MIN_MEASUREMENT_S: Final = 0.2
# Minimum width in columns to show the name of the model.
_MODEL_NAME_COLUMNS: Final = 60
# Columns to which the name of the model is not shortened further.
_MIN_NAME_COLUMNS: Final = 16
_BAR_COLUMNS: Final = 8
# Used shares of the context from which the bar has the colour of a warning, or the colour of an error.
_WARNING_SHARE: Final = 0.75
_ERROR_SHARE: Final = 0.9


class ChatStatus(NamedTuple):
    """State of the chat that the status line shows in addition to the current activity."""

    message_keys: str
    """Keys that act on a message, which the line shows instead of the state of the chat; "" to show the state."""
    composer_status: Sequence[str]
    """Short texts about the edit, the queued messages and the attachments."""
    shows_end: bool
    """True if the last row of the conversation is visible."""
    n_ctx: int | None
    """Context length in tokens; None if no model is loaded, and for a remote model."""
    has_model: bool
    """True if the chat can generate replies."""
    model_name: str
    """Name of the model; "" if the title line shows it."""
    bar_glyphs: tuple[str, str]
    """Characters for a used and a free part of the context."""
    download_status: str
    """Progress of the download; empty if no download is running."""


class StatusLine(Static):
    """Status text in one row of fixed height, so that an update does not lay out the screen again."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 2; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, read_status: Callable[[], ChatStatus], on_redraw: Callable[[], object]) -> None:
        """`on_redraw` is called when the state of the chat may have changed."""
        super().__init__("", id="live", markup=False)
        self._read_status = read_status
        self._on_redraw = on_redraw
        self.state = "Starting"
        self.detail = ""
        self.context_tokens = 0
        self._drawn_at = 0.0
        self._first_token_at = 0.0
        self._n_tokens = 0

    def on_resize(self) -> None:
        self.redraw()

    def show_state(self, state: str, detail: str = "") -> None:
        """Show `state`, the current activity, and `detail`, such as the speed of the last reply.

        If the line is full, a part in brackets at the end of `detail`, such as the gain from drafts, is left out first.
        If that is not enough, as with a long warning, the used context comes before `detail`.
        """
        self.state, self.detail = state, detail
        self.redraw()

    def start_reply(self) -> None:
        """Reset the speed measurement for a new reply."""
        self._n_tokens, self._first_token_at = 0, 0.0

    def count_tokens(self, n_tokens: int, activity: str, drafts: str = "") -> None:
        """Count generated tokens, and update the displayed activity, speed and context usage.

        `drafts` is what drafts have gained, and follows the speed; "" without a gain.
        """
        now = time.monotonic()
        if not self._first_token_at:
            # The speed excludes the tokens of the first event, because the measurement starts when they arrive.
            self._first_token_at, self._n_tokens = now, -n_tokens
        self._n_tokens += n_tokens
        self.context_tokens += n_tokens
        if now - self._drawn_at >= _UPDATE_INTERVAL_S:
            elapsed_s = now - self._first_token_at
            is_measured = elapsed_s > _MIN_MEASUREMENT_S and self._n_tokens > 0
            gain = f" ({drafts})" if drafts else ""
            speed = f"{self._n_tokens / elapsed_s:.0f} tokens/s{gain}" if is_measured else ""
            self.show_state(activity, speed)

    def redraw(self) -> None:
        """Update the line from the current state of the chat."""
        self._drawn_at = time.monotonic()
        status = self._read_status()
        self._on_redraw()
        if status.message_keys:
            self.update(_one_line(status.message_keys), layout=False)
            return
        # In the order of their importance, because the end of a full line is cut off.
        n_ctx = status.n_ctx
        context = format_context(self.context_tokens, n_ctx, status.bar_glyphs) if n_ctx is not None else ""
        parts: list[str | Content] = [self.state, self.detail, context, *status.composer_status]
        if not status.shows_end:
            parts.append("More below (Ctrl+End)")
        if _count_columns(parts) > self.size.width:
            parts[1] = _remove_brackets(self.detail)
            if _count_columns(parts[:3]) > self.size.width:
                parts[1], parts[2] = parts[2], parts[1]
        if status.has_model and self.size.width >= _MODEL_NAME_COLUMNS:
            n_free = self.size.width - _count_columns(parts) - 2
            ellipsis = "..." if self.app.has_class("ascii") else "…"
            parts.append(shorten_model_name(status.model_name, max(_MIN_NAME_COLUMNS, n_free), ellipsis))
        parts.append(status.download_status)
        texts = [_one_line(part) if isinstance(part, str) else part for part in parts if part]
        self.update(Content("  ").join(texts) if context else "  ".join(map(str, texts)), layout=False)


def format_context(n_tokens: int, n_ctx: int, glyphs: tuple[str, str]) -> Content:
    """Format the used context as a bar and numbers; in the colour of a warning from 75 % on, of an error from 90 % on.

    `glyphs` are the characters for a used and a free part.
    """
    share = n_tokens / max(1, n_ctx)
    n_used = min(_BAR_COLUMNS, round(share * _BAR_COLUMNS)) or (1 if n_tokens else 0)
    bar = glyphs[0] * n_used + glyphs[1] * (_BAR_COLUMNS - n_used)
    if share < _WARNING_SHARE:
        return Content(f"context {bar} {n_tokens}/{n_ctx}")
    style = "$text-error" if share >= _ERROR_SHARE else "$text-warning"
    label = "nearly full" if share >= _ERROR_SHARE else f"{int(share * 100)} % full"
    return Content.styled(f"context {bar} {n_tokens}/{n_ctx} {label}", style)


def _count_columns(parts: Sequence[str | Content]) -> int:
    """Return the width of the parts in a line, with two columns between them."""
    return sum(cell_len(str(part)) + 2 for part in parts if part) - 2


def _remove_brackets(text: str) -> str:
    """Remove a part in brackets at the end of a text."""
    return text.rpartition(" (")[0] or text if text.endswith(")") else text


def _one_line(text: str) -> str:
    return escape_controls(text).replace("\n", " ")
