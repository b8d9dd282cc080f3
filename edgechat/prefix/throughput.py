"""How fast this machine computes a prefix, and how fast it reads one: whichever is faster is done."""

from __future__ import annotations

from typing import Final

# Before the first measurement: slow machines are the ones that a wrong guess would hurt.
_FIRST_PREFILL_TPS: Final = 50.0
_FIRST_RAM_BPS: Final = 1e9
_FIRST_DISK_BPS: Final = 100e6
# Of each new measurement; the rest is the past.
_WEIGHT: Final = 0.3
# Shorter ones say more about the clock.
_MIN_S: Final = 1e-4


class Throughput:
    """Something per second, measured again and again."""

    def __init__(self, default_per_s: float) -> None:
        self.per_s = default_per_s
        self._is_measured = False

    def record(self, amount: float, seconds: float) -> None:
        """It took `seconds` for `amount`."""
        if amount <= 0 or seconds < _MIN_S:
            return
        new = amount / seconds
        self.per_s = self.per_s + _WEIGHT * (new - self.per_s) if self._is_measured else new
        self._is_measured = True

    def duration_s(self, amount: float) -> float:
        """How long `amount` will take."""
        return amount / self.per_s


class PrefixThroughput:
    """What a prefix costs from each place."""

    def __init__(self) -> None:
        self.prefill = Throughput(_FIRST_PREFILL_TPS)
        """Tokens per second."""
        self.ram = Throughput(_FIRST_RAM_BPS)
        """Bytes per second into the context."""
        self.disk = Throughput(_FIRST_DISK_BPS)
        """Bytes per second from a file into the context."""
