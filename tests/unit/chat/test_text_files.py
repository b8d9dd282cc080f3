"""Text of attached and imported files: encodings of Unicode, and the names of other formats."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgechat.chat.attachments import load_attachments
from edgechat.chat.text_files import NotTextError, decode_text
from edgechat.errors import AttachmentError

TEXT = "Grüße, Привет, 你好, 😀\n"


def zip_of(name: str, content: str = "x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", [TEXT, "", "x", "BM is no image"])
def test_unicode_is_decoded(encoding: str, text: str, tmp_path: Path) -> None:
    data = text.encode(encoding)
    assert decode_text(data) == text
    (tmp_path / "a.txt").write_bytes(data)
    [attachment], contents = load_attachments([tmp_path / "a.txt"])
    assert (attachment.media_type, attachment.size_bytes) == ("text/plain", len(contents[attachment.sha256]))
    assert contents[attachment.sha256].decode("utf-8-sig") == text


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-be"])
def test_big_endian_with_a_mark_is_decoded(encoding: str) -> None:
    assert decode_text(f"\ufeff{TEXT}".encode(encoding)) == TEXT


FORMATS: dict[str, tuple[bytes, str]] = {
    "cp1252": ("déjà vu".encode("cp1252"), r"is not UTF-8 text \(byte 1 of 7 is 0xe9\), but perhaps text in an older"),
    "gbk": ("你好, 世界".encode("gbk"), "older encoding, such as WINDOWS-1252 or GB18030. Convert it first, .*iconv"),
    "koi8-r": ("Привет, мир".encode("koi8-r"), "older encoding"),
    "utf-16 without a mark": ("words ünï".encode("utf-16-le"), "UTF-16 text without .*iconv -f UTF-16LE -t UTF-8"),
    "big-endian": ("words ünï".encode("utf-16-be"), "UTF-16 text without .*iconv -f UTF-16BE -t UTF-8"),
    "half a character": (b"\xff\xfea", r"is not valid UTF-16 text \(byte 2 of 3\)"),
    "zip": (zip_of("a.txt"), "is a ZIP archive. Extract it"),
    "empty zip": (zip_of("a.txt")[-22:], "is an empty ZIP archive"),
    "docx": (zip_of("word/document.xml"), "is a Word document. Save its text"),
    "xlsx": (zip_of("xl/workbook.xml"), "is an Excel workbook"),
    "odt": (zip_of("mimetype", "application/vnd.oasis.opendocument.text"), "is an OpenDocument file"),
    "epub": (zip_of("mimetype", "application/epub+zip"), "is an e-book"),
    "tar": (tar(), "is a tar archive. Extract it"),
    "gz": (gzip.compress(b"x"), "is compressed with gzip. Decompress it with `gunzip`"),
    "bz2": (bz2.compress(b"x"), "is compressed with bzip2"),
    "xz": (lzma.compress(b"x"), "is compressed with xz"),
    "zst": (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with zstd. Decompress it with `unzstd`"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\x00\xff", "is a RAR archive"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document. Convert it to text first, for example with `pdftotext`"),
    "pdf in ASCII": (b"%PDF-1.1\n", "is a PDF document"),
    "rtf": (b"{\\rtf1 x}", "is an RTF document"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Office document"),
    "program": (Path(sys.executable).read_bytes()[:5000], "is a program"),
    "dll": (b"MZ\x90\x00\x03", "is a program"),
    "sound": (b"RIFF\xff\x00\x00\x00WAVEfmt ", "is a sound file"),
    "video": (b"\x00\x00\x00\x18ftypmp42\xff", "is a video"),
    "model": (b"GGUF\x03\x00\x00\x00", "is a model file. To load it, use `--model`"),
    "zeros": (bytes(300_000), "contains only zeros, as after a system crash"),
    "noise": (b"\x91\x01\xc3\x28\x07\x00", "is not a text file: byte 0 is 0x91"),
    "one zero": (b"text with one\0 zero", "is not a text file: byte 13 is 0x00"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_format_is_named_with_the_next_step(tmp_path: Path, name: str) -> None:
    data, message = FORMATS[name]
    with pytest.raises(NotTextError, match=message):
        decode_text(data)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(AttachmentError, match=f"^file .*{message}") as caught:
        load_attachments([tmp_path / "file"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_sqlite_database_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("CREATE TABLE a (b)")
    db.close()
    with pytest.raises(AttachmentError, match=r"x.db is an SQLite database. Export the data"):
        load_attachments([tmp_path / "x.db"])
