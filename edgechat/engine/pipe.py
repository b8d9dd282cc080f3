"""Two pipes of frames between a parent and its child, apart from the child's standard streams.

A library that prints cannot corrupt them, and the end of file on either says that the other side is gone.
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
    """One end of the connection: `read` from one thread, `write` from any."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._reader = os.fdopen(read_fd, "rb", buffering=1 << 16)
        self._writer = os.fdopen(write_fd, "wb", buffering=0)
        self._write_lock = threading.Lock()

    def read(self) -> bytes | None:
        """The body of the next frame; None at the end of file, or when the other side breaks the protocol."""
        try:
            header = self._reader.read(4)
            size = int.from_bytes(header, "big")
            if len(header) < 4 or size > MAX_FRAME_BYTES:  # noqa: PLR2004  (four bytes of length)
                return None
            body = self._reader.read(size)
        except (OSError, ValueError):  # ValueError: closed by another thread
            return None
        return body if len(body) == size else None

    def write(self, frame: bytes) -> bool:
        """Send a whole frame; False if the other side is gone."""
        view = memoryview(frame)
        with self._write_lock:
            try:
                while view:
                    view = view[self._writer.write(view) :]
            except (OSError, ValueError):
                return False
        return True

    def close(self) -> None:
        """Close both directions; the other side sees the end of file."""
        with contextlib.suppress(OSError):  # the other side was faster
            self._writer.close()
        with contextlib.suppress(OSError):
            self._reader.close()


def spawn_child(arguments: list[str], stderr: IO[bytes] | int) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a child of this program that finds its end of the connection with `inherited`.

    Raises EngineDiedError if the program is not there any more.
    """
    down_read, down_write = os.pipe()
    up_read, up_write = os.pipe()
    theirs = (down_read, up_write)
    handles, options = _inheritance(theirs)
    try:
        child = subprocess.Popen(
            process.command_line(*arguments, *(str(h) for h in handles)),
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, close_fds=True, **options,
        )  # fmt: skip
    except OSError as error:
        os.close(down_write)
        os.close(up_read)
        raise EngineDiedError(
            f"a process of edgechat does not start ({error}): was edgechat removed while it ran?"
        ) from error
    finally:
        for fd in theirs:
            os.close(fd)
    return child, Channel(up_read, down_write)


def open_inherited_channel(arguments: list[str]) -> Channel:
    """The child's end, from the last two arguments of its command line."""
    read_handle, write_handle = (int(a) for a in arguments[-2:])
    if sys.platform == "win32":
        import msvcrt

        read_fd = msvcrt.open_osfhandle(read_handle, os.O_RDONLY | os.O_BINARY)
        return Channel(read_fd, msvcrt.open_osfhandle(write_handle, os.O_BINARY))
    for fd in (read_handle, write_handle):
        os.set_inheritable(fd, False)
    return Channel(read_handle, write_handle)


def _inheritance(fds: tuple[int, int]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """What to name on the child's command line, and the options that hand it over."""
    if sys.platform == "win32":
        import msvcrt

        handles = tuple(msvcrt.get_osfhandle(fd) for fd in fds)
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        startup = subprocess.STARTUPINFO()
        startup.lpAttributeList = {"handle_list": list(handles)}
        return handles, {"startupinfo": startup}
    # A session of its own: Ctrl-C on the terminal is the client's to handle.
    return fds, {"pass_fds": fds, "start_new_session": True}
