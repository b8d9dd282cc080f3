"""Connection between two processes of the same user over a connected socket."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from typing import Final, NamedTuple

from edgechat.engine.pipe import Channel

# Options of Unix sockets on macOS and FreeBSD, from sys/un.h. Python has names for them since version 3.11 or 3.12.
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_LOCAL_PEERPID: Final = 2
_XUCRED_BYTES: Final = 128
"""Upper limit for the size of `struct xucred`, which begins with its version and the user ID as 32-bit integers."""


class PeerIdentity(NamedTuple):
    """User and process at the other end of a Unix socket, as the kernel reports them."""

    uid: int
    pid: int | None


class SocketChannel(Channel):
    """One end of a connection over a socket. Only one thread may call `read`; any thread may call the other methods."""

    def __init__(self, connection: socket.socket, peer_pid: int | None) -> None:
        """Take over `connection`.

        `peer_pid` is the process ID of the other process; None if the system does not report it.
        """
        connection.setblocking(True)
        self.peer_pid = peer_pid
        self._connection = connection
        super().__init__(connection.makefile("rb"), connection.makefile("wb", buffering=0))

    def set_timeout(self, timeout_s: float) -> None:
        """Let later calls of `read` return None, and of `write` return False, after `timeout_s`."""
        self._connection.settimeout(timeout_s)

    def leave(self) -> None:
        """Let `read` return None at both ends."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. A `read` or `write` that is in progress in another thread ends."""
        with contextlib.suppress(OSError):  # the other process has closed its end
            self._connection.shutdown(socket.SHUT_RDWR)
        super().close()
        self._connection.close()


def read_peer_identity(connection: socket.socket) -> PeerIdentity:
    """Return the user and process at the other end of a Unix socket. Raises OSError if the system does not report them.

    For a client, this is the process that started to listen, even if another process has accepted the connection.
    """
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return PeerIdentity(uid & 0xFFFFFFFF, pid or None)  # 0: a process of another PID namespace
    credentials = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
    if len(credentials) < 8:  # noqa: PLR2004  (two 32-bit integers)
        raise OSError("the system does not report the user at the other end of a socket")
    _version, uid = struct.unpack_from("=II", credentials)
    pid = None
    with contextlib.suppress(OSError, struct.error):
        pid = struct.unpack("i", connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))[0] or None
    return PeerIdentity(uid, pid)


def open_channel(connection: socket.socket) -> SocketChannel | None:
    """Return a channel over a Unix socket; None if the other process runs as another user. Raises OSError."""
    identity = read_peer_identity(connection)
    return SocketChannel(connection, identity.pid) if identity.uid == os.geteuid() else None
