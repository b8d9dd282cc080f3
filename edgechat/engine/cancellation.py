"""Cancellation of work that runs on another thread, such as building a prompt."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from edgechat.errors import RequestCancelledError


class Cancellation:
    """Signal that asks another thread to stop its work. The worker checks the signal between its steps. Thread-safe."""

    def __init__(self) -> None:
        self._is_cancelled = False
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Cancel the work. A second call does nothing."""
        with self._lock:
            is_first, self._is_cancelled = not self._is_cancelled, True
            for callback in self._callbacks if is_first else ():
                callback()

    def check(self) -> None:
        """Raise RequestCancelledError if the work was cancelled."""
        if self._is_cancelled:
            raise RequestCancelledError("The request was cancelled.")

    @contextlib.contextmanager
    def call_on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Return a context manager in which `cancel` calls `callback`, to interrupt a step.

        Raises RequestCancelledError if the work was already cancelled.
        """
        with self._lock:
            self.check()
            self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
