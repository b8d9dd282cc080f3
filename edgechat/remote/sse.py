"""Parser of server-sent events with limits, because a server may send lines or streams without an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from edgechat.errors import RemoteError

MAX_LINE_BYTES: Final = 1 << 20
"""Maximum length of a line. The lines of a reply have a few hundred bytes."""
MAX_STREAM_BYTES: Final = 64 << 20
"""Maximum length of a response: tens of thousands of tokens, with a few hundred bytes for each."""
_READ_BYTES: Final = 16 << 10


def read_lines(read: Callable[[int], bytes], host: str) -> Iterator[bytes]:
    """Yield the lines of a response without their ends. `read` returns available bytes, and b"" at the end.

    Raises RemoteError for a line or a response that is too long, and the exceptions of `read`.
    """
    buffer = bytearray()
    n_bytes = n_searched = 0
    while data := read(_READ_BYTES):
        n_bytes += len(data)
        if n_bytes > MAX_STREAM_BYTES:
            raise RemoteError(f"{host} sent a reply of more than {MAX_STREAM_BYTES >> 20} MiB, which was cut.")
        buffer += data
        start = 0
        while (end := buffer.find(b"\n", max(start, n_searched))) >= 0:
            yield bytes(buffer[start:end]).rstrip(b"\r")
            start = n_searched = end + 1
        del buffer[:start]
        n_searched = len(buffer)
        if len(buffer) > MAX_LINE_BYTES:
            raise RemoteError(
                f"{host} sent a line of more than {MAX_LINE_BYTES >> 20} MiB, which is not part of a reply. "
                "Check the URL of the remote."
            )
    if buffer:
        yield bytes(buffer).rstrip(b"\r")


def read_events(lines: Iterator[bytes]) -> Iterator[bytes | None]:
    """Yield the data of each event; None for a line without data, such as a comment that keeps the connection open.

    Raises the exceptions of `lines`.
    """
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
            if sum(map(len, data)) > MAX_LINE_BYTES:
                raise RemoteError(f"The server sent an event of more than {MAX_LINE_BYTES >> 20} MiB.")
        else:
            yield None
    if data:
        yield b"\n".join(data)
