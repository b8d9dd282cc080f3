"""Lock that lets only one served model compute at a time, because all models use the same CPU cores."""

from __future__ import annotations

import asyncio
from collections import deque


class ModelLease:
    """Lock that requests to the same model share. Waiting requests get the lock in order of arrival."""

    def __init__(self) -> None:
        self._model = ""
        self._n_requests = 0
        self._waiters: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def acquire(self, model: str) -> None:
        """Wait until requests to `model` can run. The caller must call `release` at the end of the request."""
        if self._model in {"", model} and not self._waiters:
            self._model = model
            self._n_requests += 1
            return
        grant: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((model, grant))
        try:
            await asyncio.shield(grant)
        except asyncio.CancelledError:
            if grant.done():
                self.release()  # the lease was granted just before the cancellation
            else:
                self._waiters.remove((model, grant))
            raise

    def release(self) -> None:
        """End the lease of one request.

        When no request holds the lease any more, the longest-waiting request gets it, together with the requests to the
        same model that directly follow it in the queue.
        """
        self._n_requests -= 1
        if self._n_requests:
            return
        self._model = ""
        while self._waiters and self._model in {"", self._waiters[0][0]}:
            self._model, grant = self._waiters.popleft()
            self._n_requests += 1
            grant.set_result(None)
