"""How an answer gets to a client: as one JSON object, or as a stream of events; and how it ends when the client goes."""

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


class ResponseBuilder(ABC):
    """The shape of one kind of answer."""

    ID_PREFIX: ClassVar[str]
    OBJECT: ClassVar[str]
    CHUNK_OBJECT: ClassVar[str]
    """What its objects are called, whole and in a stream."""

    def __init__(self, queue: ModelQueue, drawing: GenerationParams) -> None:
        self.served = queue
        self._head = {
            "id": f"{self.ID_PREFIX}-{secrets.token_hex(12)}", "created": int(time.time()), "model": queue.name,
            "system_fingerprint": f"edgechat-{__version__}",
        }  # fmt: skip
        self.is_stream = bool(drawing.stream)
        self.include_usage = bool(drawing.stream_options and drawing.stream_options.include_usage)

    @abstractmethod
    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        """What the engine is asked, and the answers that are to come. Raises ApiError, EdgechatError."""

    @abstractmethod
    def choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        """The answers, whole, in the shape of the API."""

    @abstractmethod
    def chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """What is new, in the shape that it has in a stream."""

    def body(self, choices: list[Choice], costs: UsageTotals) -> dict[str, Any]:
        """All as one object."""
        return self._object(self.OBJECT, self.choice_objects(choices), costs)

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        """What is new, as objects of a stream."""
        return [self._object(self.CHUNK_OBJECT, [part]) for part in self.chunk_choices(delta)]

    def usage_chunk(self, costs: UsageTotals) -> dict[str, Any]:
        """What a stream ends with, if it is to hold what it cost."""
        return self._object(self.CHUNK_OBJECT, [], costs)

    def _object(self, kind: str, choices: list[dict[str, Any]], costs: UsageTotals | None = None) -> dict[str, Any]:
        found = self._head | {"object": kind, "choices": choices}
        return found if costs is None else found | {"usage": costs.usage(), "timings": costs.timings()}


async def respond(request: Request, reply: ResponseBuilder, metrics: Metrics) -> Response:
    """Answer. Raises ApiError and EdgechatError before anything is sent."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(reply.served.admit())
        begun = asyncio.ensure_future(_start(reply))
        answer, choices, said, costs = await cancel_on_disconnect(request, begun)
        stack.callback(answer.close)
        if reply.is_stream:
            return _SseResponse(_sse_events(reply, said, costs, metrics), stack.pop_all())
        await cancel_on_disconnect(request, asyncio.ensure_future(_drain(said)))
        metrics.record_stats(costs.stats)
        body = msgspec.json.encode(reply.body(choices, costs))
    return Response(body, media_type="application/json")


async def _start(
    reply: ResponseBuilder,
) -> tuple[EventStream, list[Choice], AsyncIterator[ChoiceDelta | None], UsageTotals]:
    """Ask, and wait until something is heard: from then on an error is no longer the request's."""
    requests, choices = await reply.build_requests()
    answer = await reply.served.submit(requests)
    costs = UsageTotals()
    said = stream_deltas(answer, choices, requests[0].n_sequences, costs)
    try:
        first = await anext(said)
    except BaseException:
        answer.close()
        raise

    async def all_said() -> AsyncIterator[ChoiceDelta | None]:
        yield first
        async for delta in said:
            yield delta

    return answer, choices, all_said(), costs


async def _drain(said: AsyncIterator[ChoiceDelta | None]) -> None:
    async for _ in said:
        pass


async def cancel_on_disconnect(request: Request, work: asyncio.Future[Any]) -> Any:
    """The result of `work`; when the client goes away it is cancelled, and so is this. Raises what it raises."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client closed the connection")
        return work.result()
    finally:
        watcher.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, EdgechatError, ApiError):
                await work


def sse_event(data: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def _sse_events(
    reply: ResponseBuilder, said: AsyncIterator[ChoiceDelta | None], costs: UsageTotals, metrics: Metrics
) -> AsyncIterator[bytes]:
    try:
        async for delta in said:
            for chunk in reply.chunks(delta) if delta is not None else ():
                yield sse_event(chunk | {"usage": None} if reply.include_usage else chunk)
    except EdgechatError as error:
        yield sse_event(errors.to_api_error(error).body())
    except Exception as error:  # noqa: BLE001  (a stream ends properly)
        yield sse_event(errors.internal_error(error).body())
    else:
        metrics.record_stats(costs.stats)
        if reply.include_usage:
            yield sse_event(reply.usage_chunk(costs))
    yield DONE


class _SseResponse(StreamingResponse):
    """A stream whose place is free again however it ends."""

    def __init__(self, content: AsyncIterator[bytes], place: contextlib.ExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.close()
