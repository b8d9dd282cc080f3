"""What a download is asked for, and what it says of itself."""

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

# What a download leaves of the disk to everybody else.
_SPARE_DISK_BYTES: Final = 64 << 20
_LEAST_SPARE_BYTES: Final = 4 << 20


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When to give up, and when to try otherwise."""

    max_tries: int = 5
    """Failures in a row, with less between them than a connection at the least speed brings."""
    first_pause_s: float = 0.5
    """Before the second try; doubled each time."""
    max_pause_s: float = 60.0
    """A server that asks for more (Retry-After) is not waited for."""
    read_timeout_s: float = http.READ_S
    """Longest silence on a connection."""
    min_bytes_per_s: int = 1024
    """A connection that stays below this for `read_s` is dropped, and another made."""
    max_connections: int = 4
    growth_interval_s: float = 2.0
    """How long the effect of another connection is watched."""
    min_speedup: float = 1.2
    """It stays worth trying more while the last one made things so much faster."""


class DownloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A file to get."""

    url: str
    path: Path
    """Its name when it is whole."""
    size_bytes: int | None = None
    sha256: str = ""
    """What it must hash to; "" if nobody said."""
    headers: dict[str, str] = {}
    """For the first server, not for those it leads to."""


class DownloadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    name: str
    done_bytes: int
    total_bytes: int | None
    resumed_bytes: int
    """Of those done, what was there from another time."""
    bytes_per_s: float
    remaining_s: float | None
    state: str
    """`waiting` for another process, `downloading`, or `verifying`."""

    @property
    def text(self) -> str:
        """For a person, on one line."""
        if self.state == "waiting":
            return "another edgechat is getting this file; waiting for it"
        said = size(self.done_bytes)
        if self.total_bytes:
            said += f" of {size(self.total_bytes)} ({100 * self.done_bytes // self.total_bytes} %)"
        if self.state != "downloading":
            return f"{said}, checking"
        left = "" if self.remaining_s is None else f", {duration(self.remaining_s)} left"
        return f"{said}, {rate(self.bytes_per_s)}{left}"


ProgressCallback = Callable[[DownloadProgress], None]


class DownloadCancelled(DownloadError):  # noqa: N818  (somebody asked for it)
    """Somebody asked for it; what arrived is kept."""


def check_cancelled(cancel: threading.Event) -> None:
    """Raises Cancelled."""
    if cancel.is_set():
        raise DownloadCancelled("stopped; what arrived is kept, and the same command goes on from there")


def check_disk_space(path: Path, left_bytes: int) -> None:
    """Raises DownloadError if so many more bytes would fill the disk on which `path` is to be."""
    free = paths.free_bytes(path.parent)
    spare = min(_SPARE_DISK_BYTES, _LEAST_SPARE_BYTES + left_bytes)
    if left_bytes + spare > free:
        raise DownloadError(
            f"{path.name} needs {size(left_bytes)} more and {size(spare)} to spare, but {path.parent} has {size(free)} free: make "
            "room, and run it again; it goes on with what is there"
        )
