"""Number of compute threads beside other programs: fewer, if a thread would share its core."""

from __future__ import annotations

import math
from typing import Final

from edgechat.hardware.contention import LoadMonitor

# Load of other programs on the cores of the threads, in cores, from which a core counts as taken. Measured on two
# cores: beside one busy process, one thread decodes at 0.61 of the speed alone, and two threads at 0.41, because each
# operation waits for the thread that shares its core.
_MIN_TAKEN_LOAD: Final = 0.45
# Load of a further core that does not count yet, so that short work of other programs changes nothing.
_IGNORED_LOAD: Final = 0.25
# Load per taken core below which the core is used again. It is lower than the load from which a core is left, because
# other programs get more time on a core that was left to them.
_MIN_KEPT_LOAD: Final = 0.3
# Time over which the load must be the same before the number of threads changes, in seconds: two windows of the load.
_MIN_DURATION_S: Final = 0.45
# Time for which all threads share the cores after other programs took more than half of them. They take even more while
# fewer threads compute, so their load cannot tell when that ends.
_SHARED_S: Final = 20.0


class AdaptiveThreadCount:
    """Number of threads for the next decode step, which follows the load of other programs within half a second.

    A step waits at the end of each operation for its slowest thread, so threads are used only on cores that other
    programs leave free. If those are fewer than half of the threads, all threads are used and get their fair share.
    """

    def __init__(self, max_n_threads: int, monitor: LoadMonitor | None = None) -> None:
        """Start with `max_n_threads`, which is also the number of threads on a machine without other load."""
        self._max_n_threads = max_n_threads
        self._monitor = monitor or LoadMonitor()
        self._n_windows = 0
        self._n_taken = 0
        """Number of cores that are left to other programs."""
        self._pending_change_s = 0.0
        """Time during which the load of other programs required another number, in seconds."""
        self._shared_s = 0.0
        """Time for which all threads still share the cores with other programs, in seconds."""

    def choose(self) -> int:
        """Return the number of threads for a step that starts now. Takes microseconds."""
        load = self._monitor.others_load()
        if load is not None and self._monitor.n_windows != self._n_windows:
            self._n_windows = self._monitor.n_windows
            self._follow(self._monitor.excess_load(self._max_n_threads), self._monitor.window_s)
        return self._max_n_threads - self._n_taken

    def _follow(self, load: float, duration_s: float) -> None:
        """Leave as many cores to other programs as their `load` in the last `duration_s` needs, if it lasts."""
        self._shared_s = max(0.0, self._shared_s - duration_s) if load >= _MIN_TAKEN_LOAD else 0.0
        n_taken = 0 if self._shared_s else self._count_taken(load)
        self._pending_change_s = self._pending_change_s + duration_s if n_taken != self._n_taken else 0.0
        if self._pending_change_s >= _MIN_DURATION_S:
            if n_taken < self._n_taken and load >= _MIN_TAKEN_LOAD:
                self._shared_s = _SHARED_S
            self._n_taken, self._pending_change_s = n_taken, 0.0

    def _count_taken(self, load: float) -> int:
        n_taken = math.ceil(load - _IGNORED_LOAD) if load >= _MIN_TAKEN_LOAD else 0
        if n_taken < self._n_taken and load > self._n_taken - 1 + _MIN_KEPT_LOAD:
            n_taken = self._n_taken
        return n_taken if 2 * n_taken <= self._max_n_threads else 0
