"""Detect measurements that were disturbed by other programs, or by a pause of this process.

All measurements that are saved are made with `Stopwatch` (steps of milliseconds) or `LongStopwatch` (benchmarks of
seconds). A disturbed measurement is discarded, or used only until there is an undisturbed one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cpu import count_allowed_cpus

MAX_EXCESS_LOAD: Final = 0.3
"""Maximum load of other programs, in cores, that does not disturb a computation which uses all cores.

The terminal UI takes about 0.1 cores while it paints a reply.
"""
# Window over which the load of other programs is measured. Linux counts CPU time in ticks of 10 ms.
_LOAD_WINDOW_S: Final = 0.25
# Maximum age of a window whose load is used for a new computation.
_MAX_LOAD_AGE_S: Final = 1.0
# Weight of the CPU time of processes with low priority. A process at nice 10 that shares a core with a process of
# normal priority gets a tenth of that process's CPU time, and a process at nice 19 gets a seventieth.
_NICE_WEIGHT: Final = 0.1
# Maximum time that a preempted thread waits; a time slice of Linux is 3 to 10 ms long.
_PREEMPTION_S: Final = 0.01
# Maximum fraction of a step's time that may be lost to preemption.
_MAX_LOST_FRACTION: Final = 0.1
# Minimum CPU time of a thread as a fraction of the elapsed time; with less, the process was paused or starved. Threads
# sleep in long waits for each other: on processors with fast and slow cores, the fast ones reach about two thirds.
_MIN_CPU_FRACTION: Final = 0.5
_MIN_CPU_SAMPLE_S: Final = 0.005
# Step by which CPU time grows. Windows adds a clock tick of 1/64 s to the thread that runs at the tick, although Python
# reports a resolution of 100 ns. Linux and macOS count CPU time in less than a microsecond.
_CPU_TIME_STEP_S: Final = 1 / 64 if sys.platform == "win32" else 0.0
# Minimum expected CPU time, in steps of `_CPU_TIME_STEP_S`, that can be compared with the measured CPU time.
_MIN_CPU_TIME_STEPS: Final = 4
# A computation that waits for a GPU or a disk needs little CPU time, so only a long pause is recognised.
_MIN_GPU_CPU_FRACTION: Final = 0.02
_MIN_GPU_DURATION_S: Final = 1.0
# Minimum difference between two clocks for which the machine counts as suspended. Smaller differences arise because the
# clocks are read one after another, and because time synchronisation slews the system time.
_MIN_SUSPENDED_S: Final = 0.1
# Interval of the ticks in a long measurement, and minimum delay of a tick that counts as a pause of the process. On a
# busy machine, a thread that mostly sleeps is delayed by a few time slices.
_TICK_S: Final = 0.1
_MIN_PAUSE_S: Final = 0.5


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Time and resources that a computation used. Times are in seconds."""

    elapsed_s: float
    cpu_s: float
    """CPU time of all threads of the process."""
    n_preemptions: int = 0
    """Number of involuntary context switches of all threads; 0 on systems that do not count them."""
    suspended_s: float = 0.0
    """Time during which the machine was suspended, which the monotonic clock of some systems does not count."""
    excess_load: float = 0.0
    """Load of other programs, in cores, beyond the cores that the threads of the computation leave free."""


class Timing(msgspec.Struct, frozen=True):
    """Duration of a computation, and what disturbed it."""

    elapsed_s: float
    disturbance: str = ""
    """Reason why the duration is too long, as a clause for logs; "" if nothing was noticed."""

    @property
    def is_disturbed(self) -> bool:
        """True if another program or a pause has probably made the computation slower."""
        return bool(self.disturbance)


def find_disturbance(usage: Usage, n_threads: int, cpu_time_step_s: float = _CPU_TIME_STEP_S) -> str:
    """Return what disturbed a computation by `n_threads` threads; "" if nothing did.

    `n_threads` is 0 for a computation that mostly waits for a GPU or a disk. The system counts CPU time in steps of
    `cpu_time_step_s`; the CPU time of a computation that is too short for these steps is ignored.
    """
    if usage.suspended_s >= _MIN_SUSPENDED_S:
        return f"the machine was suspended for {usage.suspended_s:.1f} s"
    if usage.excess_load > MAX_EXCESS_LOAD:
        return f"other programs took {usage.excess_load:.1f} of the cores"
    min_cpu_s = _MIN_CPU_TIME_STEPS * cpu_time_step_s
    return _find_lost_time(usage, n_threads, min_cpu_s) if n_threads else _find_long_pause(usage, min_cpu_s)


