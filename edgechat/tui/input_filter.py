"""Filter for the bytes of a terminal: passes on keys, pastes and known reports, and drops everything else.

Terminals send more than keys: late answers to queries of earlier programs, mouse reports in old or broken formats, and
bytes that are not UTF-8. Textual would type unknown escape sequences into the message, or end with an exception.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

# A paste or an escape sequence that never ends is ended after this time, so that later keys are not swallowed. A paste
# can stop for longer than an answer, because the terminal reads its clipboard meanwhile.
_SEQUENCE_TIMEOUT_S: Final = 1.0
_PASTE_TIMEOUT_S: Final = 2.0
# A longer paste is delivered in parts.
_MAX_PASTE_BYTES: Final = 16 << 20
# Longest control sequence of keys: a text that an input method commits, as code points of up to 7 digits.
_MAX_CSI_CHARS: Final = 4096
_MAX_MOUSE_CHARS: Final = 64
# Sizes above this are nonsense: an 8K monitor has 1920 columns of 4 pixels.
_MAX_CELLS: Final = 2000
_MAX_PIXELS: Final = 99_999

_BEL: Final = 0x07
_ESC: Final = 0x1B
_SPACE: Final = 0x20
_FIRST_FINAL: Final = 0x40
"""First byte that ends a control sequence."""
_DEL: Final = 0x7F
_FIRST_NON_ASCII: Final = 0x80
_FIRST_UTF8_LEAD: Final = 0xC0
_PAIR_LENGTH: Final = 2
_X10_LENGTH: Final = 3
_MAX_KEY_FIELDS: Final = 3
_PASTE_END: Final = b"\x1b[201~"
_FIXED_REPORTS: Final = frozenset({"\x1b[I", "\x1b[O"})
"""Focus gained and focus lost."""
_STRING_STARTS: Final = frozenset(b"]P_^X")
"""Second byte of OSC, DCS, APC, PM and SOS."""
_UNTYPED_PAIRS: Final = frozenset(b"[]^_\\")
"""Second bytes of an escape sequence without content. As Alt with a sign they would type the sign."""

_MOUSE: Final = re.compile(r"\x1b\[<\d{1,4};-?\d{1,6};-?\d{1,6}[Mm]")
_MODE_REPORT: Final = re.compile(r"\x1b\[\?(?:2026|2048);\d\$y")
_CURSOR: Final = re.compile(r"\x1b\[\d{1,5};\d{1,5}R")
_SIZE: Final = re.compile(r"\x1b\[48;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*t")
_KEY: Final = re.compile(r"\x1b\[([\d:;]*)([u~ABCDEFHPQRS])")
_MOUSE_CHARS: Final = frozenset(b"0123456789;:.+-ABCDEFGHIJKLNOPQRSTUVWXYZabcdefghijklnopqrstuvwxyz")
_C1_CONTROLS: Final = dict.fromkeys(range(0x80, 0xA0))
_KEY_RELEASE: Final = "3"
_SURROGATES: Final = range(0xD800, 0xE000)
_PRIVATE_USE: Final = range(0xE000, 0xF900)
"""Code points that the Kitty keyboard protocol uses for keys without a character."""
_CONTROLS: Final = (range(0x20), range(0x7F, 0xA0))


class Paste(NamedTuple):
    """Text that was pasted, without control sequences around it."""

    text: str


class KeyTables(NamedTuple):
    """Escape sequences that are keys."""

    is_sequence: Callable[[str], bool]
    """Return whether a sequence with its ESC is a key."""
    is_functional: Callable[[str], bool]
    """Return whether a number and a final letter, such as `3~`, are a key without a character."""


class InputFilter:
    """Incremental parser of terminal input. Times are in seconds of one monotonic clock.

    A token of the result is a text without ESC, one complete escape sequence that is a key or a report, ESC alone for
    the Escape key, or a `Paste`.
    """

    def __init__(self, keys: KeyTables, escape_delay_s: float) -> None:
        """After `escape_delay_s` seconds, ESC without a following byte is the Escape key."""
        self._keys = keys
        self._escape_delay_s = escape_delay_s
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state: Callable[[bytes, int], int] = self._read_text
        self._sequence = bytearray()
        """Bytes of the incomplete escape sequence; of a string (such as OSC) only its first three."""
        self._paste = bytearray()
        self._tokens: list[str | Paste] = []
        self._now = 0.0
        self._started_at = 0.0
        """Time of the first byte of the incomplete sequence, or of the last byte of the incomplete paste."""

    @property
    def deadline(self) -> float | None:
        """Time at which `expire` must be called; None if nothing is incomplete."""
        if self._state == self._read_paste:
            return self._started_at + _PASTE_TIMEOUT_S
        if self._state == self._read_text:
            return self._started_at + self._escape_delay_s if self._decoder.getstate()[0] else None
        # ESC alone is a key, and so is ESC with one byte; with more bytes it is a sequence that is still arriving.
        return self._started_at + (self._escape_delay_s if len(self._sequence) <= _PAIR_LENGTH else _SEQUENCE_TIMEOUT_S)

    def feed(self, data: bytes, now: float) -> list[str | Paste]:
        """Return the tokens that are complete after `data`, which was read at the time `now`.

        This does not call `expire`: if the program was slow, the data may have waited for longer than the time-outs.
        """
        self._now = now
        position = 0
        while position < len(data):
            position = self._state(data, position)
        return self._take_tokens()

    def expire(self, now: float) -> list[str | Paste]:
        """End what is incomplete and too old: return a key, and drop an incomplete report.

        Call this only if there is no more data to read.
        """
        deadline = self.deadline
        if deadline is None or now < deadline:
            return []
        if self._state == self._read_paste:
            self._finish_paste()
        elif self._state == self._read_text:
            self._finish_text()
        else:
            self._abandon_sequence()
        return self._take_tokens()

    def _take_tokens(self) -> list[str | Paste]:
        tokens, self._tokens = self._tokens, []
        return tokens

    # Text

    def _read_text(self, data: bytes, start: int) -> int:
        end = data.find(_ESC, start)
        text = self._decoder.decode(data[start : end if end >= 0 else len(data)]).translate(_C1_CONTROLS)
        if text:
            self._tokens.append(text)
        self._started_at = self._now
        if end < 0:
            return len(data)
        self._finish_text()
        self._start_sequence()
        return end + 1

    def _finish_text(self) -> None:
        """Replace an incomplete character."""
        text = self._decoder.decode(b"", final=True)
        if text:
            self._tokens.append(text)

    # Escape sequences. Each of these methods reads from `start` and returns the position of the next byte to read.

    def _start_sequence(self) -> None:
        self._sequence = bytearray((_ESC,))
        self._started_at = self._now
        self._state = self._read_second_byte

    def _end_sequence(self, token: str = "") -> None:
        if token:
            self._tokens.append(token)
        self._sequence.clear()
        self._state = self._read_text

    def _abandon_sequence(self) -> None:
        """Return an incomplete sequence that can be a key, and drop any other."""
        is_key = len(self._sequence) <= _PAIR_LENGTH and self._sequence[-1] not in _UNTYPED_PAIRS
        self._end_sequence(self._sequence.decode("utf-8", "ignore") if is_key else "")

    def _read_second_byte(self, data: bytes, start: int) -> int:
        byte = data[start]
        if byte == _ESC or (byte < _SPACE and not self._keys.is_sequence(f"\x1b{chr(byte)}")):  # Escape and another key
            self._end_sequence("\x1b")
            return start  # `_read_text` starts a new sequence if the byte is ESC
        self._sequence.append(byte)
        if byte == ord("["):
            self._state = self._read_csi
        elif byte == ord("O"):
            self._state = self._read_ss3
        elif byte in _STRING_STARTS:
            self._state = self._read_string
        elif byte >= _FIRST_NON_ASCII:  # Alt and a character of several bytes
            self._state = self._read_alt_character
        else:
            self._end_sequence("" if byte in _UNTYPED_PAIRS else f"\x1b{chr(byte)}")
        return start + 1

    def _read_alt_character(self, data: bytes, start: int) -> int:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(bytes(self._sequence[1:]))
        if not text and _FIRST_NON_ASCII <= data[start] < _FIRST_UTF8_LEAD:
            self._sequence.append(data[start])
            text = decoder.decode(data[start : start + 1])
            start += 1
        elif not text:
            text = "\ufffd"
        if text:
            self._end_sequence(f"\x1b{text[0]}" if text.isprintable() and text != "\ufffd" else "")
        return start

    def _read_ss3(self, data: bytes, start: int) -> int:
        if not _SPACE <= data[start] < _DEL:
            self._abandon_sequence()
            return start
        token = f"\x1bO{chr(data[start])}"
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
            self._state = self._read_paste
        elif sequence in _FIXED_REPORTS or _MODE_REPORT.fullmatch(sequence) or _CURSOR.fullmatch(sequence):
            self._tokens.append(sequence)
        elif size := _SIZE.fullmatch(sequence):
            self._add_size_report(*map(int, size.groups()))
        elif key := _KEY.fullmatch(sequence):
            self._add_key(sequence, key[1], key[2])
        elif self._keys.is_sequence(sequence):
            self._tokens.append(sequence)

    def _add_size_report(self, rows: int, columns: int, pixel_height: int, pixel_width: int) -> None:
        """Add a report of the terminal's size, unless a number in it is nonsense."""
        if not (0 < rows <= _MAX_CELLS and 0 < columns <= _MAX_CELLS):
            return
        if not (0 < pixel_height <= _MAX_PIXELS and 0 < pixel_width <= _MAX_PIXELS):
            pixel_height, pixel_width = rows, columns  # positions of the mouse are divided by the size of a cell
        self._tokens.append(f"\x1b[48;{rows};{columns};{pixel_height};{pixel_width}t")

    def _add_key(self, sequence: str, parameters: str, final: str) -> None:
        """Add the key of a sequence with numbers, as xterm and the Kitty keyboard protocol send it.

        Form: code[:alternatives][;modifiers[:event]][;text as code points] and a letter.
        """
        fields = parameters.split(";")
        if len(fields) > _MAX_KEY_FIELDS:
            return
        fields += ["", ""]
        code, (modifiers, _, event) = fields[0].partition(":")[0], fields[1].partition(":")
        texts = fields[2].split(":") if fields[2] else []
        if event == _KEY_RELEASE or not all(map(_is_code_point, [code or "1", modifiers or "1", *texts])):
            return
        if self._keys.is_sequence(sequence):
            self._tokens.append(sequence)
            return
        types_text = final == "u" and (bool(texts) or _is_typed_code(code or "1"))
        if not (types_text or self._keys.is_functional(f"{code or 1}{final}")):
            return
        start = f"\x1b[{code};{modifiers}" if modifiers or texts else f"\x1b[{code}"
        if texts:  # one token for each character: Textual gives up on sequences longer than 32 characters
            self._tokens += [f"{start};{text}{final}" for text in texts if _is_typed_code(text)]
        else:
            self._tokens.append(start + final)

    # Mouse reports

    def _read_sgr_mouse(self, data: bytes, start: int) -> int:
        """Read `ESC [ < button ; column ; row M`. VS Code has sent NaN as numbers."""
        byte = data[start]
        is_end = byte in b"Mm"
        if not is_end and (byte not in _MOUSE_CHARS or len(self._sequence) > _MAX_MOUSE_CHARS):
            self._end_sequence()
            return start
        self._sequence.append(byte)
        if is_end:
            report = self._sequence.decode("ascii")
            self._end_sequence(report if _MOUSE.fullmatch(report) else "")
        return start + 1

    def _read_x10_mouse(self, data: bytes, start: int) -> int:
        """Drop `ESC [ M` and three bytes: button, column and row, each plus 32. They need not be UTF-8.

        A terminal that encodes them as UTF-8 sends two bytes for columns and rows from 96 on.
        """
        byte, received = data[start], self._sequence[3:]
        if 0 < byte < _SPACE:  # not part of a report
            self._end_sequence()
            return start
        self._sequence.append(byte)
        received.append(byte)
        if len(received) >= _X10_LENGTH + _count_utf8_pairs(received):
            self._end_sequence()
        return start + 1

    # Pastes and the strings of terminals: OSC, DCS, APC, PM, SOS

    def _read_string(self, data: bytes, start: int) -> int:
        r"""Drop a string up to BEL or `ESC \`. Any other control is a key and ends the string."""
        for position in range(start, len(data)):
            byte = data[position]
            if byte < _SPACE or byte == _DEL:
                self._end_sequence()
                if byte == _ESC:
                    self._start_sequence()  # with `\` the terminator, which is dropped
                return position + (byte in {_BEL, _ESC})
        self._sequence = self._sequence[:2] + b"*"  # the content is dropped, but its presence extends the deadline
        return len(data)

    def _read_paste(self, data: bytes, start: int) -> int:
        self._started_at = self._now
        searched = max(0, len(self._paste) - len(_PASTE_END) + 1)
        n_before = len(self._paste)
        self._paste += data[start : start + _MAX_PASTE_BYTES]
        end = self._paste.find(_PASTE_END, searched)
        if end >= 0:
            del self._paste[end:]
            self._finish_paste()
            return start + end - n_before + len(_PASTE_END)
        n_read = len(self._paste) - n_before
        if len(self._paste) >= _MAX_PASTE_BYTES:
            rest = self._paste[-len(_PASTE_END) :]  # can contain the start of the end marker or of a character
            del self._paste[-len(_PASTE_END) :]
            self._finish_paste()
            self._paste, self._state = rest, self._read_paste
        return start + n_read

    def _finish_paste(self) -> None:
        text = self._paste.decode("utf-8", "replace").replace("\0", "")
        self._paste.clear()
        self._state = self._read_text
        if text:
            self._tokens.append(Paste(text))


def _count_utf8_pairs(report: bytes | bytearray) -> int:
    """Return the number of two-byte characters in an X10 mouse report.

    A report of single bytes looks the same only in columns 162 and 163 below row 95. Usually the next byte is then ESC
    of the next report, which `_read_x10_mouse` does not take.
    """
    return len(re.findall(rb"[\xc2\xc3][\x80-\xbf]|[\xc2\xc3]\Z", bytes(report)))


def _is_code_point(number: str) -> bool:
    """Return whether `number` is the decimal number of a character."""
    is_number = number.isascii() and number.isdecimal() and len(number) <= len(str(sys.maxunicode))
    return is_number and int(number) <= sys.maxunicode and int(number) not in _SURROGATES


def _is_typed_code(number: str) -> bool:
    """Return whether `number` is the code point of a character that a key can type."""
    if not _is_code_point(number):
        return False
    code = int(number)
    return code not in _PRIVATE_USE and not any(code in controls for controls in _CONTROLS)
