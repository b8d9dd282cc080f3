"""Streamed responses as server-sent events, with keep-alive comments while nothing else is sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from edgechat.errors import EdgechatError
from edgechat.serve import errors
from edgechat.serve.errors import ApiError
from edgechat.serve.generation import Generation
from edgechat.serve.metrics import Metrics
from edgechat.serve.response_builder import ResponseBuilder

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": keep-alive\n\n"
"""Comment that prevents time-outs of proxies and clients in a silent stream. Clients ignore its text."""


def encode_sse_event(data: Any) -> bytes:
    """Encode a server-sent event with JSON data."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def encode_sse_events(builder: ResponseBuilder, generation: Generation, metrics: Metrics) -> AsyncIterator[bytes]:
    """Yield the encoded events of a stream, and the end marker (`DONE`) even after an error."""
    try:
        async for data in _encode_deltas(builder, generation):
            yield data
    except ApiError as error:
        yield encode_sse_event(error.body())
    except EdgechatError as error:
        yield encode_sse_event(errors.to_api_error(error).body())
    except Exception as error:  # noqa: BLE001  (the client must receive the end of the stream)
        yield encode_sse_event(errors.make_internal_error(error).body())
    else:
        metrics.record_stats(generation.totals.stats)
        if builder.include_usage:
            yield encode_sse_event(builder.make_usage_chunk(generation.totals))
    yield DONE


async def _encode_deltas(builder: ResponseBuilder, generation: Generation) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream, and a comment whenever nothing else was sent for a while."""
    while not await generation.wait_for_start(builder.ping_s):
        yield PING
    sent_at = time.monotonic()
    async for delta in generation.deltas():
        chunks = builder.chunks(delta)
        for chunk in chunks:
            yield encode_sse_event(chunk | {"usage": None} if builder.include_usage else chunk)
        if chunks:
            sent_at = time.monotonic()
        elif builder.ping_s is not None and time.monotonic() - sent_at > builder.ping_s / 2:
            sent_at = time.monotonic()
            yield PING


class SseResponse(StreamingResponse):
    """Response that streams server-sent events, and closes `resources` at its end, even after an error."""

    def __init__(self, content: AsyncIterator[bytes], resources: contextlib.AsyncExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._resources.aclose()
