"""Find text and control strings in the input of a terminal: UTF-8, controls with eight bits, and invalid bytes."""

from __future__ import annotations

from typing import Final

from edgechat.lazy_pattern import LazyPattern

_SPACE: Final = 0x20
_DEL: Final = 0x7F
FIRST_NON_ASCII: Final = 0x80
FIRST_UTF8_LEAD: Final = 0xC0
C1_STARTS: Final = frozenset(b"\x8e\x8f\x90\x98\x9b\x9d\x9e\x9f")
"""SS2, SS3, DCS, SOS, CSI, OSC, PM and APC in their form with eight bits: ESC and the byte minus 0x40."""
C1_TERMINATOR: Final = 0x9C
"""End of a control string (ST)."""
C1_START: Final = LazyPattern(rb"\xc2?([\x8e-\x90\x98\x9b\x9d-\x9f])")
"""One of `C1_STARTS`, as a character in UTF-8 or as a byte that is not part of a character."""
_C1_LEAD: Final = 0xC2
"""First byte of a C1 control in UTF-8."""
_C1_CONTROLS: Final = dict.fromkeys(range(0x80, 0xA0))
# All characters, including control characters other than ESC and `C1_STARTS`.
_TEXT: Final = LazyPattern(
    rb"(?:[\x00-\x1a\x1c-\x7f]+|(?:\xc2(?![\x8e-\x90\x98\x9b\x9d-\x9f])|[\xc3-\xdf])[\x80-\xbf]"
    rb"|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})*"
)
_PARTIAL_CHARACTER: Final = LazyPattern(rb"[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}")


def read_text(data: bytes, start: int) -> tuple[str, int]:
    """Return the text from `start` up to ESC, the start of a sequence or an invalid byte, and the position of its end.

    C1 controls are dropped.
    """
    match = _TEXT.compiled.match(data, start)
    end = match.end() if match is not None else start
    return data[start:end].decode("utf-8", "replace").translate(_C1_CONTROLS), end


def find_partial_end(data: bytes, start: int) -> int:
    """Return the end of the incomplete character, or of the invalid byte, at `start`."""
    match = _PARTIAL_CHARACTER.compiled.match(data, start)
    return match.end() if match is not None else start + 1


class ControlString:
    """Incremental search for the end of a control string (OSC, DCS, APC, PM or SOS) with content in UTF-8."""

    def __init__(self) -> None:
        self._n_missing_bytes = 0
        """Number of bytes that are missing from the last character."""
        self._last_byte = 0

    def find_end(self, data: bytes, start: int) -> int | None:
        """Return the position of the control that ends the string; None if it continues after `data`."""
        for position in range(start, len(data)):
            byte, last_byte = data[position], self._last_byte
            self._last_byte = byte
            if self._n_missing_bytes and FIRST_NON_ASCII <= byte < FIRST_UTF8_LEAD:
                self._n_missing_bytes -= 1
                if last_byte != _C1_LEAD:
                    continue
            else:
                leads = ((3, 0xF0), (2, 0xE0), (1, _C1_LEAD))
                self._n_missing_bytes = next((n for n, lead in leads if byte >= lead), 0)
            if byte < _SPACE or byte in (_DEL, C1_TERMINATOR) or byte in C1_STARTS:
                return position
        return None
