"""Post the events of one reply as Textual messages, with text in batches at the rate of the screen's repaints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgechat.chat.thinking_progress import ThinkingProgress
from edgechat.tui import messages

if TYPE_CHECKING:
    from textual.message import Message

    from edgechat.chat.events import (
        PromptProgressed,
        ReplyTextGenerated,
        SessionEvent,
        TurnFinished,
        TurnInterrupted,
    )
    from edgechat.chat.session import Session
    from edgechat.tui.paint_pace import PaintPace


class ReplyStream:
    """Converts session events to Textual messages, in the worker thread that generates the reply."""

    def __init__(self, post: Callable[[Message], object], pace: PaintPace) -> None:
        """Create a stream that posts text at the interval of `pace`, after the screen has received the last text."""
        self._post = post
        self._pace = pace
        self._prefill = _PrefillProgress()
        self._thinking = ThinkingProgress()
        self._text = ""
        self._reasoning = ""
        self._n_tokens = 0
        self._drafts = ""
        self._lock = threading.Lock()
        """Protects the collected text, which the event loop's thread posts if the model pauses."""
        self._posted_at = 0.0  # initially far in the past, so that the first text is posted at once
        self.has_started = False
        """True once the user's message and an empty reply are saved."""

    def run(self, session: Session, reply: Iterator[SessionEvent]) -> TurnFinished | TurnInterrupted | None:
        """Post all events of a reply, and return the event that ends it; None if the stream has no such event.

        Raises EdgechatError.
        """
        from edgechat.chat import events

        turn: TurnFinished | TurnInterrupted | None = None
        try:
            for event in reply:
                self._thinking.add(event)
                if isinstance(event, events.TurnStarted):
                    if self.has_started:  # a route escalates: the text so far belongs to the first reply
                        with self._lock:
                            self._post_text()
                    self.has_started = True
                    self._post(messages.ReplyStarted(messages.ConversationView.from_session(session), event.reply.id))
                elif isinstance(event, events.ReplyTextGenerated):
                    self._add_text(event)
                elif isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                    turn = event
                elif isinstance(event, (events.ReplyPicked, events.ReplyRouted)):
                    continue  # its note belongs below the reply, which is shown at the end
                else:
                    self._post_progress(event)
        finally:
            with self._lock:
                self._post_text()
        if turn is not None:  # the tree contains the saved reply only after the last event
            self._post(messages.ReplyEnded(turn, messages.ConversationView.from_session(session)))
            if turn.picked is not None:
                self._post(messages.NoteAdded(events.format_notice(turn.picked)))
            if turn.routed is not None and turn.routed.notice:
                self._post(messages.NoteAdded(turn.routed.notice))
        return turn

    def _add_text(self, event: ReplyTextGenerated) -> None:
        with self._lock:
            if event.reply_index == 0:
                self._text += event.text
                self._reasoning += event.reasoning
                self._n_tokens += event.n_tokens
                if event.n_tokens:
                    self._drafts = event.drafts
            self._post_text_if_due()

    def post_held_text(self) -> None:
        """Post the text that waits for the next repaint, because the model may pause. Any thread may call this."""
        with self._lock:
            if self._text or self._reasoning or self._n_tokens:
                self._post_text_if_due()

    def _post_text_if_due(self) -> None:
        if time.monotonic() - self._posted_at >= self._pace.interval_s and self._pace.is_painted.is_set():
            self._pace.is_painted.clear()
            self._post_text()

    def _post_text(self) -> None:
        thinking, pick = self._thinking.text, self._thinking.pick_text
        self._post(messages.TextArrived(self._text, self._reasoning, self._n_tokens, thinking, pick, self._drafts))
        self._text, self._reasoning, self._n_tokens, self._posted_at = "", "", 0, time.monotonic()

    def _post_progress(self, event: SessionEvent) -> None:
        from edgechat.chat import events

        status = (
            self._prefill.status(event) if isinstance(event, events.PromptProgressed) else events.format_progress(event)
        )
        if status:
            self._post(messages.StatusChanged(status))
        # A row below the question says what was searched or read.
        notice = event.hint if isinstance(event, events.DocumentsSearched) else events.format_notice(event)
        if notice:
            self._post(messages.NoteAdded(notice))


class _PrefillProgress:
    """Estimates the remaining prefill time from the measured speed."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        """Time and number of processed tokens at the first event."""

    def status(self, event: PromptProgressed) -> str:
        """Return the status text: number of processed tokens and remaining time."""
        text = f"Reading {event.done_tokens} of {event.total_tokens} tokens"
        now = time.monotonic()
        if self._start is None:
            self._start = now, event.done_tokens
        elapsed_s, n_processed_tokens = now - self._start[0], event.done_tokens - self._start[1]
        if n_processed_tokens > 0 and elapsed_s > 0:
            remaining_s = (event.total_tokens - event.done_tokens) * elapsed_s / n_processed_tokens
            text += f", {remaining_s:.0f} s left" if remaining_s >= 1 else ""
        return text
