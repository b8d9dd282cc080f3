"""Who computes when several models are served: one at a time, since their threads would wait for each other's cores."""

from __future__ import annotations

import asyncio
from collections import deque


class ModelLease:
    """A model has its turn for as long as it has requests, and nobody else waits for longer."""

    def __init__(self) -> None:
        self._model = ""
        self._n_requests = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def acquire(self, model: str) -> None:
        """Wait until requests to `model` may be computed; `leave` must follow."""
        if self._model in {"", model} and not self._waiting:
            self._model = model
            self._n_requests += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((model, turn))
        try:
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if turn.done():
                self.release()  # it came at the very moment
            else:
                self._waiting.remove((model, turn))
            raise

    def release(self) -> None:
        """A request ended."""
        self._n_requests -= 1
        if self._n_requests:
            return
        self._model = ""
        while self._waiting and self._model in {"", self._waiting[0][0]}:
            self._model, turn = self._waiting.popleft()
            self._n_requests += 1
            turn.set_result(None)
