"""Measurement of the read speed of a disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from edgechat.files import open_regular

_PROBE_BYTES: Final = 32 << 20
# Number of parts that are timed separately. The result is the fastest part, because other programs and pauses only slow
# reading down.
_N_PARTS: Final = 4


def measure_disk_speed(file: Path) -> float:
    """Return the measured read speed of the disk that contains `file`, in bytes per second.

    Reads up to 32 MiB from the end of the file in four parts, and returns the speed of the fastest part. Returns 0.0 on
    systems where a process cannot bypass the page cache.
    Raises OSError if the file cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    with open_regular(file) as opened_file:
        descriptor = opened_file.fileno()
        file_bytes = os.fstat(descriptor).st_size
        n_probe_bytes = min(file_bytes, _PROBE_BYTES)
        os.posix_fadvise(descriptor, file_bytes - n_probe_bytes, n_probe_bytes, os.POSIX_FADV_DONTNEED)
        part_bytes = max(1, -(-n_probe_bytes // _N_PARTS))
        best_bytes_per_s = 0.0
        for offset in range(file_bytes - n_probe_bytes, file_bytes, part_bytes):
            started_at = time.perf_counter()
            n_read_bytes = len(os.pread(descriptor, part_bytes, offset))
            elapsed_s = max(1e-9, time.perf_counter() - started_at)
            if n_read_bytes == part_bytes:  # the last part can be shorter
                best_bytes_per_s = max(best_bytes_per_s, n_read_bytes / elapsed_s)
        return best_bytes_per_s
