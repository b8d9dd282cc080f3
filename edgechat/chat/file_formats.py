"""Text of files from outside: decodes Unicode encodings, and names other file formats by their first bytes."""

from __future__ import annotations

import codecs
from typing import Final

_EXTRACT: Final = "Extract it, and use the text files in it."
_SAVE_AS_TEXT: Final = "Save its text as a text file first."
_NO_TEXT: Final = "It contains no text that edgechat could read."
_NO_IMAGES: Final = "edgechat does not read images."
# Formats by offset and magic bytes, with the next step for the user.
_MAGIC_NUMBERS: Final = (
    (0, b"PK\x03\x04", "a ZIP archive", _EXTRACT),
    (0, b"PK\x05\x06", "an empty ZIP archive", _NO_TEXT),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _EXTRACT),
    (0, b"Rar!\x1a\x07", "a RAR archive", _EXTRACT),
    (257, b"ustar", "a tar archive", _EXTRACT),
    (0, b"!<arch>\n", "an ar archive", _EXTRACT),
    (0, b"\x1f\x8b", "compressed with gzip", "Decompress it with `gunzip` first."),
    (0, b"BZh", "compressed with bzip2", "Decompress it with `bunzip2` first."),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "Decompress it with `unxz` first."),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "Decompress it with `unzstd` first."),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "Decompress it with `unlz4` first."),
    (0, b"%PDF-", "a PDF document", "Convert it to text first, for example with `pdftotext`."),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", _SAVE_AS_TEXT),
    (0, b"{\\rtf", "an RTF document", _SAVE_AS_TEXT),
    (0, b"SQLite format 3\x00", "an SQLite database", "Export the data as text first."),
    (0, b"GGUF", "a model file", "To load it, use `--model`."),
    (0, b"MZ", "a program", _NO_TEXT),
    (0, b"\x7fELF", "a program", _NO_TEXT),
    (0, b"\xfe\xed\xfa", "a program", _NO_TEXT),
    (0, b"\xcf\xfa\xed\xfe", "a program", _NO_TEXT),
    (0, b"\xca\xfe\xba\xbe", "a program or a Java class", _NO_TEXT),
    (0, b"\x00asm", "a WebAssembly program", _NO_TEXT),
    (0, b"ID3", "a sound file", _NO_TEXT),
    (0, b"OggS", "a sound or video file", _NO_TEXT),
    (0, b"fLaC", "a sound file", _NO_TEXT),
    (8, b"WAVE", "a sound file", _NO_TEXT),
    (8, b"AVI ", "a video file", _NO_TEXT),
    (4, b"ftyp", "a video or an image file", _NO_TEXT),
    (0, b"\x1a\x45\xdf\xa3", "a video file", _NO_TEXT),
    (0, b"\x89PNG", "an image", _NO_IMAGES),
    (0, b"\xff\xd8\xff", "an image", _NO_IMAGES),
    (0, b"GIF8", "an image", _NO_IMAGES),
    (0, b"II*\x00", "an image", _NO_IMAGES),
    (0, b"MM\x00*", "an image", _NO_IMAGES),
    (0, b"8BPS", "an image", _NO_IMAGES),
    (0, b"\x00\x00\x01\x00", "an image", _NO_IMAGES),
)  # fmt: skip
# Names of files in ZIP archives of other formats. They are in the local headers, which are near the beginning.
_ZIP_CONTENTS: Final = (
    (b"word/", "a Word document"), (b"xl/", "an Excel workbook"), (b"ppt/", "a PowerPoint presentation"),
    (b"mimetypeapplication/vnd.oasis", "an OpenDocument file"), (b"mimetypeapplication/epub", "an e-book (EPUB)"),
)  # fmt: skip
_ZIP_HEAD_BYTES: Final = 1 << 14
# Formats of documents that can consist of valid text.
_TEXT_FORMATS: Final = (b"%PDF-", b"{\\rtf")
# UTF-32 before UTF-16: the mark of UTF-16 is the beginning of that of UTF-32.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_TEXT_CONTROLS: Final = b"\t\n\v\f\r\b\x1b"
_BINARY: Final = bytes(code for code in (*range(0x20), 0x7F) if code not in _TEXT_CONTROLS)
# Bytes at the start of a file that decide whether it is text, and the least share of zeros of UTF-16 in them.
_SAMPLE_BYTES: Final = 1 << 16
_MIN_ZERO_SHARE: Final = 0.2
_MIN_ZERO_BYTES: Final = 16


class NotTextError(ValueError):
    """Raised when a file is no text; the message says what it is, as a predicate with the next step."""


def decode_text(data: bytes) -> str:
    """Decode text in UTF-8, or in another encoding of Unicode with a byte order mark. Raises NotTextError."""
    mark, encoding = next((item for item in _BYTE_ORDER_MARKS if data.startswith(item[0])), (b"", "utf-8"))
    if data.startswith(_TEXT_FORMATS):
        raise NotTextError(_describe_other_data(data, encoding, 0))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise NotTextError(_describe_other_data(data, encoding, error.start + len(mark))) from error
    if "\0" in text:
        raise NotTextError(_describe_other_data(data, "", data.index(0)))
    return text


def _describe_other_data(data: bytes, encoding: str, position: int) -> str:
    """Return what data is that is no text in `encoding` because of the byte at `position`."""
    for offset, magic, kind, advice in _MAGIC_NUMBERS:
        if data[offset : offset + len(magic)] == magic:
            return _describe_zip(data) if magic == b"PK\x03\x04" else f"is {kind}. {advice}"
    sample = data[:_SAMPLE_BYTES]
    if not sample.strip(b"\0"):
        return "contains only zeros, as after a crash of the system or an interrupted copy. Restore it from a backup."
    if encoding not in ("utf-8", ""):
        return f"is not valid {encoding[:6].upper()} text (byte {position} of {len(data)}). Save it as UTF-8."
    endian = _find_utf16(sample)
    if endian:
        return f"seems to be UTF-16 text without a byte order mark. {_make_iconv_advice(f'UTF-16{endian}')}"
    if sample.translate(None, _BINARY) != sample:
        return f"is not a text file: byte {position} is 0x{data[position]:02x}. {_NO_TEXT}"
    return (
        f"is not UTF-8 text (byte {position} of {len(data)} is 0x{data[position]:02x}), but perhaps text in an older "
        f"encoding, such as WINDOWS-1252 or GB18030. {_make_iconv_advice('WINDOWS-1252')}"
    )


def _describe_zip(data: bytes) -> str:
    head = data[:_ZIP_HEAD_BYTES]
    kind = next((kind for name, kind in _ZIP_CONTENTS if name in head), "")
    return f"is {kind}. {_SAVE_AS_TEXT}" if kind else f"is a ZIP archive. {_EXTRACT}"


def _make_iconv_advice(encoding: str) -> str:
    return f"Convert it first, for example with `iconv -f {encoding} -t UTF-8`."


def _find_utf16(sample: bytes) -> str:
    """Return the byte order of UTF-16 text without a mark, "LE" or "BE"; "" for other data."""
    if len(sample) < _MIN_ZERO_BYTES:
        return ""
    shares = [sample[start::2].count(0) / (len(sample) / 2) for start in (1, 0)]
    if max(shares) < _MIN_ZERO_SHARE or min(shares):
        return ""
    return "LE" if shares[0] else "BE"
