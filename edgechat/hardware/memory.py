"""System memory within the limits of this process, and memory and CPU time of processes."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec


class SystemMemory(msgspec.Struct, frozen=True):
    """System memory at one moment, in bytes."""

    total_bytes: int
    """Physical memory, or the cgroup limit if that is lower."""
    available_bytes: int
    """Number of bytes that can be allocated without swapping or reaching a limit."""


def read_memory(root: Path = Path("/")) -> SystemMemory:
    """Return total and available memory within the limits of this process and its cgroups, without swap.

    `root` is the directory that contains proc and sys.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in [*_cgroup_limits(root), *_process_limits()]:
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return SystemMemory(total_bytes=total, available_bytes=available)


def _process_limits() -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for `ulimit -d` and `ulimit -v`. Child processes inherit only the limits."""
    if sys.platform == "win32":
        return []
    import resource

    softs = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return [(soft, 0) for soft in softs if soft != resource.RLIM_INFINITY]


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for every cgroup (v1 or v2) from this process's up to the root."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        own = mount / group.lstrip("/")
        # In a container, /proc/self/cgroup may contain the cgroup's path on the host, while /sys/fs/cgroup is mounted
        # at that cgroup, so every parent directory is tried.
        for directory in [own, *(p for p in own.parents if p.is_relative_to(mount))]:
            limit = _number(directory / ("memory.limit_in_bytes" if controllers else "memory.max"))
            if limit is not None:
                used = _used_bytes(directory, "memory.usage_in_bytes" if controllers else "memory.current")
                limits.append((limit, used))
    return limits


def _used_bytes(directory: Path, name: str) -> int:
    """Return the memory of a cgroup in bytes, without inactive file pages, which the kernel can drop."""
    current = _number(directory / name)
    if current is None:
        return 0
    stat = dict(line.split(" ", 1) for line in _text(directory / "memory.stat").splitlines() if " " in line)
    inactive = stat.get("total_inactive_file", stat.get("inactive_file", "0")).strip()
    return max(0, current - (int(inactive) if inactive.isdigit() else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file is absent, or contains "max"
        return None


def peak_rss_bytes() -> int:
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


def tree_pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its descendants in bytes on Linux; 0 on other systems.

    A process that ends during the call counts as 0.
    """
    import psutil

    try:
        pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return 0
    return sum(_pss_bytes(each) for each in pids)


def _pss_bytes(pid: int) -> int:
    for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def private_bytes(pid: int) -> int:
    """Return the unshared resident memory of a process in bytes; 0 if the process does not exist."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.Error, ValueError, OverflowError):
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def rss_bytes(pid: int) -> int:
    """Return the resident set size of a process in bytes, including shared pages; 0 if the process does not exist."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, ValueError, OverflowError):
        return 0


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its descendants have used."""
    import psutil

    total_s = 0.0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            total_s += times.user + times.system
    except psutil.Error:  # a process ended during the call
        return total_s
    return total_s


def process_started_at(pid: int) -> float:
    """Return the start time of a process in seconds since 1970; 0.0 if the process does not exist."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def peak_pss_bytes(pid: int) -> int:
    """Return the peak proportional set size of a process on Linux, assuming its present sharing; 0 on other systems."""
    status = _text(Path(f"/proc/{pid}/status"))
    peak, current = (
        1024 * int(fields[0]) if (fields := status.partition(f"{name}:")[2].split()[:1]) else 0
        for name in ("VmHWM", "VmRSS")
    )
    pss = _pss_bytes(pid)
    return peak - (current - pss) if pss else 0
