"""Complete and streamed responses to generation requests, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgechat.serve.addresses import LOOPBACK, parse_client_address
from edgechat.serve.dialects.dialect import Dialect
from edgechat.serve.errors import ApiError
from edgechat.serve.generation import Generation, cancel_task
from edgechat.serve.metrics import Metrics
from edgechat.serve.picked_generation import PickedGeneration
from edgechat.serve.response_builder import ResponseBuilder
from edgechat.serve.streams import StreamedResponse, encode_stream


async def respond(
    request: Request, dialect: Dialect, metrics: Metrics, body_memory: contextlib.AsyncExitStack
) -> Response:
    """Generate the response to a request in the form of `dialect`, as a stream if the client asked for one.

    `body_memory` is closed as soon as the request body is no longer needed. Raises ApiError and EdgechatError. In a
    stream, errors after the first engine event or the first keep-alive message are sent as a part of the stream.
    """
    builder = dialect.builder
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(dialect.close)
        kind = Generation if builder.pick_options is None else PickedGeneration
        generation = kind(builder, find_client_address(request), body_memory)
        stack.push_async_callback(generation.close)
        if builder.is_stream:
            await cancel_on_disconnect(request, asyncio.ensure_future(generation.wait_for_start(builder.ping_s)))
            content = encode_stream(dialect, generation, metrics)
            return StreamedResponse(content, dialect.STREAM_MEDIA_TYPE, stack.pop_all())
        await cancel_on_disconnect(request, asyncio.ensure_future(generation.finish()))
        metrics.record_stats(generation.totals.stats)
        body = msgspec.json.encode(dialect.make_body(generation.choices, generation.totals))
    return Response(body, media_type="application/json")


async def count_prompt_tokens(request: Request, builder: ResponseBuilder) -> int:
    """Return the number of tokens of the prompt of a request, without generating anything. Raises EdgechatError."""

    async def build_prompt() -> int:
        with builder.queue.admit(find_client_address(request)):
            requests, _ = await builder.build_requests()
            builder.discard_prompt()
            return len(requests[0].tokens or ())

    n_tokens: int = await cancel_on_disconnect(request, asyncio.ensure_future(build_prompt()))
    return n_tokens


def find_client_address(request: Request) -> str:
    """Return the address under which limits count the client of a request."""
    return parse_client_address(request.client.host) if request.client is not None else LOOPBACK


async def cancel_on_disconnect(request: Request, task: asyncio.Future[Any]) -> Any:
    """Wait for `task` and return its result. If the client disconnects first, cancel the task and raise ApiError."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client closed the connection.")
        return task.result()
    finally:
        watcher.cancel()
        if not task.done():
            await cancel_task(task)
        elif not task.cancelled():
            # asyncio logs the exception of a task unless something retrieves it. The shutdown of the server can cancel
            # this coroutine when the task has just failed.
            task.exception()
