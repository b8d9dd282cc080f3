"""Background engine requests (cache warming, titles) that run only between turns."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from edgechat.engine import protocol
from edgechat.models.loaded_model import LoadedModel


class IdleGate:
    """Lets background requests run between turns, and cancels them when a turn begins. Thread-safe."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._lock = threading.Lock()
        self._request_ids: set[int] = set()

    @contextlib.contextmanager
    def block_requests(self) -> Iterator[None]:
        """Return a context manager that cancels all background requests, and refuses new ones until it exits."""
        with self._lock:
            self._is_idle.clear()
            request_ids, self._request_ids = self._request_ids, set()
        for request_id in request_ids:
            self._model.engine.cancel(request_id)
        try:
            yield
        finally:
            self._is_idle.set()

    def generate_if_idle(self, request: protocol.Generate) -> list[protocol.AnyEvent] | None:
        """Run a background request and return its events. Raises EngineError.

        Return None if a turn is running, or if a turn starts and cancels the request.
        """
        with self._lock:
            if not self._is_idle.is_set():
                return None
            self._request_ids.add(request.id)
        events = list(self._model.engine.generate(request))
        with self._lock:
            is_complete = request.id in self._request_ids
            self._request_ids.discard(request.id)
        return events if is_complete else None

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until the current turn ends, for at most `timeout_s` seconds."""
        self._is_idle.wait(timeout_s)
