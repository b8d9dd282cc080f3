"""Format the dates of conversations for lists."""

from __future__ import annotations

import datetime as dt
from typing import Final

from edgechat.humanize import to_local_time

_DAYS_PER_WEEK: Final = 7


def format_day_heading(at_ms: int, today: dt.date) -> str:
    """Return the heading for a Unix time in milliseconds, such as "Yesterday" or "March 2026"."""
    time = to_local_time(at_ms)
    if time is None:
        return "Unknown date"
    n_days_ago = (today - time.date()).days
    if n_days_ago <= 0:
        return "Today"
    if n_days_ago == 1:
        return "Yesterday"
    return "Last seven days" if n_days_ago < _DAYS_PER_WEEK else f"{time:%B %Y}"


def format_short_date(at_ms: int, today: dt.date) -> str:
    """Return a date of at most 6 columns for a row below a day heading: "14:05", "Mon", "5 Mar"; "" if unknown."""
    time = to_local_time(at_ms)
    if time is None:
        return ""
    n_days_ago = (today - time.date()).days
    if 0 <= n_days_ago <= 1:
        return f"{time:%H:%M}"
    return f"{time:%a}" if 0 < n_days_ago < _DAYS_PER_WEEK else f"{time.day} {time:%b}"


def format_date_and_time(at_ms: int, today: dt.date) -> str:
    """Return a date and time such as "Today 14:05", "5 Mar 14:05" or "5 Mar 2025 14:05"; "unknown date" without one."""
    time = to_local_time(at_ms)
    if time is None or not at_ms:
        return "unknown date"
    n_days_ago = (today - time.date()).days
    day = {0: "Today", 1: "Yesterday"}.get(n_days_ago, f"{time.day} {time:%b}")
    year = "" if time.year == today.year or n_days_ago in {0, 1} else f" {time.year}"
    return f"{day}{year} {time:%H:%M}"
