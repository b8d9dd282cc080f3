"""File format of KV segments.

A file consists of `MAGIC`, the length of the header (u32), the header (`SegmentHeader` as msgpack), the CRC-32 of the
header (u32), and the data. Integers are little-endian.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from io import BufferedReader, BufferedWriter
from typing import Final

import msgspec

from edgechat.prefix.segment import KvSegment

# File signature; its last byte is the format version.
MAGIC: Final = b"edgechat prefix\x01"
_MAX_HEADER_BYTES: Final = 64 << 20
_WRITE_CHUNK_BYTES: Final = 4 << 20
# Size of a read. Larger reads are slower, because they exceed the read-ahead of the operating system.
_READ_CHUNK_BYTES: Final = 256 << 10


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True):
    """Header of a segment file: position range, tokens, and size and checksum of the data."""

    start: int
    can_resume: bool
    n_bytes: int
    crc32: int
    """CRC-32 of the data."""
    token_bytes: bytes
    """All tokens from the root to the end of the segment, as packed 32-bit integers."""

    @property
    def tokens(self) -> list[int]:
        """All tokens from the root to the end of the segment."""
        return array("i", self.token_bytes).tolist()


class InvalidSegmentError(Exception):
    """Raised when a file is not a segment file, is damaged or truncated, or has a newer format version."""


def write_segment(
    file: BufferedWriter, segment: KvSegment, tokens: Sequence[int], data: bytearray, pause: Callable[[], None]
) -> None:
    """Write the header and the data of a segment; `tokens` are all tokens from the root to its end node.

    `pause` is called before each chunk of 4 MiB and may block.
    """
    crc = 0
    view = memoryview(data)
    for start in range(0, len(data), _WRITE_CHUNK_BYTES):
        pause()
        crc = zlib.crc32(view[start : start + _WRITE_CHUNK_BYTES], crc)
    header = msgspec.msgpack.encode(
        SegmentHeader(segment.start, segment.can_resume, len(data), crc, array("i", tokens).tobytes())
    )
    file.write(MAGIC + _encode_u32(len(header)) + header + _encode_u32(zlib.crc32(header)))
    for start in range(0, len(data), _WRITE_CHUNK_BYTES):
        pause()
        file.write(view[start : start + _WRITE_CHUNK_BYTES])


def read_header(file: BufferedReader) -> SegmentHeader:
    """Read the header and leave the file at the start of the data. Raises InvalidSegmentError and OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InvalidSegmentError
    size = int.from_bytes(file.read(4), "little")
    if size > _MAX_HEADER_BYTES:
        raise InvalidSegmentError
    body = file.read(size)
    if len(body) != size or file.read(4) != _encode_u32(zlib.crc32(body)):
        raise InvalidSegmentError
    try:
        header = msgspec.msgpack.decode(body, type=SegmentHeader)
    except msgspec.MsgspecError as error:
        raise InvalidSegmentError from error
    n_tokens, remainder = divmod(len(header.token_bytes), 4)
    if remainder or not 0 <= header.start < n_tokens or header.n_bytes < 0:
        raise InvalidSegmentError
    return header


def read_data(file: BufferedReader, view: memoryview) -> None:
    """Read `len(view)` bytes into `view`. Raises InvalidSegmentError if the file is shorter, and OSError."""
    n_read_bytes = 0
    while n_read_bytes < len(view):
        n_chunk_bytes = file.readinto(view[n_read_bytes : n_read_bytes + _READ_CHUNK_BYTES])
        if not n_chunk_bytes:
            raise InvalidSegmentError
        n_read_bytes += n_chunk_bytes


def has_valid_checksum(header: SegmentHeader, data: memoryview) -> bool:
    """Return whether the checksum of `data` equals the checksum in the header."""
    return zlib.crc32(data) == header.crc32


def _encode_u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
