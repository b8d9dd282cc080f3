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


def _list_parents(mount: Path, group_path: str) -> Iterator[Path]:
    """Yield the directory of a control group and its parent directories up to `mount`.

    In a container, /proc/self/cgroup can contain the path of the group on the host, while the group itself is mounted,
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
