"""Estimate the output rate of the terminal from the time for which writes block, and limit output to this rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

CHUNK_CHARS: Final = 1024
"""Maximum length of one write in characters, so that blocking is noticed soon."""
_BLOCKED_S: Final = 0.02
"""Minimum duration of a write that was blocked by the terminal."""
_MEASURED_BYTES: Final = 4096
"""Number of bytes after a blocked write over which the rate is measured. The blocked write itself does not count: a
terminal can stop for any time, for example after Ctrl+S, and be fast afterwards."""
_FAST_BYTES_PER_S: Final = 50_000
"""Minimum rate of a terminal that needs no limit."""
_MIN_BYTES_PER_S: Final = 500
_BUFFER_BYTES: Final = 20_000
"""Number of bytes in the kernel's buffer when a write blocks, measured with pseudo-terminals of Linux 6.18."""
_MAX_DELAY_S: Final = 0.25
"""Maximum time that output may wait in buffers, and so the maximum delay that older output causes for a key press."""
_MIN_BUDGET_BYTES: Final = 64
_MAX_QUEUED_BYTES: Final = 4096
"""Maximum number of bytes in the queue of the writer thread while the rate is unknown."""
_RATE_MAX_AGE_S: Final = 30.0
"""Age at which a measured rate is discarded, because the connection may have become faster."""


class OutputFlow:
    """Limits output to the measured rate of the terminal: counts bytes, and computes how many may be written now.

    One thread calls `count_queued` and `budget`, another one `count_written`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._n_queued = 0
        """Bytes that the kernel has not accepted yet."""
        self._rate: float | None = None
        """Measured bytes per second; None if the terminal is fast or not measured."""
        self._n_buffered = 0.0
        """Estimated number of bytes in the kernel's buffer at the time `_estimated_at`."""
        self._estimated_at = 0.0
        self._is_measuring = False
        """True from a write that blocked, after which the kernel's buffer was full, to the end of the measurement."""
        self._n_since_full = 0
        self._blocked_s = 0.0
        """Time spent in writes during the measurement, without the pauses between writes."""
        self._measured_at = 0.0

    def count_queued(self, n_bytes: int) -> None:
        """Count output that was given to the writer thread."""
        with self._lock:
            self._n_queued += n_bytes

    def count_written(self, n_bytes: int, duration_s: float) -> None:
        """Count output that the kernel accepted after `duration_s` seconds."""
        now = self._clock()
        with self._lock:
            self._n_queued = max(0, self._n_queued - n_bytes)
            self._drain(now)
            self._n_buffered += n_bytes
            if self._is_measuring:
                self._n_since_full += n_bytes
                self._blocked_s += duration_s
                if self._n_since_full >= _MEASURED_BYTES:
                    self._finish_measurement(now)
                elif self._n_queued == 0 and duration_s <= _BLOCKED_S:
                    self._is_measuring = False  # the terminal has accepted all output
            elif duration_s > _BLOCKED_S:
                self._is_measuring, self._n_since_full, self._blocked_s = True, 0, 0.0

    def _finish_measurement(self, now: float) -> None:
        rate = self._n_since_full / max(1e-6, self._blocked_s)
        self._rate = max(rate, _MIN_BYTES_PER_S) if rate < _FAST_BYTES_PER_S else None
        self._n_buffered, self._estimated_at, self._is_measuring = _BUFFER_BYTES, now, False
        self._measured_at = now

    def _drain(self, now: float) -> None:
        if self._rate is not None and now - self._measured_at > _RATE_MAX_AGE_S:
            self._rate = None
        self._n_buffered = max(0.0, self._n_buffered - (self._rate or 0.0) * (now - self._estimated_at))
        self._estimated_at = now

    def budget(self) -> int | None:
        """Return the maximum number of bytes of the next frame; None for no limit, 0 if the terminal is behind."""
        with self._lock:
            self._drain(self._clock())
            if self._rate is None or self._is_measuring:
                return None if self._n_queued <= _MAX_QUEUED_BYTES else 0
            free = int(self._rate * _MAX_DELAY_S - self._n_buffered - self._n_queued)
            return free if free >= _MIN_BUDGET_BYTES else 0
