"""Memory: what the machine can really give, which is less than what it has."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec


class SystemMemory(msgspec.Struct, frozen=True):
    """Memory in bytes at one moment."""

    total_bytes: int
    """Physical memory, or the cgroup's limit where that is smaller."""
    available_bytes: int
    """What new allocations can take without swapping or meeting the cgroup's limit."""


def read_memory(root: Path = Path("/")) -> SystemMemory:
    """Physical memory and what is available of it, within the limits of this process and its cgroups.

    Swap is not counted. `root` is where /proc and /sys are looked for.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in [*_cgroup_limits(root), *_process_limits()]:
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return SystemMemory(total_bytes=total, available_bytes=available)


def _process_limits() -> list[tuple[int, int]]:
    """Limits that a child inherits, which begins with nothing (`ulimit -d`, `ulimit -v`)."""
    if sys.platform == "win32":
        return []
    import resource

    softs = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return [(soft, 0) for soft in softs if soft != resource.RLIM_INFINITY]


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup of this process up to the root, of version 1 and 2."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        own = mount / group.lstrip("/")
        # In a container the group may be named as the host sees it, while the mount shows it at its root.
        for directory in [own, *(p for p in own.parents if p.is_relative_to(mount))]:
            limit = _number(directory / ("memory.limit_in_bytes" if controllers else "memory.max"))
            if limit is not None:
                found.append((limit, _used(directory, "memory.usage_in_bytes" if controllers else "memory.current")))
    return found


def _used(directory: Path, name: str) -> int:
    """What a group holds that cannot be dropped: file pages not in use are not held against it."""
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
    except (OSError, ValueError):  # absent, or "max"
        return None


def peak_rss_bytes() -> int:
    """The most memory this process has held at once, file pages of the model included."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child starts with its parent's figure, and exec does not reset it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import psutil

    return int(psutil.Process().memory_info().peak_wset)


def tree_pss_bytes(pid: int) -> int:
    """Memory of a process and all below it, pages that several share divided among them; Linux only, else 0.

    A process that ends meanwhile counts nothing.
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
    """Memory that a process has for itself: what the system no longer counts as available. 0 if there is no such process."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except (psutil.Error, ValueError, OverflowError):
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def rss_bytes(pid: int) -> int:
    """All memory of a process that is in RAM, shared pages included. 0 if there is no such process."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, ValueError, OverflowError):
        return 0


def cpu_s(pid: int) -> float:
    """Seconds of processors that a process and all below it have used."""
    import psutil

    total_s = 0.0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            total_s += times.user + times.system
    except psutil.Error:  # one that ended meanwhile
        return total_s
    return total_s


def process_started_at(pid: int) -> float:
    """When a process started, in seconds of the epoch; 0.0 if there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return 0.0


def peak_pss_bytes(pid: int) -> int:
    """The most memory that a process has held at once, its share of common pages as it is now; Linux only, else 0."""
    status = _text(Path(f"/proc/{pid}/status"))
    peak, now = (
        1024 * int(found[0]) if (found := status.partition(f"{name}:")[2].split()[:1]) else 0
        for name in ("VmHWM", "VmRSS")
    )
    pss = _pss_bytes(pid)
    return peak - (now - pss) if pss else 0
