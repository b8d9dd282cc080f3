"""The listening end of a local socket: accepts connections of the same user and closes all others."""

from __future__ import annotations

import contextlib
import selectors
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.engine.socket_channel import SocketChannel, open_channel
from edgechat.errors import LocalSocketError
from edgechat.files import FileLock, read_bytes

BACKLOG: Final = 64
"""Number of connections that wait for `Listener.accept`, and of connections whose secret has not arrived yet."""
HANDSHAKE_TIMEOUT_S: Final = 2.0
"""Time in which the secret of a new connection must arrive."""
SECRET_BYTES: Final = 32
MAX_ADDRESS_BYTES: Final = 4096
"""Maximum size of the file with the port and the secrets of a listener."""

_LOCK_NAME: Final = ".listen.lock"
_LOCK_TIMEOUT_S: Final = 5.0
# Pause after the process ran out of file descriptors, for which the waiting connection would wake `accept` at once.
_ACCEPT_RETRY_S: Final = 0.1


class Secrets(NamedTuple):
    """Secrets of a listener without a check of users. The first message of each end is its secret."""

    client: bytes
    listener: bytes


class _Handshake(NamedTuple):
    """Connection whose secret has not arrived completely."""

    received: bytearray
    deadline: float


class Listener:
    """Socket that listens at a path. Any thread may call the methods; one `accept` runs at a time."""

    def __init__(self, server: socket.socket, path: Path, secrets: Secrets | None = None) -> None:
        """Take over `server`, which already listens. Without `secrets`, it must be a Unix socket."""
        server.setblocking(False)
        self.path = path
        self._server = server
        self._secrets = secrets
        self._file_id = _read_file_id(path)
        self._handshakes: dict[socket.socket, _Handshake] = {}
        self._accept_lock = threading.Lock()
        self._is_closed = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for file in (server, self._wake_receiver):
            self._selector.register(file, selectors.EVENT_READ)

    def accept(self, timeout_s: float | None) -> SocketChannel | None:
        """Wait for a connection of the same user and close all others; return None after `timeout_s` or `close`.

        A connection can end at once: a process that wants to listen at the path first tries to connect to it.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._accept_lock:
            while not self._is_closed:
                for key, _ in self._selector.select(self._choose_wait_s(deadline)):
                    file = key.fileobj
                    if not isinstance(file, socket.socket) or file is self._wake_receiver:
                        continue
                    channel = self._accept_connection() if file is self._server else self._continue_handshake(file)
                    if channel is not None:
                        return channel
                self._drop_late_handshakes()
                if deadline is not None and time.monotonic() >= deadline:
                    return None
        return None

    def owns_path(self) -> bool:
        """Return whether clients that connect to `path` reach this listener; False after the file was deleted."""
        return not self._is_closed and _read_file_id(self.path) == self._file_id is not None

    def close(self) -> None:
        """Stop listening, and delete the file at `path` if it still belongs to this listener."""
        with contextlib.suppress(OSError, LocalSocketError), lock_directory(self.path.parent):
            # While the socket is open, no other file can get its inode number.
            if self.owns_path():
                self.path.unlink()
        self._is_closed = True
        with contextlib.suppress(OSError):  # another thread has closed the listener
            self._wake_sender.send(b"\0")
        with self._accept_lock:
            for connection in list(self._handshakes):
                self._drop(connection)
            self._selector.close()
            for file in (self._server, self._wake_receiver, self._wake_sender):
                file.close()

    def _choose_wait_s(self, deadline: float | None) -> float | None:
        deadlines = [h.deadline for h in self._handshakes.values()] + ([] if deadline is None else [deadline])
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept_connection(self) -> SocketChannel | None:
        """Accept a connection; return None if it has no right to connect, or its secret has not arrived yet."""
        try:
            connection, _ = self._server.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client has left
            return None
        except OSError:
            time.sleep(_ACCEPT_RETRY_S)
            return None
        if self._secrets is None:
            with contextlib.suppress(OSError):  # the system does not report the user
                channel = open_channel(connection)
                if channel is not None:
                    return channel
            connection.close()
            return None
        connection.setblocking(False)
        if len(self._handshakes) >= BACKLOG:
            self._drop(next(iter(self._handshakes)))  # the oldest one
        self._handshakes[connection] = _Handshake(bytearray(), time.monotonic() + HANDSHAKE_TIMEOUT_S)
        self._selector.register(connection, selectors.EVENT_READ)
        return None

    def _continue_handshake(self, connection: socket.socket) -> SocketChannel | None:
        """Receive a part of a secret; return the connection if the secret is complete and correct."""
        handshake = self._handshakes.get(connection)
        if handshake is None or self._secrets is None:
            return None
        try:
            data = connection.recv(SECRET_BYTES - len(handshake.received))
            handshake.received.extend(data)
            if data and len(handshake.received) < SECRET_BYTES:
                return None
            import hmac  # needed only for secrets

            if hmac.compare_digest(bytes(handshake.received), self._secrets.client):
                connection.send(self._secrets.listener)  # the empty buffer of a new connection takes it at once
                self._selector.unregister(connection)
                del self._handshakes[connection]
                return SocketChannel(connection, None)
        except BlockingIOError:
            return None
        except OSError:  # the other process has closed the connection
            pass
        self._drop(connection)
        return None

    def _drop_late_handshakes(self) -> None:
        now = time.monotonic()
        for connection in [c for c, handshake in self._handshakes.items() if handshake.deadline <= now]:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        """Close a connection that has sent no correct secret."""
        if self._handshakes.pop(connection, None) is not None:
            self._selector.unregister(connection)
        connection.close()


def _read_file_id(path: Path) -> tuple[int, int] | bytes | None:
    """Return what identifies the file of a running listener: its inode, or its random content; None without a file."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):  # a later file can get the inode number of a deleted one
            return read_bytes(path, MAX_ADDRESS_BYTES)
        return status.st_dev, status.st_ino
    return None


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Exclude other processes that create or delete a socket in `directory`. Raises LocalSocketError and OSError."""
    with contextlib.closing(FileLock(directory / _LOCK_NAME)) as lock:
        if not lock.acquire(_LOCK_TIMEOUT_S):
            raise LocalSocketError(
                f"Another edgechat process has locked the folder {directory} for {_LOCK_TIMEOUT_S:g} s. Try again, or "
                "end it."
            )
        yield
