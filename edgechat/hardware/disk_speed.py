"""Measurement of the read speed of a disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from edgechat.files import open_regular

_PROBE_BYTES: Final = 32 << 20


def measure_disk_speed(file: Path) -> float:
    """Return the measured read speed of the disk that contains `file`, in bytes per second.

    Reads up to 32 MiB from the end of the file. Returns 0.0 on systems where a process cannot bypass the page cache.
    Raises OSError if the file cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    with open_regular(file) as opened_file:
        descriptor = opened_file.fileno()
        file_bytes = os.fstat(descriptor).st_size
        n_probe_bytes = min(file_bytes, _PROBE_BYTES)
        os.posix_fadvise(descriptor, file_bytes - n_probe_bytes, n_probe_bytes, os.POSIX_FADV_DONTNEED)
        started_at = time.perf_counter()
        n_read_bytes = len(os.pread(descriptor, n_probe_bytes, file_bytes - n_probe_bytes))
        return n_read_bytes / max(1e-9, time.perf_counter() - started_at)
