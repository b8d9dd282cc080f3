"""Formats of files by their first bytes: text in an older encoding has none of them."""

from __future__ import annotations

import bz2

import pytest

from edgechat.chat.text_files import NotTextError, decode_text
from edgechat.file_formats import find_byte_order_mark, find_format, find_unmarked_utf16
from edgechat.modelfile.file_kinds import describe_other_format

STARTS = (
    "MZ", "BZh", "BZh9", "ID3", "BM", "GIF8", "GGUF", "8BPS", "OggS", "fLaC", "%PDF-", "{\\rtf", "PK", "7z", "Rar!",
    "II*", "MM", "RIFF", "RIFF1234", "the ftyp", "SQLite format 3", "a file: WAVE", "MZqFp", "ustar",
    "x" * 257 + "ustar is",
)  # fmt: skip


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "koi8-r", "gbk"])
@pytest.mark.parametrize("start", STARTS)
def test_text_in_an_older_encoding_is_not_another_format(start: str, encoding: str) -> None:
    word = {"cp1252": "café élo", "gbk": "你好, 世界"}.get(encoding, "Привет")
    for separator in ("", " ", "\n", " menu "):
        data = f"{start}{separator}{word}\r\n".encode(encoding)
        assert find_format(data) is None
        with pytest.raises(NotTextError, match="perhaps text in an older encoding"):
            decode_text(data)


@pytest.mark.parametrize("start", STARTS)
def test_plain_text_is_decoded(start: str) -> None:
    assert decode_text(f"{start} menu".encode()) == f"{start} menu"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bz2.compress(b""), "compressed with bzip2"),
        (b"MZ\x90\0\x03", "a program"),
        (b"MZ" + bytes(58) + b"\x80\0\0\0", "a program"),
        (b"ID3\x04\0\0", "a sound file"),
        (b"BM\x46\x04\0\0\0\0\0\0", "an image"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "an image"),
        (b"GIF89a", "an image"),
        (b"\0\0\0\x20ftypisom", "a video or an image file"),
        (b"\x80" * 257 + b"ustar\0", "a tar archive"),
    ],
)
def test_format_has_one_name_everywhere(data: bytes, name: str) -> None:
    file_format = find_format(data)
    assert file_format is not None
    assert file_format.name == name
    assert describe_other_format(data, len(data)).startswith(f"is {name}, not a GGUF file. ")
    with pytest.raises(NotTextError, match=f"^is {name}"):
        decode_text(data + b"\xff\0")


def test_encoding_is_recognised() -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        assert find_unmarked_utf16("words of text".encode(encoding)) == encoding
    assert find_unmarked_utf16(bytes(40)) == find_unmarked_utf16(b"words without any zero") == ""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert find_byte_order_mark("\ufeffx".encode(encoding)) == ("\ufeff".encode(encoding), encoding)
    assert find_byte_order_mark(b"x") == (b"", "")
