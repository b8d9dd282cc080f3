"""HTTP connections: deadlines for each request, limits per client address, and half-closed connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

import h11  # the HTTP parser of uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgechat.serve.addresses import LOOPBACK, parse_client_address

HEAD_TIMEOUT_S: Final = 15.0
"""Time limit for the head of a request, counted from the connection or from the first byte after a response."""
KEEP_ALIVE_TIMEOUT_S: Final = 30.0
"""Time after which a connection without a new request is closed."""
WRITE_TIMEOUT_S: Final = 30.0
"""Time limit within which a client must read `_MIN_READ_BYTES` of a pending response."""
_MIN_READ_BYTES: Final = 32 << 10
MAX_CONNECTIONS: Final = 1000
# Number of files that the server has open in addition to its connections: pipes to child processes, logs, libraries,
# and the connections that asyncio accepts before the connection table can close others.
_RESERVED_FILES: Final = 128
# Limit of open files that the server requests from the operating system.
_MAX_OPEN_FILES: Final = 4096
# Maximum bytes per read from a connection. With asyncio's default, each slow upload keeps 256 KiB in memory.
_READ_BYTES: Final = 1 << 16
_PROBE_DELAY_S: Final = 0.1
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
# A body is rejected if it has more than `_MAX_TINY_CHUNKS` chunks with fewer than `_TINY_CHUNK_BYTES` bytes on average.
# Parsing a chunk takes 20 to 40 us regardless of its size. Ordinary clients send chunks of kilobytes.
_MAX_TINY_CHUNKS: Final = 1000
_TINY_CHUNK_BYTES: Final = 64
_RESPONSE_START: Final = b"HTTP/1.1 "


def raise_connection_limit() -> int:
    """Raise the limit of open files if possible; return the number of connections that this process can accept."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    target_limit = _MAX_OPEN_FILES if hard_limit == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard_limit)
    if soft_limit != resource.RLIM_INFINITY and soft_limit < target_limit:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target_limit, hard_limit))
            soft_limit = target_limit
        except (OSError, ValueError):
            pass  # the lower limit remains
    if soft_limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, soft_limit - _RESERVED_FILES))


