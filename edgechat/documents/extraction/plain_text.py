"""Text of files that are text: Markdown, source code, CSV and so on, in Unicode or an older encoding."""

from __future__ import annotations

import codecs
import re
from io import BufferedReader
from typing import Final

from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.errors import DocumentError
from edgechat.file_formats import find_byte_order_mark, find_unmarked_utf16

# Controls that occur in text, such as the form feed and the escape character.
_TEXT_CONTROLS: Final = b"\t\n\v\f\r\b\x1a\x1b"
_BINARY: Final = bytes(code for code in (*range(0x20), 0x7F) if code not in _TEXT_CONTROLS)
_SAMPLE_BYTES: Final = 1 << 16
# Share of control characters above which a file with null characters, or bytes that are not UTF-8, is not text.
_MAX_CONTROL_SHARE: Final = 0.001
_LETTERS: Final = re.compile(rb"[A-Za-z\x80-\xff]+")
# In Western text, three letters with accents, quotation marks or dashes rarely follow each other; in other encodings
# they are whole words.
_FOREIGN_RUN: Final = re.compile(rb"[\x80-\xff]{3,}")
_MIN_FOREIGN_BYTES: Final = 8
_MAX_FOREIGN_SHARE: Final = 0.25


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the text of a file as one section, whose lines are those of the file."""
    text, is_cut = read_text(file, builder)
    builder.add(text, first_line=1)
    if is_cut:
        builder.cut_off()


def read_text(file: BufferedReader, builder: DocumentBuilder) -> tuple[str, bool]:
    """Return the text of a file up to the limit of the text, and whether it has more. Raises DocumentError."""
    max_bytes = builder.limits.max_text_bytes
    data = file.read(max_bytes + 1) or b""
    is_cut = len(data) > max_bytes
    return decode(data, builder, is_cut=is_cut), is_cut


def decode(data: bytes, builder: DocumentBuilder, *, is_cut: bool = False) -> str:
    """Decode text in UTF-8, another encoding of Unicode, or Windows-1252 (with a notice). Newlines become line feeds.

    With `is_cut`, the last character may be incomplete. Raises DocumentError for data that are not text, or text in
    another encoding, such as GBK.
    """
    mark, encoding = find_byte_order_mark(data)
    encoding = encoding or find_unmarked_utf16(data[:_SAMPLE_BYTES]) or "utf-8"
    content = data[len(mark) :]
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(content, final=not is_cut)
    except UnicodeDecodeError as error:
        text = _decode_damaged(content, encoding, error.start, builder)
    if n_nulls := text.count("\0"):
        if n_nulls > _MAX_CONTROL_SHARE * len(text):
            raise DocumentError(_describe_binary(data, data.index(0)))
        builder.add_notice(f"Null characters ({n_nulls}) were left out.")
        text = text.replace("\0", "")
    return normalize_newlines(text)


def normalize_newlines(text: str) -> str:
    """Replace the newlines of Windows and of old Macs by line feeds."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _decode_damaged(data: bytes, encoding: str, position: int, builder: DocumentBuilder) -> str:
    if encoding != "utf-8":
        builder.add_notice(f"Some characters are not valid {encoding[:6].upper()} and were replaced.")
        return data.decode(encoding, "replace")
    sample = data[:_SAMPLE_BYTES]
    n_controls = len(sample) - len(sample.translate(None, _BINARY))
    if n_controls > _MAX_CONTROL_SHARE * len(sample):
        raise DocumentError(_describe_binary(data, position))
    valid = data.decode("utf-8", "ignore")
    if position > 0 and not valid[:_SAMPLE_BYTES].isascii() and _is_mostly_utf8(data, valid):
        builder.add_notice("Some characters are not valid UTF-8 and were replaced.")
        return data.decode("utf-8", "replace")
    if _is_foreign(sample):
        raise DocumentError(
            "It is not UTF-8, but probably in an older encoding for another script, such as GBK, Shift-JIS or "
            "Windows-1251. Save it as UTF-8."
        )
    builder.add_notice("It is not UTF-8 text and was read as Windows-1252, so that letters with accents may be wrong.")
    return data.decode("cp1252", "replace")


def _is_foreign(sample: bytes) -> bool:
    """Return whether text that is not UTF-8 is not Windows-1252 either, judged by runs of different high bytes."""
    n_letters = sum(map(len, _LETTERS.findall(sample)))
    n_foreign = sum(len(run) for run in _FOREIGN_RUN.findall(sample) if len(set(run)) > 1)
    return n_foreign >= _MIN_FOREIGN_BYTES and n_foreign > _MAX_FOREIGN_SHARE * n_letters


def _is_mostly_utf8(data: bytes, valid: str) -> bool:
    """Return whether most bytes outside of ASCII are part of valid UTF-8 characters, which are in `valid`."""
    n_valid = len(valid.encode()) - len(valid.encode("ascii", "ignore"))
    return n_valid > 2 * (len(data) - len(valid.encode()))


def _describe_binary(data: bytes, position: int) -> str:
    if not data[:_SAMPLE_BYTES].strip(b"\0"):
        return "It contains only zeros, as after a system crash or an interrupted copy. Restore it from a backup."
    return f"It is not a text file: byte {position} is 0x{data[position]:02x}."
