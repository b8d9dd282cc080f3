"""Clients of an engine process: the one that started it, and, if the engine is resident, others that attach to it.

Each client numbers its requests from 1. The engine's requests have the client's number in the upper bits of their ids,
so that every event finds its client. When a client ends, only its own requests are cancelled.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

from msgspec import structs

from edgechat.engine import frames, protocol
from edgechat.engine.generation import DrafterState, PromptCacheUse
from edgechat.engine.pipe import Channel
from edgechat.errors import EngineError

REQUEST_ID_BITS: Final = 40
_MAX_REQUEST_ID: Final = (1 << REQUEST_ID_BITS) - 1
# Time that a new connection has to attach before the engine may end without it.
_ATTACH_TIMEOUT_S: Final = 2.0
# A client that reads so slowly that more than this waits for it is disconnected. A reply of 100,000 tokens has 10 MB.
MAX_WAITING_BYTES: Final = 64 << 20
_POLL_S: Final = 0.005


class RequestHandler(Protocol):
    """The engine server, as its clients' threads see it. All methods are thread-safe."""

    def receive(self, request: protocol.AnyRequest) -> None:
        """Execute a request, whose id contains the number of its client."""

    def remove_client(self, number: int, unfinished_ids: Collection[int]) -> None:
        """Cancel the unfinished requests of a client that has ended."""

    def describe_model(self, request_id: int) -> protocol.Attached:
        """Return the loaded model, as the answer to an Attach request."""


class ClientConnection:
    """Connection to one client. A thread reads its requests; of a resident engine, another thread writes the events."""

    def __init__(self, number: int, channel: Channel, *, is_buffered: bool) -> None:
        """With `is_buffered`, `write` never waits for the client."""
        self.number = number
        self.connected_at = time.monotonic()
        self.client: protocol.ClientInfo | None = None
        """The attached client; None if the connection only asks for the status."""
        self.unfinished_ids: set[int] = set()
        """Ids of its requests that have not ended, with the number of the client in the upper bits."""
        self._channel = channel
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_buffered = is_buffered
        if is_buffered:
            threading.Thread(target=self._write_frames, name=f"client-{number}-events", daemon=True).start()

    def read(self) -> protocol.AnyRequest | None:
        """Return the next request; None if the client has ended, or sent an invalid message."""
        body = self._channel.read()
        with contextlib.suppress(EngineError):
            request = frames.decode_request(body) if body is not None else None
            return request if request is not None and 0 <= request.id <= _MAX_REQUEST_ID else None
        return None

    def write(self, event: protocol.Event) -> None:
        """Send an event, whose id is that of the client's request."""
        frame = frames.encode(event)
        if not self._is_buffered:
            self._channel.write(frame)  # after a failed write, the reader thread notices that the client has ended
            return
        with self._lock:
            self._waiting_bytes += len(frame)
            is_too_slow = self._waiting_bytes > MAX_WAITING_BYTES
        if is_too_slow:
            self._channel.leave()  # the client then leaves, too
        else:
            self._frames.put(frame)

    @property
    def has_unsent_events(self) -> bool:
        """True if a thread has yet to write events."""
        with self._lock:
            return self._waiting_bytes > 0

    def close(self) -> None:
        """Close the connection, after the reader thread has read its end."""
        self._frames.put(None)
        self._channel.close()

    def _write_frames(self) -> None:
        while (frame := self._frames.get()) is not None:
            if not self._channel.write(frame):
                return
            with self._lock:
                self._waiting_bytes -= len(frame)


