"""A pair of pipes between a parent and a child process, separate from the child's standard streams.

Therefore a library that prints cannot corrupt a message, and the end of a pipe means that the other process has exited.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import IO, Any

from edgechat import process
from edgechat.engine.protocol import MAX_FRAME_BYTES
from edgechat.errors import EngineDiedError


class Channel:
    """One end of the connection between two processes. One thread may `read`; any thread may `write`."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._reader = os.fdopen(read_fd, "rb", buffering=1 << 16)
        self._writer = os.fdopen(write_fd, "wb", buffering=0)
        self._write_lock = threading.Lock()

    def read(self) -> bytes | None:
        """Read the body of the next frame; None at the end of the pipe or after an invalid frame."""
        try:
            header = self._reader.read(4)
            size = int.from_bytes(header, "big")
            if len(header) < 4 or size > MAX_FRAME_BYTES:  # noqa: PLR2004  (a 4-byte length)
                return None
            body = self._reader.read(size)
        except (OSError, ValueError):  # ValueError: closed by another thread
            return None
        return body if len(body) == size else None

    def write(self, frame: bytes) -> bool:
        """Write a whole frame; return False if the other process has exited."""
        view = memoryview(frame)
        with self._write_lock:
            try:
                while view:
                    view = view[self._writer.write(view) :]
            except (OSError, ValueError):
                return False
        return True

    def close(self) -> None:
        """Close both pipes, so that the other process reads the end of the pipe."""
        with contextlib.suppress(OSError):  # the other process may have closed it first
            self._writer.close()
        with contextlib.suppress(OSError):
            self._reader.close()


def spawn_child(arguments: list[str], stderr: IO[bytes] | int) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a child process of this program, which opens its end of the connection with `open_inherited_channel`.

    Raises EngineDiedError if the program cannot be started, for example because it was uninstalled.
    """
    down_read, down_write = os.pipe()
    up_read, up_write = os.pipe()
    child_fds = (down_read, up_write)
    handles, options = _inheritable_handles(child_fds)
    try:
        child = subprocess.Popen(
            process.command_line(*arguments, *(str(h) for h in handles)),
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, close_fds=True, **options,
        )  # fmt: skip
    except OSError as error:
        os.close(down_write)
        os.close(up_read)
        raise EngineDiedError(
            f"Cannot start an edgechat process: {error}. If edgechat was uninstalled, install it again."
        ) from error
    finally:
        for fd in child_fds:
            os.close(fd)
    return child, Channel(up_read, down_write)


def open_inherited_channel(arguments: list[str]) -> Channel:
    """Open the child's end of the connection from the last two arguments of its command line."""
    read_handle, write_handle = (int(a) for a in arguments[-2:])
    if sys.platform == "win32":
        import msvcrt

        read_fd = msvcrt.open_osfhandle(read_handle, os.O_RDONLY | os.O_BINARY)
        return Channel(read_fd, msvcrt.open_osfhandle(write_handle, os.O_BINARY))
    for fd in (read_handle, write_handle):
        os.set_inheritable(fd, False)
    return Channel(read_handle, write_handle)


def _inheritable_handles(fds: tuple[int, int]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the handles to name on the child's command line, and the Popen options that pass them to the child."""
    if sys.platform == "win32":
        import msvcrt

        handles = tuple(msvcrt.get_osfhandle(fd) for fd in fds)
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        startup = subprocess.STARTUPINFO()
        startup.lpAttributeList = {"handle_list": list(handles)}
        return handles, {"startupinfo": startup}
    # Start a new session, so that Ctrl-C in the terminal reaches only the client.
    return fds, {"pass_fds": fds, "start_new_session": True}
