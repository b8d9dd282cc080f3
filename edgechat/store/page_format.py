"""Parts of SQLite's file format that recovery reads without SQLite: records, cells, pages and the write-ahead log.

The format is documented at https://www.sqlite.org/fileformat2.html; the section numbers below refer to that page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

Value = int | float | bytes | None
"""Value of a column. Texts are bytes, because damaged text may not be valid UTF-8."""

INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF = 0x02, 0x05, 0x0A, 0x0D
_INTERIOR: Final = (INDEX_INTERIOR, TABLE_INTERIOR)
_INT_SIZES: Final[Mapping[int, int]] = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FLOAT, _ZERO, _ONE, _FIRST_BLOB = 7, 8, 9, 12
_MAX_VARINT_BYTES: Final = 9
FILE_HEADER_BYTES: Final = 100
FRAME_HEADER_BYTES: Final = 24
WAL_HEADER_BYTES: Final = 32
_MIN_PAGE_BYTES, _MAX_PAGE_BYTES = 512, 65536
DEFAULT_PAGE_BYTES: Final = 4096
"""SQLite's default page size, which edgechat never changes. Used if the file header is damaged."""
_SEARCH_BYTES: Final = 1 << 20
_LEAF_MAX_LOCAL_MARGIN: Final = 35
"""Usable page size minus the maximum number of payload bytes that a table leaf cell has on its page (section 1.6)."""


