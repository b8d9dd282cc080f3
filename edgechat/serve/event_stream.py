"""Streams of the engine events of one or more requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from edgechat.engine import protocol
from edgechat.engine.resumption import RequestRecord
from edgechat.errors import EdgechatError
from edgechat.planner.load_plan import LoadPlan
from edgechat.serve.errors import ApiError
from edgechat.serve.tasks import silence_exception

E = TypeVar("E", bound=protocol.Event)
OnOutcome = Callable[[protocol.AnyEvent | EdgechatError], None]


class RequestEvent(NamedTuple):
    """Engine event, and the index of its request among the requests of the event stream."""

    request_index: int
    event: protocol.AnyEvent | None
    """None for a heartbeat, which a timer sends."""


class StreamOwner(Protocol):
    """Model queue to which a stream belongs."""

    @property
    def plan(self) -> LoadPlan | None:
        """Load plan of the model; None if no model is loaded."""

    async def recover_from(self, error: EdgechatError, plan: LoadPlan | None) -> bool:
        """Load the model again after an error, if that can help; return whether the failed request can be sent again.

        `plan` is the plan of the failed request.
        """

    def resubmit(self, request: protocol.Request, on_outcome: OnOutcome) -> None:
        """Submit a request that failed again. Raises EngineDiedError."""

    def release(self, stream: EventStream) -> None:
        """Cancel the unfinished requests of a stream."""


class EventStream:
    """Stream of the engine events of one or more requests. The caller must call `close`, even after errors.

    If the GPU fails, the stream continues with the events of the same requests, which the CPU resumes.
    """

    def __init__(
        self, owner: StreamOwner, requests: Sequence[protocol.Request], heartbeat_s: float | None = None,
        response_id: str = "",
    ) -> None:  # fmt: skip
        self.response_id = response_id
        self.has_started = False
        self._owner = owner
        self.plan = owner.plan
        """Load plan with which the requests were submitted."""
        self._unfinished_id_by_index = {index: request.id for index, request in enumerate(requests)}
        self._records = [RequestRecord(request) for request in requests]
        self._is_closed = False
        self._recovery: tuple[int, asyncio.Task[None]] | None = None
        """Index of a request that failed, and the task that submits it again; None while there is none."""
        self._resumed_indexes: set[int] = set()
        """Requests that failed and were submitted again."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, protocol.AnyEvent | EdgechatError | None]] = asyncio.Queue()
        self._heartbeat_s = heartbeat_s
        self._heartbeat: asyncio.TimerHandle | None = None
        self._schedule_heartbeat()

    def _schedule_heartbeat(self) -> None:
        if self._heartbeat_s is not None and not self._is_closed:
            self._heartbeat = self._loop.call_later(self._heartbeat_s, self._beat)

    def _beat(self) -> None:
        self._events.put_nowait((0, None))
        self._schedule_heartbeat()

    @property
    def unfinished_ids(self) -> list[int]:
        """IDs of the requests without a final event."""
        return list(self._unfinished_id_by_index.values())

    def make_event_handler(self, request_index: int) -> OnOutcome:
        """Return a thread-safe callback for the engine events of one request."""

        def on_event(event: protocol.AnyEvent | EdgechatError) -> None:
            with contextlib.suppress(RuntimeError):  # raised if the event loop is closed
                self._loop.call_soon_threadsafe(self._events.put_nowait, (request_index, event))

        return on_event

    async def next(self) -> RequestEvent | None:
        """Return the next event; None after the final events of all requests. Raises the engine's EdgechatError."""
        if self._recovery is not None:
            return await self._wait_for_recovery(*self._recovery)
        if not self._unfinished_id_by_index:
            return None
        index, event = await self._events.get()
        self.has_started = self.has_started or event is not None
        if isinstance(event, EdgechatError):
            self._recovery = index, asyncio.create_task(self._resume(index, event))
            return await self._wait_for_recovery(*self._recovery)
        if event is not None:
            self._records[index].add(event)
        if isinstance(event, protocol.PrefillProgressed) and index in self._resumed_indexes:
            event = None  # the client has seen the progress of this prompt
        if isinstance(event, protocol.FINAL_EVENTS):
            self._unfinished_id_by_index.pop(index, None)
        return RequestEvent(index, event)

    async def _wait_for_recovery(self, index: int, task: asyncio.Task[None]) -> RequestEvent:
        """Return a heartbeat after its interval, or as soon as the request was submitted again.

        Loading the model can take minutes. Raises the exceptions of `_resume`.
        """
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        try:
            await asyncio.wait({task}, timeout=self._heartbeat_s)
        finally:
            self._schedule_heartbeat()
        if task.done() and not task.cancelled():
            self._recovery = None
            task.result()
        return RequestEvent(index, None)

    async def _resume(self, index: int, error: EdgechatError) -> None:
        """Submit a failed request again, to continue its replies.

        Raises `error` if that cannot help or the request has failed before, and EngineDiedError.
        """
        is_first_failure = index not in self._resumed_indexes
        self._resumed_indexes.add(index)
        request_id = self._unfinished_id_by_index.pop(index, None)
        if not await self._owner.recover_from(error, self.plan) or not is_first_failure:
            raise error
        if request_id is not None and not self._is_closed:
            self._owner.resubmit(self._records[index].make_request(), self.make_event_handler(index))
            self._unfinished_id_by_index[index] = request_id

    def end_thinking(self) -> None:
        """Record that the reasoning was ended, for an engine process that resumes the requests later."""
        for record in self._records:
            record.end_thinking()

    async def wait_for(self, event_type: type[E]) -> E:
        """Return the first event of a type. Raises ApiError if the stream ends without one, and EdgechatError."""
        while (request_event := await self.next()) is not None:
            if isinstance(request_event.event, event_type):
                return request_event.event
        raise ApiError(500, "The engine ended a request without a final event. Send the request again.")

    def close(self) -> None:
        """Cancel the unfinished requests and release the lease. Further calls have no effect."""
        self._is_closed = True
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._recovery is not None:
            task, self._recovery = self._recovery[1], None
            task.cancel()  # which only ends the wait for a load
            silence_exception(task)
        self._owner.release(self)
        self._unfinished_id_by_index.clear()
