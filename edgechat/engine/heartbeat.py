"""Heartbeats of the engine process, which exits if its main thread makes no progress.

The client kills an engine without heartbeats. The main thread alone can also hang, in a library call that never
returns; then only this process knows what the thread is doing, and how long that may take.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from edgechat.engine.hang_detector import TICK_S
from edgechat.engine.protocol import Event, Heartbeat
from edgechat.process import EXIT_STALLED
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity

# Work that may take long: it computes, or reads or copies much memory.
LONG_ACTIVITIES: Final = frozenset({
    Activity.LOADING, Activity.COMPUTING, Activity.RESIZING, Activity.DRAFTING, Activity.DRAFTING_ON_GPU,
    Activity.OPENING_DRAFTER,
})  # fmt: skip
# Limits for the time without progress, in ticks: for all work, and for work other than `LONG_ACTIVITIES`. On a
# Raspberry Pi, a batch of 512 tokens of an 8B model takes 430 s and reading 4 GB of saved prefixes from its card 200 s.
MAX_COMPUTE_TICKS: Final = 900
MAX_OTHER_TICKS: Final = 300


class HeartbeatThread:
    """Sends a Heartbeat every second while requests are in progress. All methods can be called from any thread."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        """Create the thread without starting it."""
        self._send = send
        self._n_requests = 0
        self._n_steps = 0
        self._condition = threading.Condition()

    def start(self) -> None:
        """Start the thread that sends the heartbeats."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def add_request(self) -> None:
        """Record that a request has arrived."""
        with self._condition:
            self._n_requests += 1
            self._condition.notify()

    def remove_request(self) -> None:
        """Record that the final event of a request was sent."""
        with self._condition:
            self._n_requests -= 1

    def record_progress(self) -> None:
        """Record that the main thread has finished a step of its work."""
        self._n_steps += 1

    def _run(self) -> None:
        n_steps, n_ticks, n_other_ticks = 0, 0, 0
        while True:
            with self._condition:
                if not self._n_requests:
                    n_ticks = n_other_ticks = 0
                    self._condition.wait_for(lambda: self._n_requests)
            time.sleep(TICK_S)
            # If the client of a private engine is stopped, this write waits, so that no ticks are counted while the
            # main thread waits, too.
            self._send(Heartbeat(id=0))
            if n_steps != self._n_steps:
                n_steps, n_ticks, n_other_ticks = self._n_steps, 0, 0
                continue
            n_ticks += 1
            n_other_ticks += not activity.read_state().activities & LONG_ACTIVITIES
            if n_ticks >= MAX_COMPUTE_TICKS or n_other_ticks >= MAX_OTHER_TICKS:
                print(f"No progress for {n_ticks * TICK_S:g} s", file=sys.stderr, flush=True)  # noqa: T201  (the log)
                activity.record_exit(EXIT_STALLED)
                os._exit(EXIT_STALLED)
