"""Find the keys, and the reports that Textual uses, in the control sequences of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from edgechat.lazy_pattern import LazyPattern

# Larger sizes are implausible: an 8K monitor has 1920 columns of 4 pixels.
_MAX_CELLS: Final = 2000
_MAX_PIXELS: Final = 99_999
_MAX_KEY_FIELDS: Final = 3

_FIXED_REPORTS: Final = frozenset({"\x1b[I", "\x1b[O"})
"""Reports of gained and lost focus."""
_MODE_REPORT: Final = LazyPattern(r"\x1b\[\?(?:2026|2048);\d\$y")
_CURSOR: Final = LazyPattern(r"\x1b\[\d{1,5};\d{1,5}R")
_SIZE: Final = LazyPattern(r"\x1b\[48;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*;(\d{1,6})(?::\d*)*t")
_BACKGROUND: Final = LazyPattern(
    rb"11;(?:rgb:|rgba:)([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})(?:/[0-9a-fA-F]{1,4})?\xc2?"
)
MAX_BACKGROUND_CHARS: Final = 32
"""Maximum length of an answer to OSC 11."""
BACKGROUND_START: Final = LazyPattern(rb"1(1(;(r(g(b(a?(:[0-9a-fA-F/]*\xc2?)?)?)?)?)?)?)?")
"""Incomplete answer to OSC 11; `\\xc2` is the first byte of the terminator in UTF-8."""
_KEY: Final = LazyPattern(r"\x1b\[([\d:;]*)([u~ABCDEFHPQRS])")
_KEY_RELEASE: Final = "3"
_SURROGATES: Final = range(0xD800, 0xE000)
_PRIVATE_USE: Final = range(0xE000, 0xF900)
"""Code points that the Kitty keyboard protocol uses for keys without a character."""
_CONTROLS: Final = (range(0x20), range(0x7F, 0xA0))


class Background(NamedTuple):
    """Colour of the terminal's background, from 0 to 1."""

    red: float
    green: float
    blue: float

    @property
    def is_light(self) -> bool:
        """True if black text is easier to read on it than white text."""
        channels = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in self)  # noqa: PLR2004
        luminance = sum(share * channel for share, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True))
        return luminance > 0.179  # noqa: PLR2004  (where black and white have the same contrast, by WCAG 2.2)


def read_background(content: bytes) -> Background | None:
    """Return the background colour in the content of an OSC, if it is an answer to OSC 11; otherwise None.

    Each channel has one to four hexadecimal digits, as in `11;rgb:1e1e/1e1e/2e2e`.
    """
    match = _BACKGROUND.compiled.fullmatch(content)
    return Background(*(int(digits, 16) / (16 ** len(digits) - 1) for digits in match.groups())) if match else None


class KeyTables(NamedTuple):
    """Functions that recognise the escape sequences of keys."""

    is_sequence: Callable[[str], bool]
    """Function that returns whether a sequence, which starts with ESC, is a key."""
    is_functional: Callable[[str], bool]
    """Function that returns whether a number and a final letter, such as `3~`, are a key without a character."""


def find_tokens(sequence: str, keys: KeyTables) -> list[str]:
    """Return the keys and reports in one complete control sequence; an empty list for an unknown sequence."""
    if sequence in _FIXED_REPORTS or _MODE_REPORT.compiled.fullmatch(sequence) or _CURSOR.compiled.fullmatch(sequence):
        return [sequence]
    if size := _SIZE.compiled.fullmatch(sequence):
        return _find_size_report(*map(int, size.groups()))
    if key := _KEY.compiled.fullmatch(sequence):
        return _find_keys(sequence, key[1], key[2], keys)
    return [sequence] if keys.is_sequence(sequence) else []


def _find_size_report(rows: int, columns: int, pixel_height: int, pixel_width: int) -> list[str]:
    """Return a list with the report of the terminal's size; an empty list if a number of cells is implausible."""
    if not (0 < rows <= _MAX_CELLS and 0 < columns <= _MAX_CELLS):
        return []
    if not (0 < pixel_height <= _MAX_PIXELS and 0 < pixel_width <= _MAX_PIXELS):
        pixel_height, pixel_width = rows, columns  # positions of the mouse are divided by the size of a cell
    return [f"\x1b[48;{rows};{columns};{pixel_height};{pixel_width}t"]


def _find_keys(sequence: str, parameters: str, final: str, keys: KeyTables) -> list[str]:
    """Return the keys in a sequence with numbers, in the form of xterm and the Kitty keyboard protocol.

    The form is: code[:alternatives][;modifiers[:event]][;text as code points] and a letter.
    """
    fields = parameters.split(";")
    if len(fields) > _MAX_KEY_FIELDS:
        return []
    fields += ["", ""]
    code, (modifiers, _, event) = fields[0].partition(":")[0], fields[1].partition(":")
    texts = fields[2].split(":") if fields[2] else []
    if event == _KEY_RELEASE or not all(map(_is_code_point, [code or "1", modifiers or "1", *texts])):
        return []
    if keys.is_sequence(sequence):
        return [sequence]
    types_text = final == "u" and (bool(texts) or _is_typed_code(code or "1"))
    if not (types_text or keys.is_functional(f"{code or 1}{final}")):
        return []
    start = f"\x1b[{code};{modifiers}" if modifiers or texts else f"\x1b[{code}"
    if texts:  # one token for each character: Textual gives up on sequences longer than 32 characters
        return [f"{start};{text}{final}" for text in texts if _is_typed_code(text)]
    return [start + final]


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
