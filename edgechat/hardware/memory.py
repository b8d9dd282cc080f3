"""Memory: what the machine can really give, which is less than what it has."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

_CGROUP = Path("/sys/fs/cgroup")


class Memory(msgspec.Struct, frozen=True):
    """Memory in bytes at one moment."""

    total_bytes: int
    """Physical memory, or the cgroup's limit where that is smaller."""
    available_bytes: int
    """What new allocations can take without swapping or meeting the cgroup's limit."""


def read_memory() -> Memory:
    """Physical memory and what is available of it, within the limits of this process's cgroups."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _cgroup_limits():
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total_bytes=total, available_bytes=available)


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup v2 from this process's up to the root, and of cgroup v1."""
    if sys.platform != "linux":
        return []
    found = []
    group = _own_group()
    for directory in [_CGROUP / group, *(_CGROUP / group).parents]:
        found.append((_number(directory / "memory.max"), _used(directory)))
        if directory == _CGROUP:
            break
    v1 = _CGROUP / "memory"
    found.append((_number(v1 / "memory.limit_in_bytes"), _number(v1 / "memory.usage_in_bytes")))
    return [(limit, used or 0) for limit, used in found if limit is not None]


def _own_group() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")


def _used(directory: Path) -> int | None:
    """What a group holds that cannot be dropped: file pages not in use are not held against it."""
    current = _number(directory / "memory.current")
    if current is None:
        return None
    try:
        stat = dict(line.split() for line in (directory / "memory.stat").read_text(encoding="utf-8").splitlines())
        return current - int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return current


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
