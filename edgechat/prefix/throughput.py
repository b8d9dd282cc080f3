"""Measured throughput of prefill and of restoring segments, to choose the faster of the two."""

from __future__ import annotations

from typing import Final

# Defaults before the first measurement, low on purpose: a wrong estimate costs most on a slow machine.
_DEFAULT_PREFILL_TPS: Final = 50.0
_DEFAULT_RAM_BPS: Final = 1e9
_DEFAULT_DISK_BPS: Final = 100e6
# Weight of a new measurement in the moving average.
_WEIGHT: Final = 0.3
# Shorter measurements are ignored, because the resolution of the clock would distort them.
_MIN_S: Final = 1e-4


class Throughput:
    """Exponential moving average of an amount per second."""

    def __init__(self, default_per_s: float) -> None:
        self.per_s = default_per_s
        self._is_measured = False

    def record(self, amount: float, seconds: float) -> None:
        """Add the measurement of `amount` in `seconds`; ignore zero amounts and times below 0.1 ms."""
        if amount <= 0 or seconds < _MIN_S:
            return
        measured_per_s = amount / seconds
        self.per_s = self.per_s + _WEIGHT * (measured_per_s - self.per_s) if self._is_measured else measured_per_s
        self._is_measured = True

    def duration_s(self, amount: float) -> float:
        """Return the expected time for `amount`, in seconds."""
        return amount / self.per_s


class PrefixThroughput:
    """Throughput of prefill, and of restoring segments from RAM and from disk."""

    def __init__(self) -> None:
        self.prefill = Throughput(_DEFAULT_PREFILL_TPS)
        """Prefill throughput in tokens per second."""
        self.ram = Throughput(_DEFAULT_RAM_BPS)
        """Restore throughput from RAM, in bytes per second."""
        self.disk = Throughput(_DEFAULT_DISK_BPS)
        """Restore throughput from a file, in bytes per second."""
