"""Text of files that edgechat did not write: decodes Unicode encodings, and describes files that are not text."""

from __future__ import annotations

from typing import Final

from edgechat.file_formats import find_byte_order_mark, find_format, find_unmarked_utf16

_NO_TEXT_MESSAGE: Final = "It contains no text that edgechat can read."
# First bytes of document formats whose files can be valid text.
_TEXT_FORMATS: Final = (b"%PDF-", b"{\\rtf")
_TEXT_CONTROLS: Final = b"\t\n\v\f\r\b\x1b"
_BINARY: Final = bytes(code for code in (*range(0x20), 0x7F) if code not in _TEXT_CONTROLS)
# Number of bytes at the start of a file that are examined to describe it.
_SAMPLE_BYTES: Final = 1 << 16


class NotTextError(ValueError):
    """Raised for a file that is not text. The message is a predicate, such as "is a ZIP archive. Extract it first."."""


def decode_text(data: bytes) -> str:
    """Decode text in UTF-8, or in another encoding of Unicode with a byte order mark. Raises NotTextError."""
    mark, encoding = find_byte_order_mark(data)
    if data.startswith(_TEXT_FORMATS) and find_format(data) is not None:
        raise NotTextError(_describe(data, encoding, 0))
    try:
        text = data[len(mark) :].decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError(_describe(data, encoding, error.start + len(mark))) from error
    if "\0" in text:
        raise NotTextError(_describe(data, "", data.index(0)))
    return text


def _describe(data: bytes, encoding: str, position: int) -> str:
    """Describe a file that is not text, as a predicate followed by the next step for the user.

    `data` is the content of the file, `encoding` the encoding of its byte order mark ("" without one), and `position`
    the offset of the first byte that is not text.
    """
    file_format = find_format(data)
    if file_format is not None:
        return f"is {file_format.name}. {file_format.advice or _NO_TEXT_MESSAGE}"
    sample = data[:_SAMPLE_BYTES]
    if not sample.strip(b"\0"):
        return "contains only zeros, as after a system crash or an interrupted copy. Restore it from a backup."
    if encoding not in {"utf-8", ""}:
        return f"is not valid {encoding[:6].upper()} text (byte {position} of {len(data)}). Save it as UTF-8."
    if utf16 := find_unmarked_utf16(sample):
        name = utf16.upper().replace("16-", "16")
        return f"seems to be UTF-16 text without a byte order mark. {_make_iconv_advice(name)}"
    if sample.translate(None, _BINARY) != sample:
        return f"is not a text file: byte {position} is 0x{data[position]:02x}. {_NO_TEXT_MESSAGE}"
    return (
        f"is not UTF-8 text (byte {position} of {len(data)} is 0x{data[position]:02x}), but perhaps text in an older "
        f"encoding, such as WINDOWS-1252 or GB18030. {_make_iconv_advice('WINDOWS-1252')}"
    )


def _make_iconv_advice(encoding: str) -> str:
    return f"Convert it first, for example with `iconv -f {encoding} -t UTF-8`."
