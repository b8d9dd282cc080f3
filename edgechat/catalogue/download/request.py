"""Download requests, retry policy and progress reports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.catalogue.download import http
from edgechat.errors import DownloadError
from edgechat.humanize import format_duration, format_rate, format_size

# Disk space that a download must leave free for other programs. The amount is smaller for small downloads, but never
# below `_MIN_SPARE_DISK_BYTES`.
_SPARE_DISK_BYTES: Final = 64 << 20
_MIN_SPARE_DISK_BYTES: Final = 4 << 20


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for retries and for slow and parallel connections."""

    max_tries: int = 5
    """Number of consecutive failures after which the download fails.

    The count restarts after a connection that transferred `min_bytes_per_s * read_timeout_s` bytes.
    """
    first_pause_s: float = 0.5
    """Pause before the second attempt. The pause doubles for each further attempt."""
    max_pause_s: float = 60.0
    """Maximum pause before an attempt. If a server requests a longer pause (Retry-After), the download fails."""
    read_timeout_s: float = http.READ_TIMEOUT_S
    """Timeout for each read from a connection."""
    min_bytes_per_s: int = 1024
    """Minimum speed of a connection. A connection that is slower for `read_timeout_s` is replaced."""
    max_connections: int = 4
    growth_interval_s: float = 2.0
    """Duration of the speed measurement after a connection was added."""
    min_speedup: float = 1.2
    """Minimum factor by which an added connection must increase the speed before another connection is added."""


class DownloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A file to download."""

    url: str
    path: Path
    """Local path of the complete file."""
    size_bytes: int | None = None
    """Expected file size; None if unknown."""
    sha256: str = ""
    """Expected hash; "" if unknown."""
    headers: dict[str, str] = {}
    """HTTP headers. After a redirect to another server, the token and cookies are omitted."""


class DownloadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of the download of one file."""

    name: str
    done_bytes: int
    total_bytes: int | None
    resumed_bytes: int
    """Number of bytes in `done_bytes` that earlier attempts downloaded."""
    bytes_per_s: float
    remaining_s: float | None
    state: str
    """State of the download: `waiting` (for another process), `downloading` or `verifying`."""

    @property
    def text(self) -> str:
        """Progress as one line of text for display."""
        if self.state == "waiting":
            return "waiting for another edgechat process to download this file"
        progress_text = format_size(self.done_bytes)
        if self.total_bytes:
            progress_text += f" of {format_size(self.total_bytes)} ({100 * self.done_bytes // self.total_bytes} %)"
        if self.state != "downloading":
            return f"{progress_text}, verifying"
        remaining_text = "" if self.remaining_s is None else f", {format_duration(self.remaining_s)} left"
        return f"{progress_text}, {format_rate(self.bytes_per_s)}{remaining_text}"


ProgressCallback = Callable[[DownloadProgress], None]


class DownloadCancelled(DownloadError):  # noqa: N818  (not a failure)
    """Raised when the caller cancelled the download. The part file remains for a later attempt."""


def check_cancelled(cancel: threading.Event) -> None:
    """Raise DownloadCancelled if `cancel` is set."""
    if cancel.is_set():
        raise DownloadCancelled("Download stopped. The received bytes are saved. Start the download again to resume.")


def check_disk_space(path: Path, missing_bytes: int) -> None:
    """Raise DownloadError if the disk of `path` does not have enough space for `missing_bytes`."""
    free_bytes = paths.free_bytes(path.parent)
    spare_bytes = min(_SPARE_DISK_BYTES, _MIN_SPARE_DISK_BYTES + missing_bytes)
    if missing_bytes + spare_bytes > free_bytes:
        raise DownloadError(
            f"{path.name} needs another {format_size(missing_bytes)}, and {format_size(spare_bytes)} must remain free, "
            f"but {path.parent} has only {format_size(free_bytes)}. "
            "Delete some files, and start the download again to resume."
        )
