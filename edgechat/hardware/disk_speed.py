"""Measures the read speed of the disk that contains a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_PROBE_BYTES: Final = 32 << 20


def measure_read_bps(file: Path) -> float:
    """Measure the read speed of the disk of `file`, in bytes per second; 0.0 if the page cache cannot be bypassed.

    Reads up to 32 MiB from the end of the file. Raises OSError.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        count = min(size, _PROBE_BYTES)
        os.posix_fadvise(descriptor, size - count, count, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        n_read = len(os.pread(descriptor, count, size - count))
        return n_read / max(1e-9, time.perf_counter() - started)
    finally:
        os.close(descriptor)
