"""Saved memory of a range of positions: in RAM, in a file, or in both."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final

import msgspec

from edgechat.prefix.tree import Node

# The last byte is the version of the format.
MAGIC: Final = b"edgechat prefix\x01"
_MAX_HEADER_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 4 << 20
# Larger reads outrun what the system reads ahead.
READ_BYTES: Final = 256 << 10


class KvSegment:
    """What was saved of the positions from `start` to the end of its node."""

    def __init__(self, node: Node, start: int, conversation: str, *, can_resume: bool, n_bytes: int) -> None:
        self.node = node
        self.start = start
        self.conversation = conversation
        """Whose it is; "" if it must not be written."""
        self.can_resume = can_resume
        """True if memory that cannot rewind can be gone on from where this ends."""
        self.n_bytes = n_bytes
        self.data: bytearray | None = None
        """The bytes, if they are in RAM."""
        self.file: Path | None = None
        """Where they are on disk, if they are."""
        self.is_pending_write = False
        """True while it is to be written."""
        self.last_used = 0
        """When it was of use last, on the cache's clock."""

    @property
    def has_data(self) -> bool:
        """True if its bytes are somewhere, or soon will be."""
        return self.data is not None or self.file is not None or self.is_pending_write

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.node.end


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True):
    """What a file says before its data."""

    start: int
    can_resume: bool
    n_bytes: int
    crc32: int
    """Of the data."""
    path: bytes
    """All tokens up to the piece's end, as 32-bit integers."""

    @property
    def tokens(self) -> list[int]:
        """All tokens up to the piece's end."""
        return array("i", self.path).tolist()


class InvalidSegmentError(Exception):
    """A file is not a piece, or damaged, or cut, or of a later version."""


def write_segment(
    file: BufferedWriter, piece: KvSegment, tokens: Sequence[int], data: bytearray, pause: Callable[[], None]
) -> None:
    """Write a piece of the path `tokens`; `pause` is called now and then, and may wait."""
    crc = 0
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        pause()
        crc = zlib.crc32(view[start : start + CHUNK_BYTES], crc)
    header = msgspec.msgpack.encode(
        SegmentHeader(piece.start, piece.can_resume, len(data), crc, array("i", tokens).tobytes())
    )
    file.write(MAGIC + _u32(len(header)) + header + _u32(zlib.crc32(header)))
    for start in range(0, len(data), CHUNK_BYTES):
        pause()
        file.write(view[start : start + CHUNK_BYTES])


def read_header(file: BufferedReader) -> SegmentHeader:
    """The header; the file is left where the data begins. Raises NotAPiece and OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InvalidSegmentError
    size = int.from_bytes(file.read(4), "little")
    if size > _MAX_HEADER_BYTES:
        raise InvalidSegmentError
    body = file.read(size)
    if len(body) != size or file.read(4) != _u32(zlib.crc32(body)):
        raise InvalidSegmentError
    try:
        header = msgspec.msgpack.decode(body, type=SegmentHeader)
    except msgspec.MsgspecError as error:
        raise InvalidSegmentError from error
    n_tokens, odd = divmod(len(header.path), 4)
    if odd or not 0 <= header.start < n_tokens or header.n_bytes < 0:
        raise InvalidSegmentError
    return header


def read_data(file: BufferedReader, view: memoryview) -> None:
    """Fill `view`, which is as long as the data. Raises NotAPiece and OSError."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + READ_BYTES])
        if not count:
            raise InvalidSegmentError
        done += count


def is_whole(header: SegmentHeader, view: memoryview) -> bool:
    """True if the data is what was written."""
    return zlib.crc32(view) == header.crc32


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
