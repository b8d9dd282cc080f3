"""Search the pages of a damaged database and of its write-ahead log for rows, without using the b-trees.

SQLite finds rows only through intact b-trees. This module parses every page on its own, including pages whose parents
are damaged, log frames after a damaged frame, and pages that another log has overwritten.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from edgechat.store import page_format
from edgechat.store.page_format import (
    DEFAULT_PAGE_BYTES,
    FILE_HEADER_BYTES,
    INDEX_INTERIOR,
    INDEX_LEAF,
    TABLE_LEAF,
    Cell,
    Value,
)

# Serial types of the columns in a record header (https://www.sqlite.org/fileformat2.html#record_format).
_NULL: Final = rb"\x00"
_INT: Final = rb"[\x01-\x06\x08\x09]"
_INT_OR_NULL: Final = rb"[\x00-\x06\x08\x09]"
_ODD: Final = rb"[" + b"".join(rb"\x%02x" % n for n in range(1, 0x80, 2)) + rb"]"
_EVEN: Final = rb"[" + b"".join(rb"\x%02x" % n for n in range(0, 0x80, 2)) + rb"]"
_TEXT: Final = rb"(?:" + _ODD.replace(rb"\x01\x03\x05\x07\x09\x0b", b"") + rb"|[\x80-\xff]{1,5}" + _ODD + rb")"
_TEXT_OR_NULL: Final = rb"(?:\x00|" + _TEXT + rb")"
_BLOB: Final = rb"(?:" + _EVEN.replace(rb"\x00\x02\x04\x06\x08\x0a", b"") + rb"|[\x80-\xff]{1,5}" + _EVEN + rb")"
_SHA256: Final = rb"\x81\x0d"
_SHA256_TYPE: Final = 141  # text of 64 bytes; `_SHA256` is this number as a variable-length integer

_RECORD_HEADERS: Final[Mapping[str, bytes]] = {
    "messages": _NULL + _TEXT + _INT + _INT_OR_NULL + _TEXT * 3 + _INT + _TEXT * 2 + _INT_OR_NULL + _TEXT_OR_NULL * 2
    + _INT_OR_NULL + _TEXT + _INT_OR_NULL * 2,
    "conversations": _NULL + _TEXT * 4 + _INT * 2 + _TEXT * 2 + _INT * 2 + _INT_OR_NULL,
    "attachments": _SHA256 + _BLOB,
    "message_attachments": _INT_OR_NULL + _INT_OR_NULL + _SHA256 + _TEXT * 2,
}  # fmt: skip
"""For each table, the pattern of the serial types in the header of a record."""
_RECORD_STARTS: Final = {
    table: re.compile(rb"(?=[\x03-\x7f](" + types + rb"))", re.DOTALL) for table, types in _RECORD_HEADERS.items()
}
_TABLES_BY_SHAPE: Final = {
    (TABLE_LEAF, 17): "messages", (TABLE_LEAF, 12): "conversations", (TABLE_LEAF, 2): "attachments",
    (INDEX_LEAF, 5): "message_attachments", (INDEX_INTERIOR, 5): "message_attachments",
}  # fmt: skip
"""Table that a cell belongs to, by the type of the cell's page and the number of columns."""


class SalvagedRow(NamedTuple):
    """Row that was found in a page."""

    table: str
    rowid: int
    """Row ID; 0 if it is damaged, and in tables without row IDs."""
    values: list[Value]


def find_rows(path: Path) -> Iterator[SalvagedRow]:
    """Yield the rows in all pages of the database at `path` and of its log, the newest version of each page first.

    The same row can occur several times, and deleted rows can occur if their page is damaged. Unreadable parts of the
    files count as zeros. Raises OSError if a file cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        wal_path = path.with_name(path.name + "-wal")
        database = _File(stack.enter_context(path.open("rb")))
        wal = _File(stack.enter_context(wal_path.open("rb"))) if wal_path.is_file() else None
        yield from _PageSearch(database, wal).find_rows()


class _File:
    """Open file that is read at offsets."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return up to `n_bytes` at `offset`; b"" if the disk cannot read them."""
        try:
            self._file.seek(offset)
            return self._file.read(n_bytes)
        except OSError:
            return b""


