"""Downloads in the models screen: rows of the list, and a line that is always visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.text import Text
from textual.widgets import Static

from edgechat.humanize import format_duration, format_size
from edgechat.terminal import escape_controls
from edgechat.tui.screens.model_groups import MARK_WIDTH, fit_name, get_name_width, make_heading, make_option

if TYPE_CHECKING:
    from textual.widgets.option_list import Option

    from edgechat.tui.downloads import Download

DOWNLOAD_PREFIX: Final = "download:"
"""Prefix of the option IDs of downloads, before the reference."""
_BAR_WIDTH: Final = 12
# A full and an empty cell of a bar.
_BAR: Final = ("█", "░")
_ASCII_BAR: Final = ("#", "-")


class DownloadLine(Static):
    """Row with the running download and the number of other downloads; hidden if there are no downloads."""

    DEFAULT_CSS = """
    DownloadLine { height: 1; text-wrap: nowrap; text-overflow: ellipsis; color: $text-accent; }
    """

    def show(self, downloads: Sequence[Download], width: int, *, ascii_only: bool) -> None:
        """Show the running download, or else the first one of `downloads`."""
        self.display = bool(downloads)
        if downloads:
            current = find_current(downloads)
            others = f" +{len(downloads) - 1}" if len(downloads) > 1 else ""
            text = format_download(current, width - len(others), ascii_only=ascii_only)
            self.update(Text(escape_controls(f"{text.strip()}{others}"), no_wrap=True, overflow="ellipsis"))


def find_current(downloads: Sequence[Download]) -> Download:
    """Return the running download, or else the first one."""
    return next((d for d in downloads if d.state == "downloading"), downloads[0])


def make_download_rows(downloads: Sequence[Download], width: int, *, ascii_only: bool) -> list[Option]:
    """Return the rows of the downloads with a heading; [] if there are none."""
    rows = [
        make_option(format_download(d, width, ascii_only=ascii_only), f"{DOWNLOAD_PREFIX}{d.reference}")
        for d in downloads
    ]
    return [make_heading("Downloads"), *rows] if rows else []


def format_download(download: Download, width: int, *, ascii_only: bool) -> str:
    """Format a download as a row: name, progress bar, percentage, then rate and remaining time, or else the state."""
    glyphs = _ASCII_BAR if ascii_only else _BAR
    name_width = max(14, min(get_name_width(width), width - 48))
    parts = [f"{'':<{MARK_WIDTH}}{fit_name(download.reference, name_width)}"]
    share, progress = download.share, download.progress
    if share is not None:
        n_full = int(share * _BAR_WIDTH)
        parts.append(f"{glyphs[0] * n_full}{glyphs[1] * (_BAR_WIDTH - n_full)} {share:>4.0%}")
    if download.state != "downloading":
        parts.append(download.state)
    elif progress is None:
        parts.append("connecting")
    elif progress.state != "downloading":
        parts.append(progress.state)
    else:
        parts.append(f"{format_size(progress.bytes_per_s)}/s")
        if download.remaining_s is not None:
            parts.append(f"{format_duration(download.remaining_s)} left")
        total = f"of {format_size(download.total_bytes or 0)}"
        if download.total_bytes and len("  ".join([*parts, total])) <= width:
            parts.append(total)
    return "  ".join(parts)


def describe_download(download: Download, pause_key: str, cancel_key: str) -> str:
    """Describe a download in three lines: its reference, its error or received bytes, and its keys."""
    received_text = f"received {format_size(download.done_bytes)}"
    if download.total_bytes:
        received_text += f" of {format_size(download.total_bytes)}"
    verb = "pauses" if download.state in ("waiting", "downloading") else "resumes"
    keys = f"Enter or {pause_key} {verb} it, {cancel_key} cancels it"
    return "\n".join([download.reference, download.problem or received_text, keys])
