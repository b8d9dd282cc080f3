"""Read the memory that this process can still allocate, and the time for which programs wait for memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cgroups import GroupMemory, list_group_memory, read_text

_STALL_FIELD: Final = "avg10="


class FreeMemory(msgspec.Struct, frozen=True):
    """Memory that this process can allocate at one moment, in addition to the memory that it already uses."""

    total_bytes: int
    """Physical memory, or the cgroup limit if that is lower."""
    available_bytes: int
    """Number of bytes that this process can allocate without swapping and without reaching a limit. On Linux, pages of
    the files that it has mapped stay in memory, too; on macOS and Windows, the system may evict some of them."""
    stall_percent: float = 0.0
    """Share of the last ten seconds in which all programs of the machine, or of a control group of this process, waited
    for memory, in percent; the largest of these values. 0 if they are unknown, as on macOS and Windows."""


def read_free_memory(root: Path = Path("/")) -> FreeMemory:
    """Return the memory that this process can still allocate. `root` is the directory that contains proc and sys.

    The system counts the pages of mapped files as available, because it can evict them. A process that computes with
    evicted pages waits for the disk in each step, so these pages do not count as available on Linux. Other systems do
    not report the size of the mapped pages that are in memory.
    """
    import psutil

    memory, own_memory = psutil.virtual_memory(), psutil.Process().memory_info()
    mapped_bytes = int(getattr(own_memory, "shared", 0))
    total_bytes, available_bytes = memory.total, max(0, memory.available - mapped_bytes)
    stalls = [_read_stall_percent(root / "proc/pressure/memory")]
    for group in list_group_memory(root):
        stalls.append(_read_stall_percent(group.directory / "memory.pressure"))
        if group.limit_bytes is not None and group.used_bytes is not None:
            total_bytes = min(total_bytes, group.limit_bytes)
            group_bytes = _compute_available_bytes(group, group.limit_bytes, mapped_bytes)
            available_bytes = min(available_bytes, group_bytes)
    for limit_bytes, used_bytes in _list_process_limits(int(getattr(own_memory, "data", 0)), int(own_memory.vms)):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return FreeMemory(total_bytes, available_bytes, max(stalls))


def _compute_available_bytes(group: GroupMemory, limit_bytes: int, mapped_bytes: int) -> int:
    """Return the memory that this process can allocate in a control group with a limit.

    Pages that this process has mapped can be inactive or active. As many of them as possible are assumed active.
    """
    file_bytes = group.inactive_file_bytes + group.active_file_bytes
    reclaimable_bytes = min(group.inactive_file_bytes, max(0, file_bytes - mapped_bytes))
    return max(0, limit_bytes - (group.used_bytes or 0) + reclaimable_bytes)


def _read_stall_percent(path: Path) -> float:
    """Return the `full avg10` value of a file with pressure stall information; 0.0 if the file has no such value."""
    for line in read_text(path).splitlines():
        if line.startswith("full "):
            for field in line.split():
                if field.startswith(_STALL_FIELD):
                    return _to_float(field.removeprefix(_STALL_FIELD))
    return 0.0


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _list_process_limits(data_bytes: int, address_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (limit, usage) in bytes for `ulimit -d` and `ulimit -v`."""
    if sys.platform == "win32":
        return
    import resource

    for kind, used_bytes in ((resource.RLIMIT_DATA, data_bytes), (resource.RLIMIT_AS, address_bytes)):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit, used_bytes
