"""Find the control groups (cgroups, versions 1 and 2) of this process on Linux, for memory limits and CPU quotas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """Directory of a control group, which contains the files of one controller."""

    directory: Path
    version: int
    """Version of the control group interface, 1 or 2, which determines the names of the files."""


def list_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Yield the control groups of this process that can limit `controller`, such as "memory", and all their parents.

    The directories and files need not exist. `root` is the directory that contains proc and sys.
    """
    cgroup_root = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        controllers, _, group_path = line.partition(":")[2].partition(":")
        if not controllers:
            # Systems with both versions mount version 2 at "unified".
            for mount in (cgroup_root, cgroup_root / "unified"):
                yield from (ControlGroup(directory, 2) for directory in _list_parents(mount, group_path))
        elif controller in controllers.split(","):
            # Version 1 is mounted at the list of its controllers, for example "cpu,cpuacct", or at one of them.
            for mount in dict.fromkeys((cgroup_root / controller, cgroup_root / controllers)):
                yield from (ControlGroup(directory, 1) for directory in _list_parents(mount, group_path))


class GroupMemory(NamedTuple):
    """Memory of a control group in bytes; values that cannot be read are None or 0."""

    directory: Path
    limit_bytes: int | None
    """Size from which the kernel reclaims memory of the group or kills its processes; None without a limit."""
    used_bytes: int | None
    inactive_file_bytes: int
    """Pages of files that were not used recently, and which the kernel reclaims first; they are part of the usage."""
    active_file_bytes: int


def list_group_memory(root: Path = Path("/")) -> Iterator[GroupMemory]:
    """Yield the memory of the control groups of this process and of all their parents.

    `root` is the directory that contains proc and sys.
    """
    for directory, version in list_groups("memory", root):
        limit_names = ("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high")
        limits = [limit for name in limit_names if (limit := read_number(directory / name)) is not None]
        stat = _read_numbers(directory / "memory.stat")
        prefix = "total_" if "total_inactive_file" in stat else ""  # version 1: with the child groups
        yield GroupMemory(
            directory, min(limits, default=None),
            read_number(directory / ("memory.usage_in_bytes" if version == 1 else "memory.current")),
            stat.get(f"{prefix}inactive_file", 0), stat.get(f"{prefix}active_file", 0),
        )  # fmt: skip


def _read_numbers(path: Path) -> dict[str, int]:
    """Return the values of a file with a name and a number in each line."""
    fields = [line.split() for line in read_text(path).splitlines()]
    return {f[0]: int(f[1]) for f in fields if len(f) == 2 and f[1].isdigit()}  # noqa: PLR2004  (name and value)


def _list_parents(mount: Path, group_path: str) -> Iterator[Path]:
    """Yield the directory of a control group and its parent directories up to `mount`.

    In a container, /proc/self/cgroup may contain the path of the group on the host, while the group itself is mounted,
    so `mount` is always included. A path with ".." leads out of the container.
    """
    relative_path = PurePosixPath(group_path.lstrip("/"))
    if ".." not in relative_path.parts:
        for path in (relative_path, *relative_path.parents):
            if path != PurePosixPath():
                yield mount / path
    yield mount


def read_text(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """Return the integer in a file; None if the file cannot be read or contains something else, such as "max"."""
    try:
        return int(read_text(path))
    except ValueError:
        return None
