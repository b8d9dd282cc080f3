"""Getting a model while the chat goes on."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.chat.visible import visible
from edgechat.errors import EdgechatError
from edgechat.tui.events import Pulled

if TYPE_CHECKING:
    from edgechat.catalogue.transfer import Progress
    from edgechat.tui.app import ChatApp

_SHOW_S: Final = 0.25


class Puller:
    """One download at a time; another one waits."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._jobs = ThreadPoolExecutor(1, "pull")
        self._cancel = threading.Event()
        self._shown_s = 0.0
        self.reference = ""
        """What is being got; "" if nothing is."""

    def pull(self, reference: str) -> None:
        """Get what a reference stands for; `Pulled` is posted to the app when it is there, or is not."""
        self._jobs.submit(self._pull, reference)

    def cancel(self) -> None:
        """Stop; what arrived is kept, and the same reference goes on from there."""
        self._cancel.set()

    def _pull(self, reference: str) -> None:
        from edgechat.catalogue import library, pull

        self._cancel.clear()
        self.reference = reference
        self._show(f"getting {reference}")
        name = problem = ""
        try:
            path = pull.get(pull.find(reference), self._hear, self._cancel)
            entry = next((e for e in library.scan() if path in (e.path, *e.also_at)), None)
            name = entry.name if entry is not None else str(path)
        except EdgechatError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  (whatever it is, the screen must say it and go on)
            problem = f"an unexpected {type(error).__name__}: {error}"
        self.reference = ""
        self._show("")
        self._app.post_message(Pulled(reference, name, problem))

    def _hear(self, _number: int, progress: Progress) -> None:
        if time.monotonic() - self._shown_s >= _SHOW_S:
            self._shown_s = time.monotonic()
            self._show(f"getting {self.reference}: {progress.words}")

    def _show(self, words: str) -> None:
        if not self._app.is_leaving:
            self._app.call_later(self._app.show_pull, visible(words))
