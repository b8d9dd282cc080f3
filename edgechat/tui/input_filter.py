"""Filter for the bytes of a terminal: passes on keys, pastes and known reports, and drops everything else.

Terminals send more than keys: late answers to queries of earlier programs, mouse reports in old or broken formats, and
bytes that are not UTF-8. Textual would type unknown escape sequences into the message, or end with an exception.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Final

from edgechat.lazy_pattern import LazyPattern
from edgechat.tui.control_sequences import (
    BACKGROUND_START,
    MAX_BACKGROUND_CHARS,
    Background,
    KeyTables,
    find_tokens,
    read_background,
)
from edgechat.tui.input_text import (
    C1_START,
    C1_STARTS,
    C1_TERMINATOR,
    FIRST_NON_ASCII,
    FIRST_UTF8_LEAD,
    ControlString,
    find_partial_end,
    read_text,
)  # fmt: skip
from edgechat.tui.paste_reader import Paste, PasteReader

# Time after which an incomplete escape sequence or paste is ended, so that it does not swallow later keys. A paste may
# pause for longer than a sequence, because the terminal reads its clipboard in the meantime.
_SEQUENCE_TIMEOUT_S: Final = 1.0
_PASTE_TIMEOUT_S: Final = 2.0
# Time limit for a report of the background colour, which the chat has requested and which a slow connection may delay.
_REPORT_TIMEOUT_S: Final = 10.0
# Maximum time between the bytes of a short report. A terminal writes a report at once; typed keys are further apart.
_REPORT_GAP_S: Final = 0.01
# Maximum length of the control sequence of a key. The longest ones contain a text from an input method, as code points
# of up to 7 digits.
_MAX_CSI_CHARS: Final = 4096
_MAX_MOUSE_CHARS: Final = 64
_MAX_SHORT_CHARS: Final = 16
_BEL: Final = 0x07
_ESC: Final = 0x1B
_SPACE: Final = 0x20
_FIRST_FINAL: Final = 0x40
"""Lowest byte that ends a control sequence."""
_FIRST_FINAL_OF_PAIR: Final = 0x30
"""Lowest byte that ends a sequence of ESC and characters from SPACE to `/`."""
_DEL: Final = 0x7F
_PAIR_LENGTH: Final = 2
_X10_LENGTH: Final = 3
_N_MOUSE_FIELDS: Final = 3
_STRING_STARTS: Final = frozenset(b"]P_^X")
"""Second byte of OSC, DCS, APC, PM and SOS."""
_N_OPERANDS: Final = {ord("Y"): 2, ord("N"): 1}
"""Number of characters after ESC Y (the cursor of a VT52) and ESC N (SS2)."""
_UNTYPED_PAIRS: Final = frozenset(b"[]^_\\")
"""Second bytes of escape sequences that are dropped if no content follows; Alt with these bytes is not a key."""

_MOUSE: Final = LazyPattern(r"\x1b\[<\d{1,4};-?\d{1,6};-?\d{1,6}[Mm]")
_MOUSE_CHARS: Final = frozenset(b"0123456789;:.+-ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


Token = str | Paste | Background


class InputFilter:
    """Incremental parser of terminal input. Times are in seconds of one monotonic clock.

    The parser returns tokens. A token is a text without ESC, a complete escape sequence that is a key or a report, ESC
    alone for the Escape key, a `Paste`, or a `Background`.
    """

    def __init__(self, keys: KeyTables, escape_delay_s: float) -> None:
        """`keys` recognises keys. ESC without another byte within `escape_delay_s` seconds is the Escape key."""
        self._keys = keys
        self._escape_delay_s = escape_delay_s
        self._incomplete_character = b""
        self._state: Callable[[bytes, int], int] = self._read_text
        self._sequence = bytearray()
        """Bytes of the incomplete escape sequence; only the first three bytes of a control string such as OSC."""
        self._has_eight_bits = False
        """True if the sequence started with a C1 control instead of ESC; such a sequence is never a typed key."""
        self._string = ControlString()
        self._content = bytearray()
        """Start of the content of an incomplete OSC."""
        self._paste = PasteReader(has_eight_bits=False)
        self._tokens: list[Token] = []
        self._now = 0.0
        self._started_at = 0.0
        """Time of the first byte of the incomplete sequence, or of the last byte of the incomplete paste."""

    @property
    def deadline(self) -> float | None:
        """Time at which `expire` must be called; None if nothing is incomplete."""
        if self._state == self._read_paste:
            return self._started_at + _PASTE_TIMEOUT_S
        if self._state == self._read_text:
            return self._started_at + self._escape_delay_s if self._incomplete_character else None
        # ESC alone is a key, and so is ESC with one byte; with more bytes it is a sequence that is still arriving.
        if self._state == self._read_string and BACKGROUND_START.compiled.fullmatch(self._content):
            return self._started_at + _REPORT_TIMEOUT_S
        return self._started_at + (self._escape_delay_s if self._can_be_key else _SEQUENCE_TIMEOUT_S)

    @property
    def _can_be_key(self) -> bool:
        is_short = len(self._sequence) <= _PAIR_LENGTH or self._state == self._read_short_report
        return is_short and not self._has_eight_bits

    def feed(self, data: bytes, now: float) -> list[Token]:
        """Return the tokens that are complete after `data`, which was read at the time `now`.

        This does not call `expire`: if the program was slow, the data may have waited for longer than the time-outs.
        """
        self._now = now
        data, self._incomplete_character = self._incomplete_character + data, b""
        position = 0
        while position < len(data):
            position = self._state(data, position)
        return self._take_tokens()

    def expire(self, now: float) -> list[Token]:
        """End incomplete input that is too old: return it if it is a key or a paste, and drop an incomplete report.

        Call this only if there is no more data to read.
        """
        deadline = self.deadline
        if deadline is None or now < deadline:
            return []
        if self._state == self._read_paste:
            self._paste.finish()
            self._tokens += self._paste.take_parts()
            self._state = self._read_text
        elif self._state == self._read_text:
            self._tokens.append("\ufffd")
            self._incomplete_character = b""
        else:
            self._abandon_sequence()
        return self._take_tokens()

    def _take_tokens(self) -> list[Token]:
        tokens, self._tokens = self._tokens, []
        return tokens

    # Text

    def _read_text(self, data: bytes, start: int) -> int:
        text, position = read_text(data, start)
        if text:
            self._tokens.append(text)
        if position == len(data):
            return position
        if data[position] == _ESC:
            self._start_sequence()
            return position + 1
        if control := C1_START.compiled.match(data, position):
            self._start_c1_sequence(control[1][0])
            return control.end()
        end = find_partial_end(data, position)
        if end == len(data) and data[position] >= FIRST_UTF8_LEAD:
            self._incomplete_character, self._started_at = data[position:], self._now
        elif data[position] != C1_TERMINATOR:
            self._tokens.append("\ufffd")
        return end

    # Escape sequences. Each of these methods reads from `start` and returns the position of the next byte to read.

    def _start_sequence(self) -> None:
        self._sequence = bytearray((_ESC,))
        self._has_eight_bits = False
        self._started_at = self._now
        self._state = self._read_second_byte

    def _start_c1_sequence(self, control: int) -> None:
        self._start_sequence()
        self._has_eight_bits = True
        self._sequence.append(control - 0x40)
        self._state = self._find_state(control - 0x40)

    def _end_sequence(self, token: str = "") -> None:
        if token:
            self._tokens.append(token)
        self._sequence.clear()
        self._state = self._read_text

    def _abandon_sequence(self) -> None:
        """End an incomplete sequence: if it can be a key, return it with the keys after it; otherwise drop it."""
        key, keys = self._sequence[:_PAIR_LENGTH], self._sequence[_PAIR_LENGTH:]
        is_key = self._can_be_key and key[-1] not in _UNTYPED_PAIRS
        self._end_sequence(key.decode("utf-8", "ignore") if is_key else "")
        if is_key and keys:
            self._tokens.append(keys.decode("ascii"))

    def _read_second_byte(self, data: bytes, start: int) -> int:
        byte = data[start]
        is_control = byte < _SPACE and not self._keys.is_sequence(f"\x1b{chr(byte)}")
        if byte == _ESC or is_control or byte in C1_STARTS:  # Escape, and another key or sequence
            self._end_sequence("\x1b")
            return start  # if the byte is ESC, `_read_text` starts a new sequence
        self._sequence.append(byte)
        self._state = self._find_state(byte)
        if self._state == self._read_text:
            self._end_sequence("" if byte in _UNTYPED_PAIRS else f"\x1b{chr(byte)}")
        return start + 1

    def _find_state(self, second_byte: int) -> Callable[[bytes, int], int]:
        """Return the method that reads the rest of a sequence; `_read_text` if the sequence is complete."""
        if second_byte == ord("["):
            return self._read_csi
        if second_byte == ord("O"):
            return self._read_ss3
        if second_byte in _STRING_STARTS:
            self._string, self._content = ControlString(), bytearray()
            return self._read_string
        if second_byte >= FIRST_NON_ASCII:  # Alt and a character of several bytes
            return self._read_alt_character
        if second_byte in _N_OPERANDS or _SPACE <= second_byte < _FIRST_FINAL_OF_PAIR:
            return self._read_short_report
        return self._read_text

    def _read_alt_character(self, data: bytes, start: int) -> int:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(bytes(self._sequence[1:]))
        if not text and FIRST_NON_ASCII <= data[start] < FIRST_UTF8_LEAD:
            self._sequence.append(data[start])
            text = decoder.decode(data[start : start + 1])
            start += 1
        elif not text:
            text = "\ufffd"
        if text and ord(text[0]) in C1_STARTS:
            self._end_sequence("\x1b")
            self._start_c1_sequence(ord(text[0]))
        elif text:
            self._end_sequence(f"\x1b{text[0]}" if text.isprintable() and text != "\ufffd" else "")
        return start

    def _read_short_report(self, data: bytes, start: int) -> int:
        """Drop ESC Y with two characters, ESC N with one, or a designation such as `ESC ( B`.

        Bytes that do not arrive at once are Alt with a key, and further keys.
        """
        byte, second_byte = data[start], self._sequence[1]
        if self._now - self._started_at > _REPORT_GAP_S or not _SPACE <= byte < _DEL:
            self._abandon_sequence()
            return start
        self._sequence.append(byte)
        n_operands = _N_OPERANDS.get(second_byte)
        is_complete = byte >= _FIRST_FINAL_OF_PAIR if n_operands is None else len(self._sequence) == 2 + n_operands
        if is_complete or len(self._sequence) > _MAX_SHORT_CHARS:
            self._end_sequence()
        return start + 1

    def _read_ss3(self, data: bytes, start: int) -> int:
        if not _SPACE <= data[start] < _DEL:
            self._abandon_sequence()
            return start
        self._sequence.append(data[start])
        is_parameter = data[start] in b"0123456789;"  # a modifier of a key, as old terminals send it
        if not is_parameter or len(self._sequence) > _MAX_SHORT_CHARS:
            token = self._sequence.decode("ascii")
            self._end_sequence(token if self._keys.is_sequence(token) else "")
        return start + 1

    def _read_csi(self, data: bytes, start: int) -> int:
        byte = data[start]
        if not _SPACE <= byte < _DEL:  # not part of a sequence, but a key or a new sequence
            self._end_sequence()
            return start
        self._sequence.append(byte)
        if self._sequence == b"\x1b[M":
            self._state = self._read_x10_mouse
        elif self._sequence == b"\x1b[<":
            self._state = self._read_sgr_mouse
        elif self._is_complete_csi(byte):
            self._finish_csi()
        elif len(self._sequence) > _MAX_CSI_CHARS:
            self._end_sequence()
        return start + 1

    def _is_complete_csi(self, last_byte: int) -> bool:
        if last_byte == ord("$"):  # rxvt sends ESC [ 23 $ for Shift+F11
            return self._keys.is_sequence(self._sequence.decode("ascii"))
        return last_byte >= _FIRST_FINAL and self._sequence != b"\x1b[["  # the Linux console sends ESC [ [ A for F1

    def _finish_csi(self) -> None:
        sequence = self._sequence.decode("ascii")
        self._end_sequence()
        if sequence == "\x1b[200~":
            self._started_at = self._now
            self._paste = PasteReader(has_eight_bits=self._has_eight_bits)
            self._state = self._read_paste
        else:
            self._tokens += find_tokens(sequence, self._keys)

    # Mouse reports

    def _read_sgr_mouse(self, data: bytes, start: int) -> int:
        """Read `ESC [ < button ; column ; row M`. VS Code has sent words such as NaN; an M in a word is not the end."""
        byte, fields = data[start], self._sequence[3:].split(b";")
        is_end = byte in b"Mm" and (len(fields) >= _N_MOUSE_FIELDS or not fields[-1][-1:].isalpha())
        if not is_end and (byte not in _MOUSE_CHARS or len(self._sequence) > _MAX_MOUSE_CHARS):
            self._end_sequence()
            return start
        self._sequence.append(byte)
        if is_end:
            report = self._sequence.decode("ascii")
            self._end_sequence(report if _MOUSE.compiled.fullmatch(report) else "")
        return start + 1

    def _read_x10_mouse(self, data: bytes, start: int) -> int:
        """Drop `ESC [ M` and three bytes: button, column and row, each plus 32. The bytes need not be valid UTF-8.

        A terminal that encodes the numbers as UTF-8 sends two bytes for columns and rows from 96 on.
        """
        byte, numbers = data[start], self._sequence[3:]
        if 0 < byte < _SPACE:  # not part of a report
            self._end_sequence()
            return start
        self._sequence.append(byte)
        numbers.append(byte)
        if len(numbers) >= _X10_LENGTH + _count_utf8_pairs(numbers):
            self._end_sequence()
        return start + 1

    # Pastes and the strings of terminals: OSC, DCS, APC, PM, SOS

    def _read_string(self, data: bytes, start: int) -> int:
        r"""Drop a string up to BEL, `ESC \` or ST with eight bits. Any other control is a key and ends the string."""
        end = self._string.find_end(data, start)
        self._content += data[start : len(data) if end is None else end][
            : MAX_BACKGROUND_CHARS + 1 - len(self._content)
        ]
        if end is None:
            self._sequence[_PAIR_LENGTH:] = b"*"  # the content is dropped, but its presence extends the deadline
            return len(data)
        is_complete = self._sequence[1:2] == b"]" and data[end] in (_BEL, _ESC, C1_TERMINATOR)
        background = read_background(bytes(self._content)) if is_complete else None
        if background is not None:
            self._tokens.append(background)
        self._end_sequence()
        if data[end] == _ESC:
            self._start_sequence()  # ESC and `\` terminate the string, and are dropped
        elif data[end] in C1_STARTS:
            self._start_c1_sequence(data[end])
        return end + (data[end] >= FIRST_NON_ASCII or data[end] in {_BEL, _ESC})

    def _read_paste(self, data: bytes, start: int) -> int:
        self._started_at = self._now
        end = self._paste.feed(data, start)
        self._tokens += self._paste.take_parts()
        if self._paste.is_complete:
            self._state = self._read_text
        return end


def _count_utf8_pairs(report: bytes | bytearray) -> int:
    """Return the number of two-byte characters in an X10 mouse report.

    A report of single bytes looks the same only in columns 162 and 163 below row 95. In this case, the next byte is
    usually the ESC of the next report, which `_read_x10_mouse` does not accept.
    """
    return len(re.findall(rb"[\xc2\xc3][\x80-\xbf]|[\xc2\xc3]\Z", bytes(report)))