def is_page_size(size: int) -> bool:
    """Return whether `size` is a valid page size: a power of two from 512 to 65536."""
    return _MIN_PAGE_BYTES <= size <= _MAX_PAGE_BYTES and size & (size - 1) == 0


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the variable-length integer at `position` and the position after it. Raises IndexError."""
    value = 0
    for index in range(_MAX_VARINT_BYTES - 1):
        byte = data[position + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004  (the highest bit marks that another byte follows)
            return value, position + index + 1
    value = value << 8 | data[position + _MAX_VARINT_BYTES - 1]
    return value - (1 << 64) if value >> 63 else value, position + _MAX_VARINT_BYTES


def _body_bytes(serial_type: int) -> int:
    """Return the number of bytes of a value in the body of a record. Raises ValueError for a reserved type."""
    if serial_type >= _FIRST_BLOB:
        return (serial_type - _FIRST_BLOB) // 2
    if serial_type in _INT_SIZES:
        return _INT_SIZES[serial_type]
    if serial_type == _FLOAT:
        return 8
    if serial_type in (0, _ZERO, _ONE):
        return 0
    raise ValueError(f"serial type {serial_type}")


def read_record_header(data: bytes, position: int = 0) -> tuple[list[int], int]:
    """Return the serial types of a record and the size of the record in bytes. Raises ValueError and IndexError."""
    header_bytes, cursor = read_varint(data, position)
    end = position + header_bytes
    types: list[int] = []
    while cursor < end:
        serial_type, cursor = read_varint(data, cursor)
        types.append(serial_type)
    if cursor != end:
        raise ValueError("the record header has a wrong size")
    return types, header_bytes + sum(map(_body_bytes, types))


def decode_record(payload: bytes) -> list[Value]:
    """Decode the values of a record; the end of `payload` may be missing.

    A text or blob that is cut off gets a final byte 0xFF, which is not valid in UTF-8. All values after it are None.
    Raises ValueError and IndexError for an invalid header.
    """
    types, _ = read_record_header(payload)
    position = read_varint(payload, 0)[0]
    values: list[Value] = []
    for serial_type in types:
        size = _body_bytes(serial_type)
        body = payload[position : position + size]
        position += size
        if serial_type in (_ZERO, _ONE):
            values.append(serial_type - _ZERO)
        elif serial_type >= _FIRST_BLOB:
            values.append(body if len(body) == size else body + b"\xff" if body else None)
        elif len(body) < size or not serial_type:
            values.append(None)
        elif serial_type == _FLOAT:
            values.append(struct.unpack(">d", body)[0])
        else:
            values.append(int.from_bytes(body, "big", signed=True))
    return values


class Cell(NamedTuple):
    """Cell of a b-tree page. Only the start of a large payload is on the page; the rest is in overflow pages."""

    start: int
    end: int
    """Offsets of the cell on the page, as [start, end)."""
    rowid: int
    """Row ID of the record; 0 in an index."""
    payload_bytes: int
    local_payload: bytes
    overflow_page: int
    """Number of the first overflow page; 0 if the whole payload is on the page."""


def local_payload_bytes(payload_bytes: int, usable_bytes: int, page_type: int) -> int:
    """Return the number of payload bytes that SQLite stores on the page of a cell (section 1.6)."""
    if page_type == TABLE_LEAF:
        max_local = usable_bytes - _LEAF_MAX_LOCAL_MARGIN
    else:
        max_local = (usable_bytes - 12) * 64 // 255 - 23
    if payload_bytes <= max_local:
        return payload_bytes
    min_local = (usable_bytes - 12) * 32 // 255 - 23
    n_local = min_local + (payload_bytes - min_local) % (usable_bytes - 4)
    return n_local if n_local <= max_local else min_local


def parse_cell(page: bytes, start: int, page_type: int, usable_bytes: int) -> Cell:
    """Parse a cell that contains a record. Raises ValueError and IndexError."""
    payload_bytes, position = read_varint(page, start + 4 if page_type == INDEX_INTERIOR else start)
    rowid = 0
    if page_type == TABLE_LEAF:
        rowid, position = read_varint(page, position)
    return _make_cell(page, start, position, rowid, payload_bytes, page_type, usable_bytes)


def make_cell_of_record(page: bytes, record_start: int, rowid: int, page_type: int, usable_bytes: int) -> Cell:
    """Make a cell from the record at an offset; ignore the cell's header, which may be damaged.

    Raises ValueError and IndexError.
    """
    _, payload_bytes = read_record_header(page, record_start)
    return _make_cell(page, record_start, record_start, rowid, payload_bytes, page_type, usable_bytes)


def _make_cell(
    page: bytes, start: int, record_start: int, rowid: int, payload_bytes: int, page_type: int, usable_bytes: int
) -> Cell:  # fmt: skip
    end = record_start + local_payload_bytes(payload_bytes, usable_bytes, page_type)
    has_overflow = end - record_start < payload_bytes
    overflow_page = int.from_bytes(page[end : end + 4], "big") if has_overflow else 0
    if payload_bytes < 0 or end + 4 * has_overflow > usable_bytes:
        raise ValueError("the cell ends after its page")
    return Cell(start, end + 4 * has_overflow, rowid, payload_bytes, page[record_start:end], overflow_page)


class BtreePage(NamedTuple):
    """B-tree page with the cells that could be parsed."""

    page_type: int
    cells: list[Cell]
    is_consistent: bool
    """False if a cell could not be parsed, or if the sizes of the cells and of the free space do not add up."""


def parse_btree_page(page: bytes, header_start: int, usable_bytes: int) -> BtreePage | None:
    """Parse a b-tree page; return None if it is another kind of page. `header_start` is 100 for page 1, otherwise 0."""
    page_type = page[header_start]
    if page_type not in (INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF):
        return None
    first_free, n_cells, content_start, n_fragments = struct.unpack_from(">HHHB", page, header_start + 1)
    content_start = content_start or 65536
    pointers_start = header_start + (12 if page_type in _INTERIOR else 8)
    pointers_end = pointers_start + 2 * n_cells
    if pointers_end > usable_bytes:
        return None
    cells: list[Cell] = []
    n_used, is_consistent = 0, content_start >= pointers_end
    for (start,) in struct.iter_unpack(">H", page[pointers_start:pointers_end]):
        try:
            if not pointers_end <= start < usable_bytes:
                raise ValueError("the cell is outside the page")  # noqa: TRY301  (handled like the errors of the parser)
            if page_type == TABLE_INTERIOR:
                n_used += read_varint(page, start + 4)[1] - start
                continue
            cell = parse_cell(page, start, page_type, usable_bytes)
        except (ValueError, IndexError):
            is_consistent = False
        else:
            cells.append(cell)
            n_used += max(4, cell.end - start)
    n_free = _count_free_bytes(page, first_free)
    n_total = pointers_end + (content_start - pointers_end) + n_used + n_free + n_fragments
    return BtreePage(page_type, cells, is_consistent and n_total == usable_bytes)


def _count_free_bytes(page: bytes, first_free: int) -> int:
    """Return the total size of the free blocks of a page; -1 if their list is damaged (section 1.6)."""
    n_bytes, block, previous_block = 0, first_free, 0
    while block:
        if block <= previous_block or block + 4 > len(page):
            return -1
        previous_block = block
        block, size = struct.unpack_from(">HH", page, block)
        n_bytes += size
    return n_bytes


class WalFrame(NamedTuple):
    """Page version in the write-ahead log."""

    page_number: int
    offset: int
    """Offset of the page in the log file."""


def read_wal_frames(read_at: Callable[[int, int], bytes], file_bytes: int, page_bytes: int) -> Iterator[WalFrame]:
    """Yield the frames of the current generation of a write-ahead log, oldest first (section 4).

    Also yields frames with wrong checksums, which SQLite ignores together with all later frames, and frames that are at
    a wrong offset because bytes before them are missing. `read_at(offset, n)` returns up to n bytes.
    """
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    salts, *frame_salts = (read_at(WAL_HEADER_BYTES + offset, 8) for offset in (-16, 8, frame_bytes + 8))
    if frame_salts[0] == frame_salts[1]:  # a damaged log header has other salts than its frames
        salts = frame_salts[0]
    offset = WAL_HEADER_BYTES
    while offset + FRAME_HEADER_BYTES < file_bytes:
        header = read_at(offset, FRAME_HEADER_BYTES)
        # One of the two salts may be damaged. Both differ in frames of an earlier generation.
        if header[8:12] == salts[:4] or header[12:16] == salts[4:]:
            yield WalFrame(int.from_bytes(header[:4], "big"), offset + FRAME_HEADER_BYTES)
            offset += frame_bytes
        else:
            offset = _find(salts, read_at, offset + 9, file_bytes) - 8


def _find(pattern: bytes, read_at: Callable[[int, int], bytes], start: int, file_bytes: int) -> int:
    """Return the offset of the next occurrence of `pattern`; an offset after the end of the file if there is none."""
    while start < file_bytes:
        position = read_at(start, _SEARCH_BYTES).find(pattern)
        if position >= 0:
            return start + position
        start += _SEARCH_BYTES - len(pattern) + 1
    return file_bytes + len(pattern)
