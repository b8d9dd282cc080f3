"""Request bodies: limits on the size and duration of each upload, and on the memory of all bodies together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from edgechat.hardware.memory import return_freed_memory
from edgechat.serve.decoded_size import estimate_decoded_bytes
from edgechat.serve.errors import ApiError

MAX_BODY_BYTES: Final = 16 << 20
BODY_TIMEOUT_S: Final = 30.0
BUDGET_BYTES: Final = 4 * MAX_BODY_BYTES
"""Maximum memory of all bodies that are being received or converted to prompts.

The first `UNCOUNTED_BYTES` of each body are not counted. A complete body counts with the size of its decoded values.
"""
UNCOUNTED_BYTES: Final = 64 << 10
"""Number of bytes of each body that are not counted, so that large bodies do not block small requests."""
# An upload is stalled if fewer than `_PROGRESS_BYTES` arrive in `_STALL_S`. When memory runs out, the server refuses
# stalled uploads first.
_PROGRESS_BYTES: Final = 64 << 10
_STALL_S: Final = 2.0
# The server receives and discards the body of a refused request up to these limits, because many clients read the
# response only after they have sent the whole body.
_MAX_DISCARDED_BYTES: Final = 4 * MAX_BODY_BYTES
_DISCARD_TIMEOUT_S: Final = 5.0
# When a body of this size or more is freed, the server returns its memory to the operating system after this delay, so
# that the memory of several bodies is returned together.
_MEMORY_RETURN_MIN_BYTES: Final = 1 << 20
_MEMORY_RETURN_DELAY_S: Final = 1.0


class BodyBudget:
    """Memory budget for request bodies. A body counts with its received bytes, and later with its decoded values.

    When the budget is exhausted, the server refuses the body that has been stalled the longest. If none is stalled, it
    refuses the newest incoming body that is larger than the body that needs memory.
    """

    def __init__(self, n_bytes: int = BUDGET_BYTES) -> None:
        self.n_free = self._n_bytes = n_bytes
        self._bodies: dict[IncomingBody, None] = {}
        self._is_memory_return_scheduled = False

    @contextlib.asynccontextmanager
    async def read(self, receive: Receive, headers: Headers) -> AsyncIterator[bytearray]:
        """Receive a request body, which counts in the budget until the end of the `async with` block.

        The caller must clear the returned bytes after decoding them. Raises ApiError if the body is too large or too
        slow, if memory runs out, or if the client disconnects.
        """
        if _parse_length(headers) > MAX_BODY_BYTES:
            raise _make_size_error()
        body = IncomingBody(self, receive)
        try:
            self._bodies[body] = None
            data = await body.read()
            body.hold(min(estimate_decoded_bytes(data), self._n_bytes))
            yield data
        finally:
            self._bodies.pop(body, None)
            body.free()

    @contextlib.contextmanager
    def hold(self, n_bytes: int) -> Iterator[Callable[[int], None]]:
        """Count `n_bytes` that belong to a request, but not to its body, in the budget. Raises ApiError.

        The context manager returns a function that adds bytes to them.
        """
        holder, n_held_bytes = IncomingBody(self, _receive_nothing), 0

        def add(n_new_bytes: int) -> None:
            nonlocal n_held_bytes
            n_held_bytes += n_new_bytes
            holder.hold(min(n_held_bytes, self._n_bytes))

        try:
            add(n_bytes)
            yield add
        finally:
            holder.free()

    def take(self, body: IncomingBody, n_bytes: int) -> bool:
        """Reserve `n_bytes` for a body, refusing other bodies if necessary; return False if that frees too little."""
        while self.n_free < n_bytes:
            victim = self._choose_victim(body, body.n_counted_bytes + n_bytes)
            if victim is None:
                return False
            self._bodies.pop(victim)
            victim.refuse()
        self.n_free -= n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """Release the bytes of a body; after a large body, schedule the return of memory to the operating system."""
        self.n_free += n_bytes
        if n_bytes >= _MEMORY_RETURN_MIN_BYTES and not self._is_memory_return_scheduled:
            self._is_memory_return_scheduled = True
            asyncio.get_running_loop().call_later(_MEMORY_RETURN_DELAY_S, self._return_freed_memory)

    def _return_freed_memory(self) -> None:
        self._is_memory_return_scheduled = False
        asyncio.get_running_loop().run_in_executor(None, return_freed_memory)

    def _choose_victim(self, body: IncomingBody, n_wanted_bytes: int) -> IncomingBody | None:
        incoming_bodies = [b for b in self._bodies if b is not body and b.n_counted_bytes and not b.is_complete]
        stalled_bodies = [b for b in incoming_bodies if time.monotonic() - b.progress_at > _STALL_S]
        if stalled_bodies:
            return min(stalled_bodies, key=lambda b: b.progress_at)
        return next((b for b in reversed(incoming_bodies) if b.n_counted_bytes > n_wanted_bytes), None)


class IncomingBody:
    """Request body that is being received or decoded, with its share of the memory budget."""

    def __init__(self, budget: BodyBudget, receive: Receive) -> None:
        self.data = bytearray()
        self.n_counted_bytes = 0
        """Number of bytes of the budget that this body uses."""
        self.progress_at = time.monotonic()
        """Time of the last progress, that is, the arrival of another `_PROGRESS_BYTES`."""
        self.is_complete = False
        self._budget = budget
        self._receive = receive
        self._task: asyncio.Future[None] | None = None

    async def read(self) -> bytearray:
        """Receive the whole body and return it. Raises ApiError."""
        self._task = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({self._task}, timeout=BODY_TIMEOUT_S)
            if not self._task.done():
                message = f"The request body did not arrive completely within {BODY_TIMEOUT_S:g} s."
                raise ApiError(408, message, code="timeout")
            if self._task.cancelled():
                raise _make_memory_error()
            self._task.result()
        finally:
            self._task.cancel()
        return self.data

    def hold(self, n_bytes: int) -> None:
        """Increase the body's share of the budget to `n_bytes`; never reduce it. Raises ApiError if memory is short."""
        n_new_bytes = max(0, n_bytes - UNCOUNTED_BYTES) - self.n_counted_bytes
        if n_new_bytes <= 0:
            return
        if not self._budget.take(self, n_new_bytes):
            self.free()  # immediately, so that other growing bodies of this size are not refused as well
            raise _make_memory_error()
        self.n_counted_bytes += n_new_bytes

    def free(self) -> None:
        """Return the memory of the body to the budget."""
        self._budget.give_back(self.n_counted_bytes)
        self.data, self.n_counted_bytes = bytearray(), 0

    def refuse(self) -> None:
        """Stop receiving the body and free its memory immediately."""
        self.free()
        if self._task is not None:
            self._task.cancel()

    async def _read(self) -> None:
        n_bytes_at_progress, is_last = 0, False
        while not is_last:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ApiError(499, "The client closed the connection.")
            chunk = message.get("body", b"")
            is_last = not message.get("more_body", False)
            if len(self.data) + len(chunk) > MAX_BODY_BYTES:
                raise _make_size_error()
            self.hold(len(self.data) + len(chunk))
            self.data += chunk
            if len(self.data) - n_bytes_at_progress >= _PROGRESS_BYTES:
                n_bytes_at_progress, self.progress_at = len(self.data), time.monotonic()
        self.is_complete = True


def has_body(headers: Headers) -> bool:
    """Return whether the headers announce a request body."""
    return "transfer-encoding" in headers or _parse_length(headers) > 0


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


async def discard_body(receive: Receive) -> None:
    """Receive and discard the rest of a body, up to a size limit and a time limit."""

    async def discard() -> None:
        n_bytes, is_last = 0, False
        while not is_last and n_bytes < _MAX_DISCARDED_BYTES:
            message = await receive()
            n_bytes += len(message.get("body", b""))
            is_last = message["type"] == "http.disconnect" or not message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(), _DISCARD_TIMEOUT_S)


def _parse_length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else 0


def _make_size_error() -> ApiError:
    return ApiError(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.", code="too_large")


def _make_memory_error() -> ApiError:
    message = f"The bodies of all requests together exceed {BUDGET_BYTES >> 20} MiB. Try again later."
    return ApiError(503, message, code="too_many_bodies")