class _PageSearch:
    """Searches the pages of a database file and of its log for rows."""

    def __init__(self, database: _File, wal: _File | None) -> None:
        self._database, self._wal = database, wal
        header = database.read_at(0, FILE_HEADER_BYTES).ljust(FILE_HEADER_BYTES, b"\0")
        sizes = [int.from_bytes(header[16:18], "big")] + ([int.from_bytes(wal.read_at(8, 4), "big")] if wal else [])
        sizes = [65536 if size == 1 else size for size in sizes]
        self._page_bytes = next((s for s in sizes if page_format.is_page_size(s)), DEFAULT_PAGE_BYTES)
        # edgechat does not reserve bytes at the end of pages, so any value other than 0 is damage.
        self._usable_bytes = self._page_bytes
        self._n_pages = -(-database.size // self._page_bytes)
        self._frame_offsets: dict[int, list[int]] = {}
        if wal is not None:
            for frame in page_format.read_wal_frames(wal.read_at, wal.size, self._page_bytes):
                self._frame_offsets.setdefault(frame.page_number, []).append(frame.offset)
        self._free_pages = self._find_free_pages()

    def find_rows(self) -> Iterator[SalvagedRow]:
        page_numbers = sorted({*range(1, self._n_pages + 1), *self._frame_offsets})
        for number in page_numbers:
            if number in self._free_pages:
                continue
            for page in self._read_versions(number):
                yield from self._find_rows_in_page(page, FILE_HEADER_BYTES if number == 1 else 0)

    def _read_versions(self, number: int) -> Iterator[bytes]:
        """Yield the versions of a page, newest first, padded with zeros to the page size."""
        if self._wal is not None:
            for offset in reversed(self._frame_offsets.get(number, [])):
                yield self._wal.read_at(offset, self._page_bytes).ljust(self._page_bytes, b"\0")
        if number <= self._n_pages:
            page = self._database.read_at((number - 1) * self._page_bytes, self._page_bytes)
            yield page.ljust(self._page_bytes, b"\0")

    def _find_free_pages(self) -> set[int]:
        """Return the numbers of the pages on the free list, whose content was deleted; empty if the list is damaged."""
        header = next(self._read_versions(1), b"")
        n_free = int.from_bytes(header[36:40], "big")
        trunk = int.from_bytes(header[32:36], "big")
        free_pages: set[int] = set()
        while 1 < trunk <= self._n_pages and trunk not in free_pages:
            page = next(self._read_versions(trunk))
            n_leaves = int.from_bytes(page[4:8], "big")
            if n_leaves > self._page_bytes // 4 - 2:
                return set()
            leaves = [int.from_bytes(page[8 + 4 * i : 12 + 4 * i], "big") for i in range(n_leaves)]
            free_pages |= {trunk, *leaves}
            trunk = int.from_bytes(page[:4], "big")
        return free_pages if len(free_pages) == n_free and 1 not in free_pages else set()

    def _find_rows_in_page(self, page: bytes, header_start: int) -> Iterator[SalvagedRow]:
        btree_page = page_format.parse_btree_page(page, header_start, self._usable_bytes)
        if btree_page is not None:
            for cell in btree_page.cells:
                yield from self._decode(cell, btree_page.page_type)
            if btree_page.is_consistent:
                return
        for table, record_start in _RECORD_STARTS.items():
            page_type = INDEX_LEAF if table == "message_attachments" else TABLE_LEAF
            for match in record_start.finditer(page):
                start = match.start()
                if page[start] == 1 + len(match[1]):
                    with contextlib.suppress(ValueError, IndexError):
                        rowid = _read_rowid_before(page, start) if page_type == TABLE_LEAF else 0
                        cell = page_format.make_cell_of_record(page, start, rowid, page_type, self._usable_bytes)
                        yield from self._decode(cell, page_type)

    def _decode(self, cell: Cell, page_type: int) -> Iterator[SalvagedRow]:
        """Yield the row in a cell if the cell belongs to a table with conversation data, not to the search index."""
        with contextlib.suppress(ValueError, IndexError):
            types, _ = page_format.read_record_header(cell.local_payload)
            table = _TABLES_BY_SHAPE.get((page_type, len(types)))
            if table is not None and (table != "attachments" or types[0] == _SHA256_TYPE):
                yield SalvagedRow(table, cell.rowid, page_format.decode_record(self._read_payload(cell)))

    def _read_payload(self, cell: Cell) -> bytes:
        """Return the payload of a cell with its overflow pages, up to the first page that is missing or zeroed."""
        parts, n_missing = [cell.local_payload], cell.payload_bytes - len(cell.local_payload)
        number, visited_pages = cell.overflow_page, set[int]()
        while n_missing > 0 and number and number not in visited_pages:
            visited_pages.add(number)
            page = next(self._read_versions(number), b"")
            if not any(page):
                break
            parts.append(page[4 : min(self._usable_bytes, 4 + n_missing)])
            n_missing -= len(parts[-1])
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


def _read_rowid_before(page: bytes, record_start: int) -> int:
    """Return the rowid of the cell whose record starts at `record_start`; 0 if it is damaged."""
    # A message key is a variable-length integer of 9 bytes; the highest bit is set in all bytes but the last.
    n_bytes = 9 if all(byte & 0x80 for byte in page[max(0, record_start - 9) : record_start - 1]) else 1
    while 1 <= n_bytes < 9 and page[record_start - n_bytes - 1] & 0x80:  # noqa: PLR2004
        n_bytes += 1
    rowid, end = page_format.read_varint(page, max(0, record_start - n_bytes))
    return rowid if end == record_start and rowid > 0 else 0
