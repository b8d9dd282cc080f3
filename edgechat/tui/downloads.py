"""Model downloads in the background of the chat: one at a time, with a queue, pause, resume and cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from edgechat.terminal import escape_controls
from edgechat.tui.messages import DownloadEnded
from edgechat.tui.workers import format_error

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress
    from edgechat.catalogue.pull import PullTarget

_STATUS_INTERVAL_S: Final = 0.25

DownloadState = Literal["waiting", "downloading", "paused", "failed"]


@dataclass
class Download:
    """A model in the list of downloads."""

    reference: str
    """Catalogue name or repository, with or without a quant."""
    state: DownloadState = "waiting"
    progress: DownloadProgress | None = None
    """Latest progress of the current file; None before the transfer has begun."""
    earlier_bytes: int = 0
    """Size of the completed files in bytes, if the model has several files."""
    total_bytes: int | None = None
    """Size of all files in bytes; None if it is unknown."""
    problem: str = ""
    """Error message of a failed download."""
    cancel_event: threading.Event = field(default_factory=threading.Event)

    @property
    def done_bytes(self) -> int:
        """Number of received bytes of all files."""
        return self.earlier_bytes + (self.progress.done_bytes if self.progress is not None else 0)

    @property
    def share(self) -> float | None:
        """Received share of all files, from 0 to 1; None if the total size is unknown."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else None

    @property
    def remaining_s(self) -> float | None:
        """Predicted time until the end of the download, in seconds; None if it is unknown."""
        bytes_per_s = self.progress.bytes_per_s if self.progress is not None else 0.0
        is_known = self.total_bytes is not None and bytes_per_s > 0
        return max(0, (self.total_bytes or 0) - self.done_bytes) / bytes_per_s if is_known else None


class DownloadRunner:
    """Runs model downloads in a thread, one at a time, in the order of the calls of `start`."""

    def __init__(self, on_status: Callable[[str], object], on_end: Callable[[DownloadEnded], object]) -> None:
        """Both callbacks can run in the download thread; `on_status` receives "" if no download is in the list."""
        self._on_status = on_status
        self._on_end = on_end
        self._thread = ThreadPoolExecutor(1, "download")
        self._lock = threading.Lock()
        self._is_closed = False
        self._downloads: dict[str, Download] = {}
        self._status_sent_at = 0.0

    def list_downloads(self) -> list[Download]:
        """Return all downloads that are running, waiting, paused or failed, in the order in which they were started."""
        with self._lock:
            return list(self._downloads.values())

    def find(self, reference: str) -> Download | None:
        """Return the download with this reference; None if it is not in the list."""
        with self._lock:
            return self._downloads.get(reference)

    def start(self, reference: str) -> None:
        """Queue a download, or resume it if it is paused or failed; it continues from its part file."""
        with self._lock:
            earlier = self._downloads.get(reference)
            if self._is_closed or (earlier is not None and earlier.state in ("waiting", "downloading")):
                return
            download = Download(reference)
            if earlier is not None:
                download.progress, download.earlier_bytes = earlier.progress, earlier.earlier_bytes
                download.total_bytes = earlier.total_bytes
            self._downloads[reference] = download
        self._thread.submit(self._run, download)
        self._report()

    def pause(self, reference: str) -> None:
        """Stop a running or waiting download, and leave it in the list. `start` resumes it."""
        with self._lock:
            download = self._downloads.get(reference)
            if download is None or download.state not in ("waiting", "downloading"):
                return
            download.state = "paused"
            download.cancel_event.set()
        self._report()

    def cancel(self, reference: str) -> None:
        """Stop a download, and remove it from the list. The received bytes stay on the disk."""
        with self._lock:
            download = self._downloads.pop(reference, None)
            if download is not None:
                download.cancel_event.set()
        self._report()

    def close(self) -> None:
        """Stop all downloads, and end the thread."""
        with self._lock:
            self._is_closed = True
            for download in self._downloads.values():
                download.cancel_event.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, download: Download) -> None:
        try:
            with self._lock:
                if download.cancel_event.is_set():
                    return
                download.state = "downloading"
            self._report()
            name = self._transfer(download)
        except Exception as error:  # noqa: BLE001  (any error is shown, and the thread continues)
            with self._lock:
                if download.cancel_event.is_set():  # paused or cancelled
                    return
                download.state, download.problem = "failed", format_error(error)
            self._report()
            self._on_end(DownloadEnded(download.reference, "", download.problem))
            return
        with self._lock:
            if self._downloads.get(download.reference) is download:
                del self._downloads[download.reference]
        self._report()
        self._on_end(DownloadEnded(download.reference, name, ""))

    def _transfer(self, download: Download) -> str:
        """Download a model, and return its name in the list of installed models. Raises EdgechatError."""
        from edgechat.catalogue import library, pull
        from edgechat.catalogue.download.request import check_cancelled

        target = pull.find_target(download.reference)
        download.total_bytes = target.size_bytes
        check_cancelled(download.cancel_event)
        path = pull.download_model(target, self._make_progress_callback(download, target), download.cancel_event)
        entry = library.find_by_path(path)
        return entry.name if entry is not None else str(path)

    def _make_progress_callback(
        self, download: Download, target: PullTarget
    ) -> Callable[[int, DownloadProgress], None]:
        sizes = [file.size_bytes or 0 for file in target.files]

        def update(index: int, progress: DownloadProgress) -> None:
            download.progress, download.earlier_bytes = progress, sum(sizes[:index])
            if target.size_bytes is None and len(sizes) == 1:
                download.total_bytes = progress.total_bytes
            if time.monotonic() - self._status_sent_at >= _STATUS_INTERVAL_S:
                self._report()

        return update

    def _report(self) -> None:
        """Call `on_status` with a one-line summary of the downloads."""
        self._status_sent_at = time.monotonic()
        self._on_status(escape_controls(format_status(self.list_downloads())))


def format_status(downloads: list[Download]) -> str:
    """Return a line with the running download and the numbers of waiting and paused downloads; "" without downloads.

    Failed downloads are omitted, because their errors are shown separately.
    """
    running = next((d for d in downloads if d.state == "downloading"), None)
    texts = []
    if running is not None:
        progress = f": {running.progress.text}" if running.progress is not None else ""
        texts.append(f"Downloading {running.reference}{progress}")
    for state in ("waiting", "paused"):
        names = [d.reference for d in downloads if d.state == state]
        if names and running is None and not texts:
            texts.append(f"Download {state}: {names[0]}")
            names = names[1:]
        if names:
            texts.append(f"{len(names)} {state}")
    return ", ".join(texts)
