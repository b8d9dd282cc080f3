"""Read pastes from the input of a terminal: all bytes up to the end marker are text."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgechat.lazy_pattern import LazyPattern

# Maximum length of a part of a paste; a longer paste is delivered in several parts.
_MAX_PASTE_BYTES: Final = 16 << 20
_END: Final = LazyPattern(rb"\x1b\[201~")
_C1_OR_ESC_END: Final = LazyPattern(rb"(?:\xc2?\x9b|\x1b\[)201~")
_END_BYTES: Final = 6


class Paste(NamedTuple):
    """Text that was pasted, without control sequences around it."""

    text: str


class PasteReader:
    """Incremental reader of one paste. With `has_eight_bits`, the end marker can start with a C1 control too."""

    def __init__(self, *, has_eight_bits: bool) -> None:
        self._end = (_C1_OR_ESC_END if has_eight_bits else _END).compiled
        self._data = bytearray()
        self._parts: list[Paste] = []
        self.is_complete = False

    def feed(self, data: bytes, start: int) -> int:
        """Read `data` from `start` to the end marker, and return the position of the next byte to read."""
        search_start, n_before = max(0, len(self._data) - _END_BYTES + 1), len(self._data)
        self._data += data[start : start + _MAX_PASTE_BYTES]
        end = self._end.search(self._data, search_start)
        n_read = (end.end() if end is not None else len(self._data)) - n_before
        if end is not None:
            del self._data[end.start() :]
            self.finish()
        elif len(self._data) >= _MAX_PASTE_BYTES:
            rest = self._data[-_END_BYTES:]  # may begin the end marker or a multi-byte character
            del self._data[-_END_BYTES:]
            self._add_part()
            self._data = rest
        return start + n_read

    def finish(self) -> None:
        """End the paste, as if its end marker had arrived."""
        self._add_part()
        self.is_complete = True

    def take_parts(self) -> list[Paste]:
        """Return the parts that were completed since the last call."""
        parts, self._parts = self._parts, []
        return parts

    def _add_part(self) -> None:
        text = self._data.decode("utf-8", "replace").replace("\0", "")
        self._data.clear()
        if text:
            self._parts.append(Paste(text))
