"""Detection of an engine process that hangs: it is alive, but neither works on its requests nor ends.

The client counts seconds itself instead of reading a clock, so that time in which the machine sleeps or the whole
program is stopped does not count. While requests are in progress, the engine sends a Heartbeat every second.
"""

from __future__ import annotations

from typing import Final

TICK_S: Final = 1.0
"""Interval of heartbeats, and of the calls of `HangDetector.tick`."""
# Limits, in ticks, for a process that was stopped by a signal, sends no heartbeat, is starting, or does not end
# cancelled requests. A stopped process cannot continue by itself. On a small board that swaps memory, heartbeats can be
# seconds late, and the start can take a minute. A running computation checks for a cancellation after each matrix
# product, which takes up to 5 s on a Raspberry Pi.
STOPPED_TICKS: Final = 10
SILENT_TICKS: Final = 60
START_TICKS: Final = 180
CANCELLED_TICKS: Final = 10


class HangDetector:
    """Counts the seconds without a sign of life of one engine process. `record_frame` can be called from any thread."""

    def __init__(self) -> None:
        self._has_started = False
        self._has_new_frame = False
        self._n_silent = 0
        self._n_stopped = 0
        self._n_cancelled = 0

    def record_frame(self) -> None:
        """Record that the engine sent any frame."""
        self._has_started = self._has_new_frame = True

    def reset(self) -> None:
        """Reset the counters, because no request is in progress."""
        self._n_silent = self._n_stopped = self._n_cancelled = 0

    def tick(self, *, is_stopped: bool, all_cancelled: bool, is_resizing: bool = False) -> str:
        """Count a second in which requests were in progress; return the reason if the process hangs, otherwise "".

        `is_stopped` is True if the process was stopped by a signal, and `all_cancelled` if all its requests should end.
        Their time limit is suspended while `is_resizing`, because a resize of the context cannot be aborted.
        """
        self._n_silent = 0 if self._has_new_frame else self._n_silent + 1
        self._has_new_frame = False
        self._n_stopped = self._n_stopped + 1 if is_stopped else 0
        self._n_cancelled = self._n_cancelled + (not is_resizing) if all_cancelled else 0
        if self._n_stopped >= STOPPED_TICKS:
            return f"it was suspended for {self._n_stopped * TICK_S:g} s"
        if self._n_cancelled >= CANCELLED_TICKS:
            return f"it did not end a cancelled request within {self._n_cancelled * TICK_S:g} s"
        max_silent_ticks = SILENT_TICKS if self._has_started else START_TICKS
        if self._n_silent >= max_silent_ticks:
            return f"it did not respond for {self._n_silent * TICK_S:g} s"
        return ""
