"""Streamed responses, with signs of life while nothing else is sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from edgechat.errors import EdgechatError
from edgechat.serve import errors
from edgechat.serve.dialects.dialect import Dialect
from edgechat.serve.errors import ApiError
from edgechat.serve.generation import Generation
from edgechat.serve.metrics import Metrics


async def encode_stream(dialect: Dialect, generation: Generation, metrics: Metrics) -> AsyncIterator[bytes]:
    """Yield the parts of a stream in the form of a dialect, which ends it properly even after an error."""
    try:
        async for data in _encode_deltas(dialect, generation):
            yield data
    except ApiError as error:
        end = dialect.encode_error(error)
    except EdgechatError as error:
        end = dialect.encode_error(errors.to_api_error(error))
    except Exception as error:  # noqa: BLE001  (the client must receive the end of the stream)
        end = dialect.encode_error(errors.make_internal_error(error))
    else:
        metrics.record_stats(generation.totals.stats)
        end = dialect.encode_end(generation.totals)
    for data in end:
        yield data


async def _encode_deltas(dialect: Dialect, generation: Generation) -> AsyncIterator[bytes]:
    """Yield the output of a stream, and a keep-alive message whenever nothing else was sent for a while."""
    ping_s = dialect.builder.ping_s
    while not await generation.wait_for_start(ping_s):
        for data in dialect.encode_ping():
            yield data
    sent_at = time.monotonic()
    async for delta in generation.deltas():
        parts = dialect.encode_delta(delta)
        if not parts and ping_s is not None and time.monotonic() - sent_at > ping_s / 2:
            parts = dialect.encode_ping()
        for data in parts:
            yield data
        if parts:
            sent_at = time.monotonic()


class StreamedResponse(StreamingResponse):
    """Response that streams `content`, and closes `resources` at its end, even after an error."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, resources: contextlib.AsyncExitStack) -> None:
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._resources.aclose()
