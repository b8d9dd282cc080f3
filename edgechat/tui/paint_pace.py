"""Choose the interval between repaints during a reply, so that painting takes little CPU time from decoding."""

from __future__ import annotations

import threading
import time
from typing import Final

MIN_INTERVAL_S: Final = 0.08
"""Minimum time between two repaints. More than 12 repaints per second would not be easier to read."""
MAX_INTERVAL_S: Final = 0.25
# Fraction of a core that repaints may take. While one core paints, the threads of a decode step wait for each other.
_MAX_CPU_FRACTION: Final = 0.03
# Weight of the last repaint in the moving average of the interval.
_WEIGHT: Final = 0.2


class PaintPace:
    """Interval between repaints of a reply, adapted to the CPU time of the thread that paints."""

    def __init__(self) -> None:
        self.is_painted = threading.Event()
        """Set when the screen has received the last posted text; cleared before the next text is posted."""
        self.is_painted.set()
        self.interval_s = MIN_INTERVAL_S
        self._cpu_s: float | None = None

    def start_reply(self) -> None:
        """Restart the measurement of CPU time at the start of a reply. Call this in the thread that paints."""
        self._cpu_s = None

    def note_text(self) -> None:
        """Record that the screen has received text, and adapt the interval. Call this in the thread that paints."""
        cpu_s = time.thread_time()
        if self._cpu_s is not None:
            interval_s = min(max((cpu_s - self._cpu_s) / _MAX_CPU_FRACTION, MIN_INTERVAL_S), MAX_INTERVAL_S)
            self.interval_s += _WEIGHT * (interval_s - self.interval_s)
        self._cpu_s = cpu_s
        self.is_painted.set()
