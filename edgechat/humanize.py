"""Formatting of sizes, rates and durations for display.

Sizes are decimal (1 GB = 1,000,000,000 bytes) everywhere in edgechat (memory, files and downloads), as file managers
and model hubs show them. JSON output has plain byte counts instead. `config.parse_size` parses both `GB` and `GiB`.
"""

from __future__ import annotations

from typing import Final

_SIZE_UNITS: Final = (("TB", 10**12, 2), ("GB", 10**9, 2), ("MB", 10**6, 0), ("kB", 10**3, 0))
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
# Durations below this number of seconds are shown in seconds, and below this number of minutes in minutes.
_MAX_COUNT: Final = 100


def size(n_bytes: float) -> str:
    """Format a number of bytes: `23.80 GB`, `96 MB`, `12 kB`, `7 B`."""
    for unit, factor, n_decimals in _SIZE_UNITS:
        if n_bytes >= 0.9995 * factor:  # smaller numbers round to at most 999 of the next unit
            return f"{n_bytes / factor:.{n_decimals}f} {unit}"
    return f"{n_bytes:.0f} B"


def rate(bytes_per_s: float) -> str:
    """Format a transfer rate: `12 MB/s`."""
    return f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """Format a duration in the unit that needs the fewest digits: `42 s`, `3 min`, `1.8 h`."""
    if seconds < _MAX_COUNT:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < _MAX_COUNT * _MINUTE_S else f"{seconds / _HOUR_S:.1f} h"
