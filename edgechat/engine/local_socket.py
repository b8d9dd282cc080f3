"""Sockets on which processes of one user connect to each other: Unix sockets, or loopback TCP on Windows.

A Unix socket is in a directory that only its owner can access, and both ends check the user of the other end. Python
has no Unix sockets on Windows. There the path is a file with the port and two secrets, which only the owner can read;
each end sends one of the secrets, so that neither accepts a connection with a process of another user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.engine.private_directory import make_private_directory
from edgechat.engine.socket_channel import SocketChannel, open_channel
from edgechat.engine.socket_listener import BACKLOG, Listener, lock_directory
from edgechat.errors import LocalSocketError, UsageError, format_reason

MAX_NAME_BYTES: Final = 40
"""Maximum length of the name of a socket in `socket_dir`."""
MAX_PATH_BYTES: Final = 100
"""Maximum length of the path of a Unix socket. Linux allows 107 bytes, macOS 103."""
USES_LOOPBACK: Final = sys.platform == "win32"
"""Default of the argument `uses_loopback`."""

# Time for a listener to answer the process that wants to listen at the same path.
_PROBE_TIMEOUT_S: Final = 2.0
# Time between two attempts to connect to a listener whose backlog is full.
_RETRY_INTERVAL_S: Final = 0.01


def socket_dir() -> Path:
    """Create the directory of edgechat's sockets if it is missing, and return it. Only its owner can access it.

    Raises LocalSocketError if the directory cannot be used, for example because it belongs to another user.
    """
    directory = locate_socket_dir()
    make_private_directory(directory)
    return directory


def locate_socket_dir() -> Path:
    """Return the directory of edgechat's sockets, which may be missing. Raises LocalSocketError."""
    try:
        directory = paths.sockets_dir()
        if not USES_LOOPBACK and not _has_room_for_name(directory):
            directory = _make_short_path(directory)
    except UsageError as error:
        raise LocalSocketError(str(error)) from error
    except OSError as error:
        raise LocalSocketError(
            f"There is no folder for the sockets of edgechat: {format_reason(error)}. Set EDGECHAT_HOME to a folder "
            "with a short path."
        ) from error
    return directory


def _has_room_for_name(directory: Path) -> bool:
    return len(os.fsencode(directory)) + 1 + MAX_NAME_BYTES <= MAX_PATH_BYTES


def _make_short_path(directory: Path) -> Path:
    """Return the path of a directory in /tmp that replaces `directory`, whose path is too long for a Unix socket."""
    # TMPDIR can differ between two terminals of one user, which must find the same socket.
    parent = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()  # noqa: S108
    path_hash = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:10]
    short_directory = Path(parent) / f"edgechat-{os.geteuid()}-{path_hash}"
    if not _has_room_for_name(short_directory):
        raise LocalSocketError(
            f"The paths {directory} and {short_directory} are too long for a socket. Set EDGECHAT_HOME to a folder "
            f"with a path of at most {MAX_PATH_BYTES - MAX_NAME_BYTES - len('/cache/engines/')} bytes."
        )
    return short_directory


def listen(path: Path, *, uses_loopback: bool = USES_LOOPBACK) -> Listener:
    """Listen at `path`, in a directory of `socket_dir`, and replace the socket of a process that has ended.

    Raises LocalSocketError if another process listens at `path`, or the socket cannot be created.
    """
    try:
        with lock_directory(path.parent):
            existing_channel = connect(path, _PROBE_TIMEOUT_S, uses_loopback=uses_loopback)
            if existing_channel is not None:
                existing_channel.close()
                raise LocalSocketError(f"Another edgechat process already listens at {path}. Connect to that process.")
            path.unlink(missing_ok=True)
            if uses_loopback:
                from edgechat.engine import loopback

                return loopback.open_listener(path)
            return _listen_on_unix_socket(path)
    except OSError as error:
        raise LocalSocketError(
            f"Cannot create the socket {path}: {format_reason(error)}. Check the folder's permissions and free space."
        ) from error


def _listen_on_unix_socket(path: Path) -> Listener:
    server = _make_unix_socket()
    try:
        server.bind(os.fspath(path))
        try:
            path.chmod(0o600)  # nobody can connect before `listen`
            server.listen(BACKLOG)
            return Listener(server, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except BaseException:
        server.close()
        raise


def connect(path: Path, timeout_s: float, *, uses_loopback: bool = USES_LOOPBACK) -> SocketChannel | None:
    """Connect to the process that listens at `path`; return None if no process does.

    Raises LocalSocketError if the socket or the process belongs to another user, or does not answer in `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    try:
        _check_socket_file(path, uses_loopback=uses_loopback)
        if uses_loopback:
            from edgechat.engine import loopback

            return loopback.connect(path, deadline)
        return _connect_to_unix_socket(path, deadline)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (TimeoutError, BlockingIOError):
        raise LocalSocketError(
            f"The edgechat process that listens at {path} did not answer within {timeout_s:g} s. Wait, or end it."
        ) from None
    except OSError as error:
        raise LocalSocketError(
            f"Cannot connect to the socket {path}: {format_reason(error)}. Delete it if no edgechat process runs."
        ) from error


def _check_socket_file(path: Path, *, uses_loopback: bool) -> None:
    """Raise LocalSocketError if the file at `path` is not a socket of this user. Raises OSError."""
    status = path.lstat()
    if not (stat.S_ISREG if uses_loopback else stat.S_ISSOCK)(status.st_mode):
        raise LocalSocketError(f"{path} is not a socket of edgechat. Delete it.")
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise LocalSocketError(
            f"The socket {path} belongs to user {status.st_uid}, and edgechat runs as user {os.geteuid()}. Run "
            "edgechat as that user, or set EDGECHAT_HOME to a folder of yours."
        )


def _connect_to_unix_socket(path: Path, deadline: float) -> SocketChannel:
    """Connect to a Unix socket. Raises LocalSocketError and OSError; BlockingIOError if its backlog stays full."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_make_unix_socket())
        connection.setblocking(False)
        while True:
            try:
                connection.connect(os.fspath(path))
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_INTERVAL_S)
        channel = open_channel(connection)
        if channel is None:
            raise LocalSocketError(f"The process that listens at {path} belongs to another user. Delete {path}.")
        stack.pop_all()  # the channel owns the connection
    return channel


def _make_unix_socket() -> socket.socket:
    if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
        raise LocalSocketError("This system has no Unix sockets. Run edgechat on Linux, macOS or Windows.")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
