"""Numbers for people."""

from __future__ import annotations

_MINUTE_S = 60
_HOUR_S = 3600
_LONG = 100


def size(n_bytes: int) -> str:
    """In powers of ten, as disks count."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{n_bytes} B"


def duration(seconds: float) -> str:
    """In the unit that needs the fewest digits."""
    if seconds < _LONG:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < _LONG * _MINUTE_S else f"{seconds / _HOUR_S:.1f} h"
