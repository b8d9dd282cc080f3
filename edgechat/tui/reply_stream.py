"""Posts the events of one reply as messages, in batches that the screen can paint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from edgechat.tui import messages

if TYPE_CHECKING:
    import threading

    from textual.message import Message

    from edgechat.chat.events import (
        PromptProgressed,
        ReplyTextGenerated,
        SessionEvent,
        TurnFinished,
        TurnInterrupted,
    )
    from edgechat.chat.session import Session

# Text reaches the screen about twelve times a second: more is not readable, and every repaint costs.
PAINT_INTERVAL_S: Final = 0.08


class ReplyStream:
    """Runs in the worker thread that generates the reply."""

    def __init__(self, post: Callable[[Message], object], is_painted: threading.Event) -> None:
        """`is_painted` is set by the screen once it has painted the last `TextArrived`."""
        self._post = post
        self._is_painted = is_painted
        self._prefill = _PrefillProgress()
        self._text = ""
        self._reasoning = ""
        self._n_tokens = 0
        self._posted_at = 0.0  # initially far in the past, so that the first text is posted at once
        self.has_started = False
        """True once the message and an empty reply are saved."""

    def run(self, session: Session, reply: Iterator[SessionEvent]) -> TurnFinished | TurnInterrupted | None:
        """Post all events of a reply; returns the last one, or None without one. Raises EdgechatError."""
        from edgechat.chat import events

        turn: TurnFinished | TurnInterrupted | None = None
        try:
            for event in reply:
                if isinstance(event, events.TurnStarted):
                    self.has_started = True
                    self._post(messages.ReplyStarted(messages.ConversationView.of(session), event.reply.id))
                elif isinstance(event, events.ReplyTextGenerated):
                    self._add(event)
                elif isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                    turn = event
                else:
                    self._report(event)
        finally:
            self._post_text()
        if turn is not None:  # only now does the tree hold the saved reply
            self._post(messages.ReplyEnded(turn, messages.ConversationView.of(session)))
        return turn

    def _add(self, event: ReplyTextGenerated) -> None:
        if event.reply_index == 0:
            self._text += event.text
            self._reasoning += event.reasoning
            self._n_tokens += event.n_tokens
        if time.monotonic() - self._posted_at >= PAINT_INTERVAL_S and self._is_painted.is_set():
            self._is_painted.clear()
            self._post_text()

    def _post_text(self) -> None:
        self._post(messages.TextArrived(self._text, self._reasoning, self._n_tokens))
        self._text, self._reasoning, self._n_tokens, self._posted_at = "", "", 0, time.monotonic()

    def _report(self, event: SessionEvent) -> None:
        from edgechat.chat import events

        status = (
            self._prefill.status(event) if isinstance(event, events.PromptProgressed) else events.progress_text(event)
        )
        if status:
            self._post(messages.StatusChanged(status))
        notice = events.notice_text(event)
        if notice:
            self._post(messages.NoteAdded(notice))


class _PrefillProgress:
    """Estimates the remaining prefill time from the speed so far."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def status(self, event: PromptProgressed) -> str:
        """Return the text for the status line."""
        text = f"Reading {event.done_tokens} of {event.total_tokens} tokens"
        now = time.monotonic()
        if self._start is None:
            self._start = now, event.done_tokens
        elapsed_s, n_done = now - self._start[0], event.done_tokens - self._start[1]
        if n_done > 0 and elapsed_s > 0:
            remaining_s = (event.total_tokens - event.done_tokens) * elapsed_s / n_done
            text += f", {remaining_s:.0f} s left" if remaining_s >= 1 else ""
        return text
