"""Measured throughput of prefill and of restoring segments, to choose the faster of the two."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Defaults before the first measurement. They are low, because a wrong estimate costs most time on a slow machine.
_DEFAULT_PREFILL_TOKENS_PER_S: Final = 50.0
_DEFAULT_RAM_BYTES_PER_S: Final = 1e9
_DEFAULT_DISK_BYTES_PER_S: Final = 100e6
# Weight of a new measurement in the moving average.
_MEASUREMENT_WEIGHT: Final = 0.3
# Minimum duration of a measurement; the resolution of the clock would distort shorter measurements.
_MIN_DURATION_S: Final = 1e-4


StopTimer = Callable[[], tuple[float, bool]]
"""Returns the seconds since the timer was started, and whether another program or a pause added to this time."""


def start_plain_timer() -> StopTimer:
    """Start a timer that does not detect other programs or pauses."""
    started_at = time.monotonic()
    return lambda: (time.monotonic() - started_at, False)


class Throughput:
    """Exponential moving average of an amount per second."""

    def __init__(self, default_per_s: float) -> None:
        self.per_s = default_per_s
        self._is_measured = False
        self._has_disturbed_value = False

    def record(self, amount: float, elapsed_s: float, *, is_disturbed: bool = False) -> None:
        """Add a measurement: `amount` was processed in `elapsed_s`. Ignore zero amounts and times below 0.1 ms.

        Measurements that another program or a pause disturbed count only until the first undisturbed measurement. Until
        then, the fastest of them is used.
        """
        if amount <= 0 or elapsed_s < _MIN_DURATION_S:
            return
        measured_per_s = amount / elapsed_s
        if is_disturbed:
            if not self._is_measured:
                self.per_s = max(self.per_s, measured_per_s) if self._has_disturbed_value else measured_per_s
                self._has_disturbed_value = True
        elif self._is_measured:
            self.per_s += _MEASUREMENT_WEIGHT * (measured_per_s - self.per_s)
        else:
            self.per_s, self._is_measured = measured_per_s, True

    def duration_s(self, amount: float) -> float:
        """Return the expected time to process `amount`, in seconds."""
        return amount / self.per_s


class PrefixThroughput:
    """Throughput of prefill, and of restoring segments from RAM and from disk."""

    def __init__(self) -> None:
        self.prefill = Throughput(_DEFAULT_PREFILL_TOKENS_PER_S)
        """Prefill throughput in tokens per second."""
        self.ram = Throughput(_DEFAULT_RAM_BYTES_PER_S)
        """Restore throughput from RAM, in bytes per second."""
        self.disk = Throughput(_DEFAULT_DISK_BYTES_PER_S)
        """Restore throughput from a file, in bytes per second."""
