"""Processes that descend from a process."""

from __future__ import annotations


def list_process_tree(pid: int) -> list[int]:
    """Return the process ids of a process and its descendants, parents first; [] if the process has ended."""
    import psutil

    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []
