"""Adapt the number of compute threads to the load of other programs, so that no thread shares its core."""

from __future__ import annotations

import math
from typing import Final

from edgechat.hardware.contention import LoadMonitor

# Minimum load of other programs on the cores of the threads, in cores, for which one core counts as taken. Measured on
# two cores with one busy process: one thread decodes at 0.61 of the speed on an idle machine, and two threads at 0.41,
# because each operation waits for the thread that shares its core.
_MIN_TAKEN_LOAD: Final = 0.45
# Load beyond whole cores that is ignored, so that short tasks of other programs change nothing.
_IGNORED_LOAD: Final = 0.25
# Minimum load of a taken core for which it stays taken. It is lower than the load at which a core becomes taken,
# because other programs get more time on a core that no thread uses.
_MIN_STILL_TAKEN_LOAD: Final = 0.3
# Minimum duration of a change in load before the number of threads changes, in seconds: two windows of the load.
_MIN_DURATION_S: Final = 0.45
# Time for which all threads share the cores with other programs that would take more than half of them. The load cannot
# show when this state ends, because other programs take even more while fewer threads compute.
_SHARED_S: Final = 20.0


class AdaptiveThreadCount:
    """Chooses the number of threads for each decode step; follows the load of other programs within half a second.

    A step waits at the end of each operation for its slowest thread, so threads are used only on cores that other
    programs leave free. If fewer than half of the threads would remain, all threads are used and share the cores.
    """

    def __init__(self, max_n_threads: int, monitor: LoadMonitor | None = None) -> None:
        """Start with `max_n_threads`, which is also the number of threads on a machine without other load."""
        self._max_n_threads = max_n_threads
        self._monitor = monitor or LoadMonitor()
        self._n_windows = 0
        self._n_taken = 0
        """Number of cores that are left to other programs."""
        self._pending_change_s = 0.0
        """Time for which the load has required another value of `_n_taken`, in seconds."""
        self._shared_s = 0.0
        """Remaining time for which all threads share the cores with other programs, in seconds."""

    def choose(self) -> int:
        """Return the number of threads for a step that starts now. Takes microseconds."""
        load = self._monitor.others_load()
        if load is not None and self._monitor.n_windows != self._n_windows:
            self._n_windows = self._monitor.n_windows
            self._follow(self._monitor.excess_load(self._max_n_threads), self._monitor.window_s)
        return self._max_n_threads - self._n_taken

    def _follow(self, load: float, duration_s: float) -> None:
        """Adapt the number of cores left to other programs to their `load` in the last `duration_s`, if it persists."""
        self._shared_s = max(0.0, self._shared_s - duration_s) if load >= _MIN_TAKEN_LOAD else 0.0
        n_taken = 0 if self._shared_s else self._count_taken(load)
        self._pending_change_s = self._pending_change_s + duration_s if n_taken != self._n_taken else 0.0
        if self._pending_change_s >= _MIN_DURATION_S:
            if n_taken < self._n_taken and load >= _MIN_TAKEN_LOAD:
                self._shared_s = _SHARED_S
            self._n_taken, self._pending_change_s = n_taken, 0.0

    def _count_taken(self, load: float) -> int:
        n_taken = math.ceil(load - _IGNORED_LOAD) if load >= _MIN_TAKEN_LOAD else 0
        if n_taken < self._n_taken and load > self._n_taken - 1 + _MIN_STILL_TAKEN_LOAD:
            n_taken = self._n_taken
        return n_taken if 2 * n_taken <= self._max_n_threads else 0
