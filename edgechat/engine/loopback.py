"""Local sockets without Unix sockets: loopback TCP, and a file with the port and the secrets of both ends."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import time
from pathlib import Path
from typing import Final

import msgspec

from edgechat.engine.socket_channel import SocketChannel
from edgechat.engine.socket_listener import BACKLOG, MAX_ADDRESS_BYTES, SECRET_BYTES, Listener, Secrets
from edgechat.files import JsonFile

_HOST: Final = "127.0.0.1"
_MIN_TIMEOUT_S: Final = 0.001


class LoopbackAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the file: how to reach a listener, and how the two ends identify themselves."""

    port: int
    client_secret: bytes
    """First message of a client."""
    listener_secret: bytes
    """Reply of the listener. A process of another user that got the port of an ended listener does not know it."""


def open_listener(path: Path) -> Listener:
    """Listen on a free port, and write it to the file `path`, which must not exist. Raises OSError."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: no other process can listen on the same port
            server.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        server.bind((_HOST, 0))
        server.listen(BACKLOG)
        # Accepted connections inherit the option.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        both_secrets = Secrets(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES))
        _address_file(path).write(
            LoopbackAddress(
                port=server.getsockname()[1], client_secret=both_secrets.client, listener_secret=both_secrets.listener
            )
        )
        return Listener(server, path, both_secrets)
    except BaseException:
        server.close()
        raise


def connect(path: Path, deadline: float) -> SocketChannel:
    """Connect to the listener at `path`. Raises OSError.

    Raises ConnectionRefusedError if the file is damaged or the listener has ended, and TimeoutError if the process at
    the port does not answer before `deadline`, an instant of `time.monotonic`.
    """
    address = _address_file(path).read()
    if address is None:
        raise ConnectionRefusedError
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _open_connection(connection, address.port, deadline)
        if not hmac.compare_digest(_exchange_secrets(connection, address, deadline), address.listener_secret):
            raise ConnectionRefusedError  # noqa: TRY301  (the listener has ended, and another process got its port)
        return SocketChannel(connection, None)
    except BaseException:
        connection.close()
        raise


def _open_connection(connection: socket.socket, port: int, deadline: float) -> None:
    connection.settimeout(max(_MIN_TIMEOUT_S, deadline - time.monotonic()))
    try:
        connection.connect((_HOST, port))
    except TimeoutError:
        # The system accepts a connection for a process that listens. Windows reports a closed port only after 2 s.
        raise ConnectionRefusedError from None


def _exchange_secrets(connection: socket.socket, address: LoopbackAddress, deadline: float) -> bytes:
    """Send the client's secret and return the listener's reply, which may be incomplete. Raises TimeoutError."""
    reply = b""
    with contextlib.suppress(ConnectionError):  # the other process has closed the connection
        connection.sendall(address.client_secret)
        while len(reply) < SECRET_BYTES:
            connection.settimeout(max(_MIN_TIMEOUT_S, deadline - time.monotonic()))
            data = connection.recv(SECRET_BYTES - len(reply))
            if not data:
                break
            reply += data
    return reply


def _is_valid(address: LoopbackAddress) -> bool:
    secrets_of_file = (address.client_secret, address.listener_secret)
    return 0 < address.port < 1 << 16 and all(len(secret) == SECRET_BYTES for secret in secrets_of_file)


def _address_file(path: Path) -> JsonFile[LoopbackAddress]:
    return JsonFile(path, LoopbackAddress, max_bytes=MAX_ADDRESS_BYTES, is_valid=_is_valid)
