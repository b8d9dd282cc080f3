"""What the engine does while nothing is asked of it, and how it gives way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient


class IdleGate:
    """Keeps the time between turns. Any thread may work in it; a turn that begins ends that work at once."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._lock = threading.Lock()
        self._request_ids: set[int] = set()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Nothing but a turn within this."""
        with self._lock:
            self._is_idle.clear()
            request_ids, self._request_ids = self._request_ids, set()
        for request_id in request_ids:
            self._engine.cancel(request_id)
        try:
            yield
        finally:
            self._is_idle.set()

    def generate_if_idle(self, request: protocol.Generate) -> list[protocol.AnyEvent] | None:
        """All that the engine says to `request`; None if a turn came between. Raises EngineError."""
        with self._lock:
            if not self._is_idle.is_set():
                return None
            self._request_ids.add(request.id)
        heard = list(self._engine.generate(request))
        with self._lock:
            was_left_alone = request.id in self._request_ids
            self._request_ids.discard(request.id)
        return heard if was_left_alone else None

    def wait_until_idle(self, timeout_s: float) -> None:
        """Return when no turn runs, or after `timeout_s`."""
        self._is_idle.wait(timeout_s)
