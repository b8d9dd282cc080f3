"""Getting a model while the chat goes on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.errors import EdgechatError
from edgechat.terminal import escape_controls
from edgechat.tui.messages import DownloadEnded

if TYPE_CHECKING:
    from edgechat.catalogue.download.request import DownloadProgress
    from edgechat.tui.app import ChatApp

_SHOW_S: Final = 0.25


class DownloadRunner:
    """One download at a time; another one waits."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._jobs = ThreadPoolExecutor(1, "pull")
        self._waiting: dict[str, threading.Event] = {}
        self._reference = ""
        self._shown_s = 0.0

    def start(self, reference: str) -> None:
        """Get what a reference stands for; `Pulled` is posted to the app when it is there, or is not."""
        if reference not in self._waiting:
            self._waiting[reference] = cancel = threading.Event()
            self._jobs.submit(self._pull, reference, cancel)
            self._app.show_download(escape_controls(f"getting {reference}"))

    def cancel(self) -> None:
        """Stop all of it; what arrived is kept, and the same reference goes on from there."""
        for cancel in list(self._waiting.values()):
            cancel.set()

    def close(self) -> None:
        """Stop, and take nothing more."""
        self.cancel()
        self._jobs.shutdown(wait=False, cancel_futures=True)

    def _pull(self, reference: str, cancel: threading.Event) -> None:
        from edgechat.catalogue import library, pull
        from edgechat.catalogue.download.request import check_cancelled

        self._reference = reference
        name = problem = ""
        try:
            check_cancelled(cancel)
            path = pull.download_model(pull.find_target(reference), self._hear, cancel)
            entry = next((e for e in library.scan() if path in (e.path, *e.also_at)), None)
            name = entry.name if entry is not None else str(path)
        except EdgechatError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the screen must say it and go on)
            problem = f"an unexpected {type(error).__name__}: {error}"
        del self._waiting[reference]
        self._show("")
        self._app.post_message(DownloadEnded(reference, name, problem))

    def _hear(self, _number: int, progress: DownloadProgress) -> None:
        if time.monotonic() - self._shown_s >= _SHOW_S:
            self._shown_s = time.monotonic()
            self._show(f"getting {self._reference}: {progress.text}")

    def _show(self, words: str) -> None:
        if not self._app.is_leaving:
            self._app.call_later(self._app.show_download, escape_controls(words))
