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
from edgechat.humanize import duration, rate, size

# Disk space that downloads leave free for other programs. Small downloads leave less free.
_SPARE_DISK_BYTES: Final = 64 << 20
_MIN_SPARE_DISK_BYTES: Final = 4 << 20


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for retries, slow connections and parallel connections."""

    max_tries: int = 5
    """Maximum number of failures in a row.

    A connection that transferred `min_bytes_per_s * read_timeout_s` bytes resets the count.
    """
    first_pause_s: float = 0.5
    """Pause before the second attempt, doubled for each further attempt."""
    max_pause_s: float = 60.0
    """Maximum pause. If a server requests a longer pause (Retry-After), the download fails."""
    read_timeout_s: float = http.READ_TIMEOUT_S
    """Timeout for each read from a connection."""
    min_bytes_per_s: int = 1024
    """Minimum speed: a connection that stays slower for `read_timeout_s` is replaced."""
    max_connections: int = 4
    growth_interval_s: float = 2.0
    """Time for which the effect of an added connection is measured."""
    min_speedup: float = 1.2
    """Factor by which the last added connection must have increased the speed before another one is added."""


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
    """HTTP headers. Token and cookies are not sent to other servers after a redirect."""


class DownloadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of the download of one file."""

    name: str
    done_bytes: int
    total_bytes: int | None
    resumed_bytes: int
    """Bytes of `done_bytes` that an earlier attempt downloaded."""
    bytes_per_s: float
    remaining_s: float | None
    state: str
    """`waiting` for another process, `downloading`, or `verifying`."""

    @property
    def text(self) -> str:
        """Progress as one line of text for display."""
        if self.state == "waiting":
            return "waiting for another edgechat that downloads this file"
        done = size(self.done_bytes)
        if self.total_bytes:
            done += f" of {size(self.total_bytes)} ({100 * self.done_bytes // self.total_bytes} %)"
        if self.state != "downloading":
            return f"{done}, verifying"
        remaining = "" if self.remaining_s is None else f", {duration(self.remaining_s)} left"
        return f"{done}, {rate(self.bytes_per_s)}{remaining}"


ProgressCallback = Callable[[DownloadProgress], None]


class DownloadCancelled(DownloadError):  # noqa: N818  (not a failure)
    """Raised when the caller cancelled the download; the part file stays for a later attempt."""


def check_cancelled(cancel: threading.Event) -> None:
    """Raise DownloadCancelled if `cancel` is set."""
    if cancel.is_set():
        raise DownloadCancelled("Download stopped. The received part is saved; start the download again to resume.")


def check_disk_space(path: Path, missing_bytes: int) -> None:
    """Raise DownloadError if the disk of `path` does not have enough space for `missing_bytes`."""
    free_bytes = paths.free_bytes(path.parent)
    spare_bytes = min(_SPARE_DISK_BYTES, _MIN_SPARE_DISK_BYTES + missing_bytes)
    if missing_bytes + spare_bytes > free_bytes:
        raise DownloadError(
            f"{path.name} needs {size(missing_bytes)} more, with {size(spare_bytes)} left free, but "
            f"{path.parent} has {size(free_bytes)} free. Delete some files, and start the download again to resume."
        )