def _find_lost_time(usage: Usage, n_threads: int, min_cpu_s: float) -> str:
    elapsed_s = usage.elapsed_s
    if _MIN_CPU_FRACTION * elapsed_s < min_cpu_s:
        return ""
    lost_s = n_threads * elapsed_s - usage.cpu_s
    if elapsed_s >= _MIN_CPU_SAMPLE_S and lost_s > (1 - _MIN_CPU_FRACTION) * n_threads * elapsed_s:
        return f"the process was paused or starved: {usage.cpu_s:.3f} s of CPU time in {elapsed_s:.3f} s"
    if min(lost_s, usage.n_preemptions * _PREEMPTION_S) > _MAX_LOST_FRACTION * elapsed_s:
        return f"other programs preempted it {usage.n_preemptions} times in {elapsed_s:.3f} s"
    return ""


def _find_long_pause(usage: Usage, min_cpu_s: float) -> str:
    elapsed_s = usage.elapsed_s
    expected_cpu_s = _MIN_GPU_CPU_FRACTION * elapsed_s
    if elapsed_s < _MIN_GPU_DURATION_S or expected_cpu_s < min_cpu_s or usage.cpu_s >= expected_cpu_s:
        return ""
    return f"the process was paused: {usage.cpu_s:.3f} s of CPU time in {elapsed_s:.1f} s"


def read_busy_s_of_cpus() -> float | None:
    """Return the CPU time of all programs since the start of the machine, on the CPUs that this process may use.

    Time stolen by other virtual machines is included. A tenth of the time of low-priority processes is counted, or all
    of it if this process has low priority, too. Return None if the time is unknown.
    """
    if sys.platform == "linux":
        return _read_proc_stat()
    import psutil

    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError, AttributeError):
        return None
    # The times of interrupts on Windows, "interrupt" and "dpc", are part of the system time.
    names = ("user", "system", "irq", "softirq", "steal")
    busy_s: float = sum(getattr(times, name, 0.0) for name in names)
    return busy_s + _nice_weight() * getattr(times, "nice", 0.0)


def _read_proc_stat() -> float | None:
    """Implement `read_busy_s_of_cpus` on Linux without psutil, which would use a few MB in the engine process."""
    try:
        lines = Path("/proc/stat").read_text("ascii").splitlines()
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        rows = [line.split() for line in lines if line.startswith("cpu")]
        by_cpu = [[float(ticks) for ticks in row[1:]] for row in rows if row[0] in names]
    except (OSError, ValueError):
        return None
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    # The columns are: user, nice, system, idle, iowait, irq, softirq, steal.
    nice_weight = _nice_weight()
    busy = sum(t[0] + t[2] + sum(t[5:8]) + nice_weight * t[1] for t in by_cpu)
    return busy / ticks_per_s if by_cpu else None


def _nice_weight() -> float:
    """Return the weight of the CPU time of low-priority processes: 1 if this process has low priority itself."""
    has_low_priority = sys.platform != "win32" and os.getpriority(os.PRIO_PROCESS, 0) > 0
    return 1.0 if has_low_priority else _NICE_WEIGHT