class ClientConnections:
    """All clients of one engine process. All methods are thread-safe."""

    def __init__(self, handler: RequestHandler, *, is_shared: bool) -> None:
        """With `is_shared`, a client that does not read its events cannot delay the engine and the other clients."""
        self._handler = handler
        self._is_shared = is_shared
        self._connections: dict[int, ClientConnection] = {}
        self._n_connections_so_far = 0
        self._lock = threading.Lock()
        self._idle_since = time.monotonic()
        self._keep_alive_s = 0.0
        self._decode_tps: float | None = None
        self._cache_use = PromptCacheUse()
        self._drafter: DrafterState | None = None
        self._is_ending = False
        self.on_end: Callable[[], None] = lambda: None
        """Function that hides the engine from new clients; called when it begins to end."""

    def add(self, channel: Channel) -> None:
        """Add a connection, and start to read its requests in a thread."""
        with self._lock:
            connection = ClientConnection(self._n_connections_so_far, channel, is_buffered=self._is_shared)
            self._n_connections_so_far += 1
            self._connections[connection.number] = connection
        threading.Thread(target=self._read_requests, args=(connection,), name="requests", daemon=True).start()

    def write(self, event: protocol.Event) -> None:
        """Send an event to the client of its request, or to all clients if its id is 0."""
        if event.id == 0:
            with self._lock:
                connections = list(self._connections.values())
            if isinstance(event, protocol.Heartbeat):
                event = structs.replace(event, n_clients=len(connections))
            for connection in connections:
                connection.write(event)
            return
        if self._is_shared and self._is_ending and getattr(event, "finish_reason", "") == "cancelled":
            return  # the client gets an error at the end of the connection, not a reply that seems complete
        number = event.id >> REQUEST_ID_BITS
        with self._lock:
            connection_or_none = self._connections.get(number)
            if connection_or_none is not None and isinstance(event, protocol.FINAL_EVENTS):
                connection_or_none.unfinished_ids.discard(event.id)
                self._idle_since = time.monotonic()
            if isinstance(event, protocol.Loaded):
                self._drafter = None  # of another model
            if isinstance(event, protocol.RequestFinished):
                self._record_request(event)
        if connection_or_none is not None:
            connection_or_none.write(structs.replace(event, id=event.id & _MAX_REQUEST_ID) if number else event)

    def _record_request(self, event: protocol.RequestFinished) -> None:
        """Save what a finished request says about the engine, for `describe_status`."""
        if event.stats.decode_tps:
            self._decode_tps = event.stats.decode_tps
        if event.finish_reason != "cancelled":
            self._cache_use = self._cache_use.add(event.stats, event.cache_miss)
        self._drafter = event.drafter

    def describe_status(self, request_id: int = 0) -> protocol.EngineStatus:
        """Return the attached clients and the loaded model."""
        with self._lock:
            return self._describe_status(request_id)

    def _describe_status(self, request_id: int) -> protocol.EngineStatus:
        attached = self._handler.describe_model(request_id)
        clients = [
            structs.replace(connection.client, n_requests=len(connection.unfinished_ids))
            for connection in self._connections.values()
            if connection.client is not None
        ]
        is_busy = any(client.n_requests for client in clients)
        return protocol.EngineStatus(
            id=request_id, load=attached.load, loaded=attached.loaded, clients=clients,
            idle_s=0.0 if is_busy else time.monotonic() - self._idle_since, keep_alive_s=self._keep_alive_s,
            decode_tps=self._decode_tps, cache_use=self._cache_use, drafter=self._drafter,
        )  # fmt: skip

    def begin_end(self) -> None:
        """Refuse further clients, because the engine ends."""
        with self._lock:
            self._is_ending = True
        self.on_end()

    def flush(self, timeout_s: float) -> None:
        """Wait until all events are written, at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._lock:
                connections = list(self._connections.values())
            if not any(connection.has_unsent_events for connection in connections):
                return
            time.sleep(_POLL_S)

    def end_if(self, decide: Callable[[protocol.EngineStatus], bool], asking: ClientConnection | None = None) -> bool:
        """Refuse further clients if `decide` returns True for the status; return whether the engine must end.

        A connection that has just been made may attach yet, so the engine does not end before it had time to do so;
        `asking`, which asks for the end, is left out.
        """
        with self._lock:
            attach_before = time.monotonic() - _ATTACH_TIMEOUT_S
            if any(
                connection.client is None and connection is not asking and connection.connected_at > attach_before
                for connection in self._connections.values()
            ):
                return False
            if not self._is_ending and not decide(self._describe_status(0)):
                return False
            self._is_ending = True
        self.on_end()
        return True

    def _read_requests(self, connection: ClientConnection) -> None:
        try:
            while (request := connection.read()) is not None and self._handle(connection, request):
                pass
        finally:
            with self._lock:
                del self._connections[connection.number]
                if connection.client is not None:
                    self._idle_since = time.monotonic()
            connection.close()
            self._handler.remove_client(connection.number, connection.unfinished_ids)

    def _handle(self, connection: ClientConnection, request: protocol.AnyRequest) -> bool:
        """Execute or pass on a request; return False if the connection must be closed."""
        if isinstance(request, protocol.Attach):
            with self._lock:
                if self._is_ending:
                    return False
                connection.client, self._keep_alive_s = request.client, request.keep_alive_s
            connection.write(self._handler.describe_model(request.id))
        elif isinstance(request, protocol.GetStatus):
            connection.write(self.describe_status(request.id))
        elif isinstance(request, protocol.Shutdown):
            if not request.if_unused:
                self.begin_end()
                self._handler.receive(request)
            elif self.end_if(lambda status: not status.clients, connection):
                self._handler.receive(request)
        else:
            self._receive(connection, request)
        return True

    def _receive(self, connection: ClientConnection, request: protocol.AnyRequest) -> None:
        """Pass on a request with the number of its client in the upper bits of its id."""
        upper_bits = connection.number << REQUEST_ID_BITS
        changes = {"id": upper_bits | request.id}
        if isinstance(request, protocol.TARGETED_REQUESTS):
            changes["target_id"] = upper_bits | (request.target_id & _MAX_REQUEST_ID)
        else:
            with self._lock:
                connection.unfinished_ids.add(changes["id"])
        self._handler.receive(structs.replace(request, **changes) if upper_bits else request)
