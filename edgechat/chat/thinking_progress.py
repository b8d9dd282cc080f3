"""Progress of a reply as short texts: time and limit of its reasoning, and the finished ones of several replies."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgechat.chat.events import (
    PickProgressed,
    PickStarted,
    ReplyTextGenerated,
    SessionEvent,
    ThinkingLimited,
    format_progress,
)


class ThinkingProgress:
    """Counts the tokens and the time of the reasoning in the first reply of a turn, from the events of the turn."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = ThinkingLimited()
        self._is_thinking = False
        self._started_at: float | None = None
        self._n_tokens = 0
        self.text = ""
        """Text such as `Reasoning 12 s of 20 s`; "" while the model is not reasoning."""
        self.pick_text = ""
        """Text such as `2 of up to 5 replies finished`; "" if no reply is picked."""

    def add(self, event: SessionEvent) -> None:
        """Update the texts from the next event of the turn."""
        if isinstance(event, (PickStarted, PickProgressed)):
            self.pick_text = format_progress(event)
        elif isinstance(event, ThinkingLimited):
            self._limit = event
        elif isinstance(event, ReplyTextGenerated) and event.reply_index == 0:
            self._is_thinking = not event.text and (self._is_thinking or bool(event.reasoning))
            if not self._is_thinking:
                self.text = ""
                return
            self._started_at = self._clock() if self._started_at is None else self._started_at
            self._n_tokens += event.n_tokens
            self.text = self._format(self._clock() - self._started_at)

    def _format(self, elapsed_s: float) -> str:
        """Name the limit of which the larger share is used, or only the time without a limit."""
        max_tokens, max_s = self._limit.max_tokens, self._limit.max_s
        token_share = self._n_tokens / max(1, max_tokens) if max_tokens is not None else -1.0
        if max_s is not None and elapsed_s >= token_share * max_s:
            return f"Reasoning {elapsed_s:.0f} s of {max_s:.0f} s"
        if max_tokens is not None:
            return f"Reasoning {min(self._n_tokens, max_tokens):,} of {max_tokens:,} tokens"
        return f"Reasoning {elapsed_s:.0f} s"