class LoadMonitor:
    """Measures the load of other programs in windows of about a quarter of a second. Cheap enough for each step."""

    def __init__(
        self, read_own_cpu_s: Callable[[], float] = time.process_time,
        read_busy_s: Callable[[], float | None] = read_busy_s_of_cpus, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`read_own_cpu_s` returns the CPU time, in seconds, that does not count as load of other programs."""
        self._read_own_cpu_s, self._read_busy_s, self._clock = read_own_cpu_s, read_busy_s, clock
        self._read_at, self._busy_s, self._own_cpu_s = float("-inf"), 0.0, 0.0
        self._load: float | None = None
        self.n_windows = 0
        """Number of windows with a known load."""
        self.window_s = 0.0
        """Duration of the last window with a known load, in seconds."""

    def restart(self) -> None:
        """Prepare for a computation that starts now: discard the load of a window that ended over a second ago."""
        if self._clock() - self._read_at > _MAX_LOAD_AGE_S:
            self._read_window(self._clock())
            self._load = None
        else:
            self.others_load()

    def others_load(self) -> float | None:
        """Return the CPU time per second of other programs in the last window; None if unknown."""
        now = self._clock()
        if now - self._read_at >= _LOAD_WINDOW_S:
            self._read_window(now)
        return self._load

    def _read_window(self, now: float) -> None:
        busy_s, own_cpu_s, elapsed_s = self._read_busy_s(), self._read_own_cpu_s(), now - self._read_at
        self._load = None
        if busy_s is None:
            return
        if elapsed_s < float("inf"):
            others_s = busy_s - self._busy_s - (own_cpu_s - self._own_cpu_s)
            self._load = max(0.0, others_s / elapsed_s)
            self.n_windows, self.window_s = self.n_windows + 1, elapsed_s
        self._read_at, self._busy_s, self._own_cpu_s = now, busy_s, own_cpu_s

    def excess_load(self, n_threads: int) -> float:
        """Return the load of other programs beyond the cores that `n_threads` threads leave free; 0.0 if unknown."""
        load = self.others_load()
        return max(0.0, load - max(0, count_allowed_cpus() - n_threads)) if load is not None else 0.0


_monitor = LoadMonitor()


class Stopwatch:
    """Times a computation of a few milliseconds in this process; the overhead is about 10 microseconds."""

    def __init__(self, n_threads: int, *, is_cpu_bound: bool = True) -> None:
        """Start timing a computation by `n_threads` threads, which is not CPU-bound if it waits for a GPU or a disk."""
        self._n_threads, self._is_cpu_bound = n_threads, is_cpu_bound
        _monitor.restart()
        self._suspended_s = _read_suspended_s()
        self._n_preemptions = _count_preemptions()
        self._cpu_s = time.process_time()
        self.started_at = time.monotonic()

    def stop(self) -> Timing:
        """Return the time since the start. Can be called more than once."""
        elapsed_s = time.monotonic() - self.started_at
        usage = Usage(
            elapsed_s=elapsed_s, cpu_s=time.process_time() - self._cpu_s,
            n_preemptions=_count_preemptions() - self._n_preemptions,
            suspended_s=_read_suspended_s() - self._suspended_s,
            excess_load=_monitor.excess_load(self._n_threads),
        )  # fmt: skip
        return Timing(elapsed_s, find_disturbance(usage, self._n_threads if self._is_cpu_bound else 0))


class LongStopwatch:
    """Times a computation of several seconds in this process; detects every pause, and checks the load repeatedly."""

    def __init__(self, n_threads: int) -> None:
        """Start timing a computation by `n_threads` threads.

        A thread reads clocks ten times a second until `stop` is called.
        """
        self._n_threads = n_threads
        self._monitor = LoadMonitor()
        self._is_done = threading.Event()
        self._started_at, self._suspended_s, self._disturbance = time.monotonic(), _read_suspended_s(), ""
        self._thread = threading.Thread(target=self._watch, name="contention", daemon=True)
        self._thread.start()

    def stop(self) -> Timing:
        """End the measurement and return the time since the start."""
        elapsed_s = time.monotonic() - self._started_at
        self._is_done.set()
        self._thread.join()
        usage = Usage(elapsed_s=elapsed_s, cpu_s=elapsed_s, suspended_s=_read_suspended_s() - self._suspended_s)
        return Timing(elapsed_s, self._disturbance or find_disturbance(usage, 0))

    def _watch(self) -> None:
        monitor, ticked_at = self._monitor, time.monotonic()
        n_windows, n_busy_windows = 0, 0
        is_done = False
        while not is_done:
            is_done = self._is_done.wait(_TICK_S)
            now = time.monotonic()
            if now - ticked_at - _TICK_S >= _MIN_PAUSE_S:
                self._disturbance = f"the process was paused for {now - ticked_at:.1f} s"
            ticked_at = now
            excess_load = monitor.excess_load(self._n_threads)
            if monitor.n_windows > n_windows:
                n_windows, n_busy_windows = monitor.n_windows, n_busy_windows + (excess_load > MAX_EXCESS_LOAD)
        if not self._disturbance and n_busy_windows > _MAX_LOST_FRACTION * n_windows:
            self._disturbance = f"other programs were busy in {n_busy_windows} of {n_windows} intervals"


class AwakeClock:
    """Clock that stands still while the process is stopped or the machine is suspended; must be read every second."""

    MAX_STEP_S: Final = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at = clock()
        self._awake_s = 0.0

    def read(self) -> float:
        """Return the time in seconds since the creation, without pauses."""
        now = self._clock()
        self._awake_s += min(max(0.0, now - self._read_at), self.MAX_STEP_S)
        self._read_at = now
        return self._awake_s


def is_machine_busy(n_threads: int) -> bool:
    """Return whether other programs leave fewer than `n_threads` cores free. Waits for a quarter of a second."""
    monitor = LoadMonitor()
    monitor.others_load()
    time.sleep(_LOAD_WINDOW_S * 1.1)
    return monitor.excess_load(n_threads) > MAX_EXCESS_LOAD


def _count_preemptions() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _read_suspended_s() -> float:
    """Return a number that grows by the time during which the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return time.time() - time.monotonic()
