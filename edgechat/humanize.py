"""Formatting of counts, sizes, rates, durations and dates for display.

Sizes are decimal (1 GB = 1,000,000,000 bytes) everywhere in edgechat (memory, files and downloads), as file managers
and model hubs show them. JSON output has plain byte counts instead. `config.parse_size` parses both `GB` and `GiB`.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

_SIZE_UNITS: Final = (("TB", 10**12, 2), ("GB", 10**9, 2), ("MB", 10**6, 0), ("kB", 10**3, 0))
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
# Durations of this many seconds or more are shown in minutes, and durations of this many minutes or more in hours.
_LARGER_UNIT_THRESHOLD: Final = 100


def format_size(n_bytes: float) -> str:
    """Format a number of bytes: `23.80 GB`, `96 MB`, `12 kB`, `7 B`."""
    for unit, factor, n_decimals in _SIZE_UNITS:
        if n_bytes >= 0.9995 * factor:  # smaller numbers round to at most 999 of the next smaller unit
            return f"{n_bytes / factor:.{n_decimals}f} {unit}"
    return f"{n_bytes:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """Format a transfer rate: `12 MB/s`."""
    return f"{format_size(bytes_per_s)}/s"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours: `42 s`, `3 min`, `1.8 h`."""
    if seconds < _LARGER_UNIT_THRESHOLD:
        return f"{seconds:.0f} s"
    if seconds < _LARGER_UNIT_THRESHOLD * _MINUTE_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def shorten(text: str, max_chars: int) -> str:
    """Return `text` with at most `max_chars` characters: "…" replaces the middle of a longer text."""
    if len(text) <= max_chars:
        return text
    n_end = (max_chars - 1) // 3
    return f"{text[: max_chars - 1 - n_end]}…{text[len(text) - n_end :]}"


def format_count(number: int, noun: str) -> str:
    """Format a number with a noun in the singular or plural: `1 token`, `2,048 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def to_local_time(at_ms: int) -> dt.datetime | None:
    """Return the local time for a Unix time in milliseconds; None if it is out of range, as after some imports."""
    try:
        return dt.datetime.fromtimestamp(at_ms / 1000, dt.timezone.utc).astimezone()
    except (OverflowError, OSError, ValueError):
        return None


def format_day(at_ms: int, today: dt.date) -> str:
    """Format a Unix time in milliseconds: `3 November`, `3 November 2025` in another year; "" if it is unknown (0)."""
    time = to_local_time(at_ms) if at_ms else None
    if time is None:
        return ""
    year = "" if time.year == today.year else f" {time.year}"
    return f"{time.day} {_MONTHS[time.month - 1]}{year}"
