"""Request bodies: limits for the size and the duration of a body, and for the memory of all bodies together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive

from edgechat.hardware.memory import return_freed_memory
from edgechat.serve.decoded_size import estimate_decoded_bytes
from edgechat.serve.errors import ApiError

MAX_BODY_BYTES: Final = 16 << 20
BODY_TIMEOUT_S: Final = 30.0
BUDGET_BYTES: Final = 4 * MAX_BODY_BYTES
"""Maximum bytes of all bodies that are being received or converted to prompts, without `FREE_BYTES` each.

A complete body counts with the memory that it takes when it is decoded.
"""
FREE_BYTES: Final = 64 << 10
"""Bytes of each body that do not count, so that large bodies never keep out ordinary requests."""
# A client that sends fewer bytes than this in `_STALL_S` is slow: it loses its memory first when memory runs out.
_PROGRESS_BYTES: Final = 64 << 10
_STALL_S: Final = 2.0
# Bytes and time after which the server stops to discard the body of a refused request. Many clients read the response
# only after they have sent the whole body.
_MAX_DISCARDED_BYTES: Final = 4 * MAX_BODY_BYTES
_DISCARD_TIMEOUT_S: Final = 5.0
# Size of a body whose memory is returned to the operating system when it is freed, and the delay, so that several
# bodies are returned together.
_MIN_RETURNED_BYTES: Final = 1 << 20
_RETURN_DELAY_S: Final = 1.0


class BodyBudget:
    """Memory for request bodies. Each body holds as many bytes as have arrived, or as its decoded values take.

    When the bytes run out, the server refuses the slowest of the incoming bodies, or else the newest one of those that
    are larger than the body that needs memory.
    """

    def __init__(self, n_bytes: int = BUDGET_BYTES) -> None:
        self.n_free = self._n_bytes = n_bytes
        self._bodies: dict[IncomingBody, None] = {}
        self._is_return_planned = False

    @contextlib.asynccontextmanager
    async def read(self, receive: Receive, headers: Headers) -> AsyncIterator[bytearray]:
        """Receive the body of a request. Its memory counts until the end of the `async with` block.

        The caller clears the returned bytes when they are decoded. Raises ApiError if the body is too large or too
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

    def take(self, body: IncomingBody, n_bytes: int) -> bool:
        """Take bytes for a body, if necessary from other bodies; return False if they cannot be found."""
        while self.n_free < n_bytes:
            victim = self._choose_victim(body, body.n_counted_bytes + n_bytes)
            if victim is None:
                return False
            self._bodies.pop(victim)
            victim.refuse()
        self.n_free -= n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """Take back the bytes of a body. After a large body, freed memory soon goes back to the operating system."""
        self.n_free += n_bytes
        if n_bytes >= _MIN_RETURNED_BYTES and not self._is_return_planned:
            self._is_return_planned = True
            asyncio.get_running_loop().call_later(_RETURN_DELAY_S, self._return_freed_memory)

    def _return_freed_memory(self) -> None:
        self._is_return_planned = False
        asyncio.get_running_loop().run_in_executor(None, return_freed_memory)

    def _choose_victim(self, body: IncomingBody, n_wanted_bytes: int) -> IncomingBody | None:
        incoming = [b for b in self._bodies if b is not body and b.n_counted_bytes and not b.is_complete]
        stalled = [b for b in incoming if time.monotonic() - b.progress_at > _STALL_S]
        if stalled:
            return min(stalled, key=lambda b: b.progress_at)
        return next((b for b in reversed(incoming) if b.n_counted_bytes > n_wanted_bytes), None)


class IncomingBody:
    """Body of a request, while it arrives and until it is decoded."""

    def __init__(self, budget: BodyBudget, receive: Receive) -> None:
        self.data = bytearray()
        self.n_counted_bytes = 0
        """Number of bytes that this body holds of the budget."""
        self.progress_at = time.monotonic()
        """Time when the last `_PROGRESS_BYTES` had arrived."""
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
        """Hold memory for a total of `n_bytes`, or what is held if it is more. Raises ApiError if memory runs out."""
        n_new_bytes = max(0, n_bytes - FREE_BYTES) - self.n_counted_bytes
        if n_new_bytes <= 0:
            return
        if not self._budget.take(self, n_new_bytes):
            self.free()  # at once: bodies of the same size that grow now shall not be refused as well
            raise _make_memory_error()
        self.n_counted_bytes += n_new_bytes

    def free(self) -> None:
        """Return the memory of the body to the budget."""
        self._budget.give_back(self.n_counted_bytes)
        self.data, self.n_counted_bytes = bytearray(), 0

    def refuse(self) -> None:
        """Stop to receive the body, and free its memory now."""
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
    """Return whether a request has a body."""
    return "transfer-encoding" in headers or _parse_length(headers) > 0


async def discard_body(receive: Receive) -> None:
    """Receive and discard the rest of a body, up to a number of bytes and a time."""

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
