"""Pages of a mapped file in the memory of a process, on Linux."""

from __future__ import annotations

from pathlib import Path


def count_resident_bytes(path: Path, pid: int | str = "self") -> int:
    """Return how much of the mapped file `path` is in the memory of a process, in bytes."""
    n_bytes, is_file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            is_file = line.endswith(f" {path}")
        elif is_file and line.startswith("Rss:"):
            n_bytes += 1024 * int(line.split()[1])
    return n_bytes
