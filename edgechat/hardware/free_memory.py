"""Read the memory that this process can still allocate, and the time for which programs wait for memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cgroups import list_groups, read_number, read_text

_STALL_FIELD: Final = "avg10="


class FreeMemory(msgspec.Struct, frozen=True):
    """Memory that this process can allocate in addition to what it uses, at one moment."""

    total_bytes: int
    """Physical memory, or the cgroup limit if that is lower."""
    available_bytes: int
    """Number of bytes that this process can allocate without swapping, without reaching a limit, and without evicting
    pages of the files that it has mapped."""
    stall_percent: float = 0.0
    """Share of the last ten seconds in which all programs waited for memory, in percent; 0 if it is unknown."""


def read_free_memory(root: Path = Path("/")) -> FreeMemory:
    """Return the memory that this process can still allocate. `root` is the directory that contains proc and sys.

    The system counts the pages of mapped files as available, because it can evict them. A process that computes with
    evicted pages waits for the disk in each step, so these pages do not count as available here.
    """
    import psutil

    memory, own = psutil.virtual_memory(), psutil.Process().memory_info()
    mapped_bytes = int(getattr(own, "shared", 0))
    total_bytes, available_bytes = memory.total, max(0, memory.available - mapped_bytes)
    stalls = [_read_stall_percent(root / "proc/pressure/memory")]
    for limit_bytes, group_bytes, directory in _list_group_memory(root, mapped_bytes):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, group_bytes)
        stalls.append(_read_stall_percent(directory / "memory.pressure"))
    for limit_bytes, used_bytes in _list_process_limits(int(getattr(own, "data", 0)), int(own.vms)):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return FreeMemory(total_bytes, available_bytes, max(stalls))


def _list_group_memory(root: Path, mapped_bytes: int) -> Iterator[tuple[int, int, Path]]:
    """Yield limit, available bytes and directory of the control groups of this process that have a memory limit."""
    for directory, version in list_groups("memory", root):
        limit_bytes = read_number(directory / ("memory.limit_in_bytes" if version == 1 else "memory.max"))
        used_bytes = read_number(directory / ("memory.usage_in_bytes" if version == 1 else "memory.current"))
        if limit_bytes is None or used_bytes is None:
            continue
        stat = _read_numbers(directory / "memory.stat")
        prefix = "total_" if "total_inactive_file" in stat else ""
        inactive_bytes = stat.get(f"{prefix}inactive_file", 0)
        file_bytes = inactive_bytes + stat.get(f"{prefix}active_file", 0)
        # Pages that this process has mapped can be inactive or active. As many of them as possible are assumed active.
        reclaimable_bytes = min(inactive_bytes, max(0, file_bytes - mapped_bytes))
        yield limit_bytes, max(0, limit_bytes - used_bytes + reclaimable_bytes), directory


def _read_numbers(path: Path) -> dict[str, int]:
    fields = [line.split() for line in read_text(path).splitlines()]
    return {f[0]: int(f[1]) for f in fields if len(f) == 2 and f[1].isdigit()}  # noqa: PLR2004  (name and value)


def _read_stall_percent(path: Path) -> float:
    """Return the `full avg10` value of a file with pressure stall information; 0.0 if there is none."""
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
