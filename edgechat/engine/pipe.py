"""Connection between a parent and a child process: two pipes, separate from the child's standard streams.

A frame is a 4-byte big-endian length and a body. This module does not know the messages in the bodies, so that a child
process with messages of its own starts without the import of the engine's protocol.
Output that a library prints cannot corrupt a message. A process reads end-of-file when the other process exits.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, Final

from edgechat import process
from edgechat.errors import EngineDiedError, format_reason

MAX_FRAME_BYTES: Final = 64 << 20


class Channel:
    """One end of the connection between two processes. Only one thread may call `read`; any thread may call `write`."""

    def __init__(self, reader: int | BufferedReader, writer: int | RawIOBase) -> None:
        """Set the files that the channel reads and writes, given as open files or as file descriptors."""
        self._reader = os.fdopen(reader, "rb", buffering=1 << 16) if isinstance(reader, int) else reader
        self._writer = os.fdopen(writer, "wb", buffering=0) if isinstance(writer, int) else writer
        self._write_lock = threading.Lock()

    def read(self) -> bytes | None:
        """Return the body of the next frame; None at end-of-file or after an invalid frame."""
        try:
            header = self._reader.read(4)
            size = int.from_bytes(header, "big")
            if len(header) < 4 or size > MAX_FRAME_BYTES:  # noqa: PLR2004  (size of the length field)
                return None
            body = self._reader.read(size)
        except (OSError, ValueError):  # ValueError: another thread closed the pipe
            return None
        return body if len(body) == size else None

    def write(self, frame: bytes) -> bool:
        """Write a complete frame; return False if the other process has exited."""
        view = memoryview(frame)
        with self._write_lock:
            try:
                while view:
                    view = view[self._writer.write(view) :]
            except (OSError, ValueError):
                return False
        return True

    def leave(self) -> None:
        """Let the other process read end-of-file. `read` returns None once that process has closed its end, too."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def close(self) -> None:
        """Close this end of both pipes, so that the other process reads end-of-file."""
        with contextlib.suppress(OSError):  # the other process may already have closed its end
            self._writer.close()
        with contextlib.suppress(OSError):
            self._reader.close()


def make_frame(body: bytes) -> bytes:
    """Return a frame: `body`, preceded by its length in bytes."""
    return len(body).to_bytes(4, "big") + body


def spawn_child(
    arguments: list[str], stderr: IO[bytes] | int, extra_fds: tuple[int, ...] = (), *, is_independent: bool = False
) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start edgechat with `arguments` as a child process; return the process and the parent's end of the connection.

    With `is_independent`, the child uses neither the current directory of the parent nor, on Windows, its console.

    The child process opens its end with `open_inherited_channel`, and each of `extra_fds` with `open_inherited_file`.
    Raises EngineDiedError if edgechat cannot be started, for example because it was uninstalled.
    """
    child_read_fd, parent_write_fd = os.pipe()
    parent_read_fd, child_write_fd = os.pipe()
    child_fds = (child_read_fd, child_write_fd)
    handles, popen_options = _make_inheritable_handles((*extra_fds, *child_fds))
    if is_independent:
        popen_options |= _make_independence_options()
    try:
        child = subprocess.Popen(
            process.make_command_line(*arguments, *(str(h) for h in handles)),
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, close_fds=True, **popen_options,
        )  # fmt: skip
    except OSError as error:
        os.close(parent_write_fd)
        os.close(parent_read_fd)
        raise EngineDiedError(
            f"Cannot start an edgechat process: {format_reason(error)}. If edgechat was uninstalled, install it again."
        ) from error
    finally:
        for fd in child_fds:
            os.close(fd)
    return child, Channel(parent_read_fd, parent_write_fd)


def start_exchange(channel: Channel, frame: bytes) -> queue.SimpleQueue[bytes | None]:
    """Write a frame and read the reply in a thread; return the queue for the reply (None if the child died)."""
    replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def exchange() -> None:
        replies.put(channel.read() if channel.write(frame) else None)

    threading.Thread(target=exchange, name="exchange", daemon=True).start()
    return replies


def kill_child(child: subprocess.Popen[bytes], channel: Channel) -> None:
    """Kill a child process, wait for its end and close the connection."""
    child.kill()
    child.wait()
    channel.close()


def open_inherited_channel(arguments: list[str]) -> Channel:
    """Open the child's end of the connection; the last two `arguments` are the handles of its pipes."""
    read_handle, write_handle = (int(a) for a in arguments[-2:])
    if sys.platform == "win32":
        import msvcrt

        read_fd = msvcrt.open_osfhandle(read_handle, os.O_RDONLY | os.O_BINARY)
        return Channel(read_fd, msvcrt.open_osfhandle(write_handle, os.O_BINARY))
    for fd in (read_handle, write_handle):
        os.set_inheritable(fd, False)
    return Channel(read_handle, write_handle)


def open_inherited_file(handle: str) -> int:
    """Return the file descriptor of an extra file of `spawn_child`, from its `handle` on the command line."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(int(handle), os.O_RDWR | os.O_BINARY)
    os.set_inheritable(int(handle), False)
    return int(handle)


def _make_independence_options() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    environment = dict(os.environ)
    if home := environment.get("EDGECHAT_HOME"):  # it may be relative to the current directory
        environment["EDGECHAT_HOME"] = str(Path(home).absolute())
    return {"cwd": "/", "env": environment}


def _make_inheritable_handles(fds: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the handles for the child's command line, and the Popen options that let the child inherit them."""
    if sys.platform == "win32":
        import msvcrt

        handles = tuple(msvcrt.get_osfhandle(fd) for fd in fds)
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        startup_info = subprocess.STARTUPINFO()
        startup_info.lpAttributeList = {"handle_list": list(handles)}
        return handles, {"startupinfo": startup_info}
    # Start a new session, so that Ctrl-C in the terminal reaches only the client.
    return fds, {"pass_fds": fds, "start_new_session": True}
