"""Model downloads in the background of the chat."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.terminal import escape_controls
from edgechat.tui.messages import DownloadEnded
from edgechat.tui.workers import format_error

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress

_STATUS_INTERVAL_S: Final = 0.25


class DownloadRunner:
    """Runs model downloads in a thread, one at a time, in the order of the calls of `start`."""

    def __init__(self, on_status: Callable[[str], object], on_end: Callable[[DownloadEnded], object]) -> None:
        """Both callbacks run in the download thread; `on_status` receives "" at the end of a download."""
        self._on_status = on_status
        self._on_end = on_end
        self._thread = ThreadPoolExecutor(1, "download")
        self._cancel_events: dict[str, threading.Event] = {}
        self._reference = ""
        self._status_sent_at = 0.0

    def start(self, reference: str) -> None:
        """Queue the download of a model (catalogue name or repository), unless it is already running or waiting."""
        if reference not in self._cancel_events:
            self._cancel_events[reference] = cancel_event = threading.Event()
            self._thread.submit(self._download, reference, cancel_event)
            self._on_status(escape_controls(f"Downloading {reference}"))

    def cancel(self) -> None:
        """Cancel all downloads. If the same download is started again, it resumes from its part file."""
        for cancel_event in list(self._cancel_events.values()):
            cancel_event.set()

    def close(self) -> None:
        """Cancel all running and waiting downloads, and end the thread."""
        self.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _download(self, reference: str, cancel_event: threading.Event) -> None:
        self._reference = reference
        name = problem = ""
        try:
            from edgechat.catalogue import library, pull
            from edgechat.catalogue.download.request import check_cancelled

            check_cancelled(cancel_event)
            path = pull.download_model(pull.find_target(reference), self._on_progress, cancel_event)
            entry = next((e for e in library.scan() if path in (e.path, *e.other_paths)), None)
            name = entry.name if entry is not None else str(path)
        except Exception as error:  # noqa: BLE001  (any error is shown, and the thread continues)
            problem = format_error(error)
        del self._cancel_events[reference]
        self._on_status("")
        self._on_end(DownloadEnded(reference, name, problem))

    def _on_progress(self, _number: int, progress: DownloadProgress) -> None:
        if time.monotonic() - self._status_sent_at >= _STATUS_INTERVAL_S:
            self._status_sent_at = time.monotonic()
            self._on_status(escape_controls(f"Downloading {self._reference}: {progress.text}"))
