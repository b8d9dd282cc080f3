"""System memory available to this process, and memory and CPU time of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cgroups import list_group_memory, read_text
from edgechat.hardware.process_tree import list_process_tree

# Maximum difference, in seconds, between two readings of the start time of one process.
_START_TOLERANCE_S: Final = 2.0
# Index of the start time, in clock ticks, among the fields after the name of the program in /proc/PID/stat.
_START_TIME_FIELD: Final = 19


class SystemMemory(msgspec.Struct, frozen=True):
    """System memory at one moment, in bytes."""

    total_bytes: int
    """Physical memory, or the cgroup limit if that is lower."""
    available_bytes: int
    """Number of bytes that can be allocated without swapping or reaching a limit."""


def read_memory(root: Path = Path("/")) -> SystemMemory:
    """Return the total and available memory, without swap, within the limits of this process and its cgroups.

    `root` is the directory that contains proc and sys.
    """
    import psutil

    virtual_memory = psutil.virtual_memory()
    total_bytes, available_bytes = virtual_memory.total, virtual_memory.available
    for limit_bytes, used_bytes in [*_read_cgroup_limits(root), *_read_process_limits()]:
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return SystemMemory(total_bytes=total_bytes, available_bytes=available_bytes)


def _read_process_limits() -> list[tuple[int, int]]:
    """Return (limit, usage) in bytes for `ulimit -d` and `ulimit -v`.

    The usage is 0, because the engine process inherits the limits but not the usage of this process.
    """
    if sys.platform == "win32":
        return []
    import resource

    soft_limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return [(soft_limit, 0) for soft_limit in soft_limits if soft_limit != resource.RLIM_INFINITY]


def _read_cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for the control groups of this process and for all their parents.

    Inactive file pages do not count as used, because the kernel can reclaim them.
    """
    return [
        (group.limit_bytes, max(0, (group.used_bytes or 0) - group.inactive_file_bytes))
        for group in list_group_memory(root)
        if group.limit_bytes is not None
    ]


def count_memory_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes Linux has killed since its start because memory ran out; None if unknown."""
    for line in read_text(root / "proc/vmstat").splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdigit():
            return int(value)
    return None


def read_peak_rss_bytes() -> int:
    """Return the peak resident set size of this process in bytes, including mapped model pages."""
    if sys.platform == "linux":
        # ru_maxrss would be wrong: a child starts with its parent's value, which exec does not reset.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    return int(psutil.Process().memory_info().peak_wset)


def read_tree_pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its descendants in bytes on Linux; 0 on other systems.

    A process that ends during the call adds 0 bytes.
    """
    return sum(_read_pss_bytes(process_id) for process_id in list_process_tree(pid))


def _read_pss_bytes(pid: int) -> int:
    for line in read_text(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def read_private_bytes(pid: int) -> int:
    """Return the unshared resident memory of a process in bytes; 0 if the process does not exist."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.Error, ValueError, OverflowError):
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def read_rss_bytes(pid: int) -> int:
    """Return the resident set size of a process in bytes, including shared pages; 0 if the process does not exist."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, ValueError, OverflowError):
        return 0


def read_process_usage(pid: int) -> tuple[float, int]:
    """Return the CPU time in seconds and the resident set size in bytes of one process; zeros if it does not exist."""
    import psutil

    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, int(process.memory_info().rss)
    except psutil.Error:
        return 0.0, 0


def is_process_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal (SIGSTOP, SIGTSTP), and can run no code until it is continued.

    Always False on Windows.
    """
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def read_own_cpu_time_s(pid: int) -> float:
    """Return the CPU time of a process without its descendants in seconds; 0.0 if the process does not exist.

    On Windows, descendants are included, because the `python.exe` of a virtual environment runs Python in a child.
    """
    import psutil

    if sys.platform == "win32":
        return read_cpu_time_s(pid)
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def read_cpu_time_s(pid: int) -> float:
    """Return the CPU time of a process and its descendants in seconds; 0.0 if the process does not exist.

    On Linux, reads one file for each process on the machine, which takes 30 ms with 400 processes.
    """
    import psutil

    total_s = 0.0
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            times = member.cpu_times()
            total_s += times.user + times.system
    except psutil.Error:  # a process ended during the call
        return total_s
    return total_s


def read_process_start_time(pid: int) -> float:
    """Return the start time of a process in seconds since 1970; 0.0 if the process does not exist."""
    if sys.platform == "linux":
        return _read_linux_state(pid)[1]
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def is_process_running(pid: int, started_at: float | None = None) -> bool:
    """Return whether the process that started at `started_at` (seconds since 1970; None: at any time) still runs.

    A later process with the same ID does not count, nor does one that has ended but whose parent has not read its exit
    code.
    """
    if sys.platform == "linux":
        state, actual_start = _read_linux_state(pid)
        is_same = bool(actual_start) and (started_at is None or abs(actual_start - started_at) < _START_TOLERANCE_S)
        return is_same and state not in {"Z", "X"}
    import psutil

    try:
        process = psutil.Process(pid)
        is_same = started_at is None or abs(process.create_time() - started_at) < _START_TOLERANCE_S
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return False


def read_peak_pss_bytes(pid: int) -> int:
    """Return the peak proportional set size of a process on Linux, in bytes; 0 on other systems.

    The peak is estimated: the process is assumed to have shared as many bytes at its peak as it shares now.
    """
    status = read_text(Path(f"/proc/{pid}/status"))
    peak_resident_bytes, resident_bytes = (
        1024 * int(fields[0]) if (fields := status.partition(f"{name}:")[2].split()[:1]) else 0
        for name in ("VmHWM", "VmRSS")
    )
    proportional_bytes = _read_pss_bytes(pid)
    return peak_resident_bytes - (resident_bytes - proportional_bytes) if proportional_bytes else 0


def return_freed_memory() -> None:
    """Return freed memory to the operating system, which glibc may not do by itself. Takes a few milliseconds."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has no malloc_trim, and returns memory by itself
        if trim is not None:
            trim(0)


def _read_linux_state(pid: int) -> tuple[str, float]:
    """Return the state of a process, such as "R", and its start time as psutil computes it; "" and 0.0 without it.

    Importing psutil takes 7 ms, which would delay every program that attaches to an engine.
    """
    fields = read_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    boot_time = read_text(Path("/proc/stat")).partition("\nbtime ")[2].partition("\n")[0]
    if len(fields) <= _START_TIME_FIELD or not boot_time.isdigit():
        return "", 0.0
    return fields[0], int(boot_time) + int(fields[_START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK")