class ConnectionTable:
    """Open connections by client address.

    One address may have up to half of the connections; the loopback address, which all local programs share, may have
    all. At this limit, a new connection replaces the connection of its address that is slowest to send a request.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS) -> None:
        self._max_connections = max_connections
        self._by_address: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return sum(len(connections) for connections in self._by_address.values())

    def add(self, connection: Connection, address: str) -> bool:
        """Add a new connection, and close a slow one if there are too many.

        Return False if the new connection must be refused, because all other clients have sent their requests.
        """
        connections = self._by_address.setdefault(address, {})
        connections[connection] = None
        if address != LOOPBACK and len(connections) > max(1, self._max_connections // 2):
            return _abort_slowest(connections, connection)
        if len(self) > self._max_connections:
            most_connections = max(self._by_address.values(), key=len)
            return _abort_slowest(most_connections, connection) or _abort_slowest(self._all(), connection)
        return True

    def discard(self, connection: Connection, address: str) -> None:
        """Remove a closed connection."""
        connections = self._by_address.get(address, {})
        connections.pop(connection, None)
        if not connections:
            self._by_address.pop(address, None)

    def check_deadlines(self) -> None:
        """Close the connections whose clients are too slow. Must be called about once a second."""
        for connection in list(self._all()):
            connection.check_deadline()

    def _all(self) -> Iterable[Connection]:
        return (connection for connections in self._by_address.values() for connection in connections)


def _abort_slowest(connections: Iterable[Connection], new_connection: Connection) -> bool:
    """Abort the connection that is slowest to send a whole request; return False if all clients have sent theirs."""
    candidates = [c for c in connections if c is not new_connection and not c.has_whole_request]
    if not candidates:
        return False
    min(candidates, key=lambda c: c.phase_started_at).abort()
    return True


class Connection(H11Protocol):
    """HTTP connection with deadlines for its client to send each request head and to read each response."""

    def __init__(self, table: ConnectionTable, **options: Any) -> None:
        """Create a connection that registers itself in `table`; `options` are the arguments of uvicorn's protocol."""
        super().__init__(**options)
        self._parse_event = self.conn.next_event
        self.conn.next_event = self._parse_bounded  # type: ignore[method-assign]
        self._n_chunks = self._n_body_bytes = 0
        self._encode_event = self.conn.send
        self.conn.send = self._encode_rest  # type: ignore[method-assign,assignment]
        self._n_bytes_sent_early = 0
        """Number of response bytes that were sent before the application started the response."""
        self.phase_started_at = time.monotonic()
        """Time when the current phase began: waiting for a request head, or handling a request."""
        self._table = table
        self._address = LOOPBACK
        self._head_deadline = self.phase_started_at + HEAD_TIMEOUT_S
        self._n_unread_bytes = 0
        """Number of response bytes that the client had not read at `_read_at`."""
        self._read_at = self.phase_started_at
        self._is_half_closed = False

    @property
    def is_waiting(self) -> bool:
        """True while the connection waits for the complete head of a request."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def has_whole_request(self) -> bool:
        """True after a whole request has arrived, until its response has ended."""
        return not self.is_waiting and not self.cycle.more_body

    def abort(self) -> None:
        """Close the connection immediately, and remove it from the table."""
        self._table.discard(self, self._address)
        self.transport.abort()

    # Callbacks of asyncio and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        with contextlib.suppress(AttributeError):  # an undocumented attribute, which other event loops do not have
            setattr(transport, "max_size", _READ_BYTES)  # noqa: B010
        self._address = parse_client_address(self.client[0]) if self.client else LOOPBACK
        if not self._table.add(self, self._address):
            transport.write(_REFUSAL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.discard(self, self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_waiting:
            self._head_deadline = min(self._head_deadline, time.monotonic() + HEAD_TIMEOUT_S)
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self.phase_started_at = time.monotonic()

    def on_response_complete(self) -> None:
        now = time.monotonic()
        self.phase_started_at = now
        has_next_head = bool(self.conn.trailing_data[0])
        self._head_deadline = now + (HEAD_TIMEOUT_S if has_next_head else KEEP_ALIVE_TIMEOUT_S)
        super().on_response_complete()  # starts the next request if it has already arrived
        if self._is_half_closed and self.is_waiting:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if not self.is_waiting:  # the body is invalid, so the application must no longer respond
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:  # the response to this or an earlier request has already begun
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection open until all completely received requests have their responses."""
        if not self.has_whole_request or sys.platform == "win32":  # the probe below detects no resets on Windows
            return False
        self._is_half_closed = True
        if not self.cycle.response_started and not self._n_bytes_sent_early:
            # If the client has closed the connection in both directions, its system answers these bytes with a reset.
            self._n_bytes_sent_early = len(_RESPONSE_START)
            self.transport.write(_RESPONSE_START)
        self.loop.call_later(_PROBE_DELAY_S, self._abort_if_reset)
        return True

    def _parse_bounded(self) -> Any:
        """Return the next event of a request. Raises RemoteProtocolError for a body of many tiny chunks."""
        event = self._parse_event()
        if isinstance(event, h11.Request):
            self._n_chunks = self._n_body_bytes = 0
        elif isinstance(event, h11.Data):
            self._n_chunks += 1
            self._n_body_bytes += len(event.data)
            if self._n_chunks > _MAX_TINY_CHUNKS and self._n_body_bytes < self._n_chunks * _TINY_CHUNK_BYTES:
                raise h11.RemoteProtocolError("The chunks of the body are too small.")
        return event

    def _encode_rest(self, event: Any) -> bytes | None:
        """Encode an event of a response, without the bytes that `eof_received` has already sent."""
        data: bytes | None = self._encode_event(event)
        if data and self._n_bytes_sent_early:
            data, self._n_bytes_sent_early = data[self._n_bytes_sent_early :], 0
        return data

    def _abort_if_reset(self) -> None:
        """Abort a half-closed connection if its client has reset it, which asyncio reports only at the next write."""
        if self._is_half_closed and not self.transport.is_closing():
            client_socket = self.transport.get_extra_info("socket")
            if client_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()

    def check_deadline(self) -> None:
        """Close or abort the connection if its client is too slow or gone."""
        now, is_closing = time.monotonic(), self.transport.is_closing()
        if not self._is_client_reading(now, is_closing=is_closing):
            if now - self._read_at > WRITE_TIMEOUT_S:
                self.abort()
        elif self.is_waiting and now > self._head_deadline and not is_closing:
            self.transport.close()
        else:
            self._abort_if_reset()

    def _is_client_reading(self, now: float, *, is_closing: bool) -> bool:
        """Return False if response bytes are pending and the client has read too few of them since `_read_at`."""
        is_waiting_for_client = is_closing or self.flow.write_paused
        n_unread_bytes = self.transport.get_write_buffer_size() if is_waiting_for_client else 0
        if n_unread_bytes and self._n_unread_bytes and self._n_unread_bytes - n_unread_bytes < _MIN_READ_BYTES:
            return False
        self._n_unread_bytes, self._read_at = n_unread_bytes, now
        return True
