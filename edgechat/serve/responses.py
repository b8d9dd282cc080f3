"""Responses as a JSON object or a stream of server-sent events, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgechat import __version__
from edgechat.engine import protocol
from edgechat.errors import EdgechatError
from edgechat.serve import errors
from edgechat.serve.choices import Choice, ChoiceDelta, UsageTotals, stream_deltas
from edgechat.serve.errors import ApiError
from edgechat.serve.metrics import Metrics
from edgechat.serve.model_queue import EventStream, ModelQueue
from edgechat.serve.schemas import GenerationParams

DONE: Final = b"data: [DONE]\n\n"
_Deltas = AsyncIterator[ChoiceDelta | None]


class ResponseBuilder(ABC):
    """Builds the engine requests and the response objects of one API request."""

    ID_PREFIX: ClassVar[str]
    OBJECT: ClassVar[str]
    """Value of the `object` field in a complete response."""
    CHUNK_OBJECT: ClassVar[str]
    """Value of the `object` field in a chunk of a stream."""

    def __init__(self, queue: ModelQueue, params: GenerationParams) -> None:
        self.queue = queue
        self._common_fields = {
            "id": f"{self.ID_PREFIX}-{secrets.token_hex(12)}", "created": int(time.time()), "model": queue.name,
            "system_fingerprint": f"edgechat-{__version__}",
        }  # fmt: skip
        self.is_stream = bool(params.stream)
        self.include_usage = bool(params.stream_options and params.stream_options.include_usage)

    @abstractmethod
    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        """Build the engine requests, and an empty choice for each reply. Raises ApiError and EdgechatError."""

    @abstractmethod
    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """Convert finished choices to the `choices` array of a complete response."""

    @abstractmethod
    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """Convert new output to entries of the `choices` array. The server sends each entry in a separate chunk."""

    def body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        """Build the JSON object of a complete response."""
        return self._make_object(self.OBJECT, self.make_choice_objects(choices), totals)

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """Build the stream chunks for new output."""
        return [self._make_object(self.CHUNK_OBJECT, [choice]) for choice in self.make_chunk_choices(delta)]

    def make_usage_chunk(self, totals: UsageTotals) -> dict[str, Any]:
        """Build the final usage chunk of a stream (`stream_options.include_usage`)."""
        return self._make_object(self.CHUNK_OBJECT, [], totals)

    def _make_object(
        self, kind: str, choices: list[dict[str, Any]], totals: UsageTotals | None = None
    ) -> dict[str, Any]:  # fmt: skip
        fields = self._common_fields | {"object": kind, "choices": choices}
        return fields if totals is None else fields | {"usage": totals.usage(), "timings": totals.timings()}


async def respond(request: Request, builder: ResponseBuilder, metrics: Metrics) -> Response:
    """Generate the response to a request, as a stream of server-sent events if the client set `stream`.

    Raises ApiError and EdgechatError. After the first engine event of a stream, errors are sent as server-sent events.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(builder.queue.admit())
        start_task = asyncio.ensure_future(_start_requests(builder))
        events, choices, deltas, totals = await cancel_on_disconnect(request, start_task)
        stack.callback(events.close)
        if builder.is_stream:
            return _SseResponse(_encode_sse_events(builder, deltas, totals, metrics), stack.pop_all())
        await cancel_on_disconnect(request, asyncio.ensure_future(_consume(deltas)))
        metrics.record_stats(totals.stats)
        body = msgspec.json.encode(builder.body(choices, totals))
    return Response(body, media_type="application/json")


async def _start_requests(builder: ResponseBuilder) -> tuple[EventStream, list[Choice], _Deltas, UsageTotals]:
    """Submit the engine requests, and wait for the first event so that an early error can set the HTTP status."""
    requests, choices = await builder.build_requests()
    events = await builder.queue.submit(requests)
    totals = UsageTotals()
    deltas = stream_deltas(events, choices, requests[0].n_sequences, totals)
    try:
        first_delta = await anext(deltas)
    except BaseException:
        events.close()
        raise

    async def all_deltas() -> _Deltas:
        yield first_delta
        async for delta in deltas:
            yield delta

    return events, choices, all_deltas(), totals


async def _consume(deltas: _Deltas) -> None:
    async for _ in deltas:
        pass


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
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, EdgechatError, ApiError):
                await task


def encode_sse_event(data: Any) -> bytes:
    """Encode a server-sent event with JSON data."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def _encode_sse_events(
    builder: ResponseBuilder, deltas: _Deltas, totals: UsageTotals, metrics: Metrics
) -> AsyncIterator[bytes]:
    try:
        async for delta in deltas:
            for chunk in builder.chunks(delta) if delta is not None else ():
                yield encode_sse_event(chunk | {"usage": None} if builder.include_usage else chunk)
    except EdgechatError as error:
        yield encode_sse_event(errors.to_api_error(error).body())
    except Exception as error:  # noqa: BLE001  (the client must receive the end of the stream)
        yield encode_sse_event(errors.make_internal_error(error).body())
    else:
        metrics.record_stats(totals.stats)
        if builder.include_usage:
            yield encode_sse_event(builder.make_usage_chunk(totals))
    yield DONE


class _SseResponse(StreamingResponse):
    """Response that streams server-sent events, and closes `resources` at its end, even after an error."""

    def __init__(self, content: AsyncIterator[bytes], resources: contextlib.ExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._resources.close()
