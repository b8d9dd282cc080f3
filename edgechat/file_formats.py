"""Recognition of files by their first bytes: formats other than plain text, and encodings of Unicode."""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

HEAD_BYTES: Final = 512
"""Number of bytes at the start of a file that `find_format` needs. A tar archive has its magic number at 257."""


class FileFormat(NamedTuple):
    """A file format, with advice for users who need the content of the file."""

    name: str
    """Completion of the sentence "The file is ...", such as "a ZIP archive" or "compressed with gzip"."""
    advice: str = ""
    """How to get the content; "" if that is not possible in general."""
    is_container: bool = False
    """True if the file contains other files; the advice then applies to all of them."""
    media_type: str = ""
    """Media type of a common image format; "" for all other formats."""


_SAVE_AS_TEXT: Final = "Save its text as a text file first."


def _archive(kind: str) -> FileFormat:
    return FileFormat(kind, "Extract it first.", is_container=True)


def _compressed(method: str, command: str) -> FileFormat:
    return FileFormat(f"compressed with {method}", f"Decompress it with `{command}` first.", is_container=True)


def _image(media_type: str = "") -> FileFormat:
    return FileFormat("an image", "edgechat does not read images.", media_type=media_type)


# Patterns of the first bytes. Each has a byte that no text contains, or at least five fixed characters, so that text in
# an older encoding, such as "MZ café" or "BZhélo", does not match.
_FORMATS: Final = tuple((re.compile(pattern, re.DOTALL), file_format) for pattern, file_format in (
    (rb"PK\x03\x04", _archive("a ZIP archive")),
    (rb"PK\x05\x06", FileFormat("an empty ZIP archive")),
    (rb"7z\xbc\xaf\x27\x1c", _archive("a 7z archive")),
    (rb"Rar!\x1a\x07", _archive("a RAR archive")),
    (rb".{257}ustar(?:  )?\0", _archive("a tar archive")),
    (rb"!<arch>\n", _archive("an ar archive")),
    (rb"\x1f\x8b\x08", _compressed("gzip", "gunzip")),
    (rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", _compressed("bzip2", "bunzip2")),
    (rb"\xfd7zXZ\0", _compressed("xz", "unxz")),
    (rb"\x28\xb5\x2f\xfd", _compressed("zstd", "unzstd")),
    (rb"\x04\x22\x4d\x18", _compressed("lz4", "unlz4")),
    (rb"%PDF-\d", FileFormat("a PDF document", "Convert it to text first, for example with `pdftotext`.")),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileFormat("an Office document", _SAVE_AS_TEXT)),
    (rb"\{\\rtf1", FileFormat("an RTF document", _SAVE_AS_TEXT)),
    (rb"SQLite format 3\0", FileFormat("an SQLite database", "Export the data as text first.")),
    (rb"GGUF(?:[^\0]\0\0\0|\0\0\0[^\0])", FileFormat("a model file", "To load it, use `--model`.")),
    (rb"MZqFpD=", FileFormat("a program for several systems, such as a llamafile")),
    (rb"MZ.{0,61}\0", FileFormat("a program")),  # the 64-byte header contains zeros
    (rb"\x7fELF", FileFormat("a program")),
    (rb"\xfe\xed\xfa[\xce\xcf]", FileFormat("a program")),
    (rb"\xcf\xfa\xed\xfe", FileFormat("a program")),
    (rb"\xca\xfe\xba\xbe", FileFormat("a program or a Java class")),
    (rb"\0asm", FileFormat("a WebAssembly program")),
    (rb"ID3[\x02-\x04]", FileFormat("a sound file")),
    (rb"OggS\0", FileFormat("a sound or video file")),
    (rb"fLaC[\0\x80]", FileFormat("a sound file")),
    (rb"RIFF.{4}WAVE", FileFormat("a sound file")),
    (rb"RIFF.{4}AVI ", FileFormat("a video file")),
    (rb"\0.{3}ftyp", FileFormat("a video or an image file")),
    (rb"\x1a\x45\xdf\xa3", FileFormat("a video file")),
    (rb"\x89PNG\r\n\x1a", _image("image/png")),
    (rb"\xff\xd8\xff(?:[\xc0-\xfe]|\Z)", _image("image/jpeg")),
    (rb"GIF8[79]a", _image("image/gif")),
    (rb"BM.{4}\0\0\0\0", _image("image/bmp")),
    (rb"RIFF.{4}WEBP", _image("image/webp")),
    (rb"II\*\0|MM\0\*", _image()),
    (rb"8BPS\0", _image()),
    (rb"\0\0\x01\0[^\0]\0", _image()),
))  # fmt: skip
# Names of files in ZIP archives of other formats. They are in the local headers, which are near the beginning.
_ZIP_CONTENTS: Final = (
    (b"word/", "a Word document"), (b"xl/", "an Excel workbook"), (b"ppt/", "a PowerPoint presentation"),
    (b"mimetypeapplication/vnd.oasis", "an OpenDocument file"), (b"mimetypeapplication/epub", "an e-book (EPUB)"),
)  # fmt: skip
_ZIP_HEAD_BYTES: Final = 1 << 14
# UTF-32 comes before UTF-16, because its byte order mark begins with that of UTF-16.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Minimum length, and minimum share of zero bytes, of data that counts as UTF-16 without a byte order mark.
_MIN_UTF16_BYTES: Final = 16
_MIN_ZERO_SHARE: Final = 0.2


def find_format(data: bytes) -> FileFormat | None:
    """Return the format of a file that starts with `data`; None if it is unknown or plain text.

    The contents of a ZIP archive are recognised if `data` is long enough.
    """
    file_format = next((file_format for pattern, file_format in _FORMATS if pattern.match(data)), None)
    if file_format is not None and data.startswith(b"PK\x03\x04"):
        head = data[:_ZIP_HEAD_BYTES]
        kind = next((kind for name, kind in _ZIP_CONTENTS if name in head), "")
        return FileFormat(kind, _SAVE_AS_TEXT) if kind else file_format
    return file_format


def find_byte_order_mark(data: bytes) -> tuple[bytes, str]:
    """Return the byte order mark at the start of `data` and the encoding it stands for; "" and "" without a mark."""
    return next((item for item in _BYTE_ORDER_MARKS if data.startswith(item[0])), (b"", ""))


def find_unmarked_utf16(sample: bytes) -> str:
    """Return the encoding of UTF-16 text without a byte order mark, "utf-16-le" or "utf-16-be"; "" for other data."""
    if len(sample) < _MIN_UTF16_BYTES:
        return ""
    shares = [sample[start::2].count(0) / (len(sample) / 2) for start in (1, 0)]
    if max(shares) < _MIN_ZERO_SHARE or min(shares):
        return ""
    return "utf-16-le" if shares[0] else "utf-16-be"
