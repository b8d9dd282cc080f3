"""Hostile and damaged documents, read by the real child process: one clear line each, and the next file is read."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import zipfile
import zlib
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from edgechat.documents import chunks
from edgechat.documents.extraction import process
from edgechat.documents.extraction.builder import ExtractionLimits
from edgechat.documents.extraction.process import ExtractionProcess, extract_file
from edgechat.documents.sources import find_files
from edgechat.documents.text import ExtractedDocument
from edgechat.errors import DocumentError
from edgechat.hardware.memory import read_peak_rss_bytes
from tests.document_files import (
    join_pdf,
    make_docx,
    make_epub,
    make_pdf,
    make_pptx,
    make_stream,
    make_xlsx,
    make_zip,
    paragraph,
    table,
)

LIMITS = ExtractionLimits(
    memory_bytes=400 << 20, timeout_s=120, max_text_bytes=4 << 20, max_unpacked_bytes=64 << 20, max_pages=1000
)
N_DAMAGED = 40


@pytest.fixture(scope="module")
def extraction() -> Iterator[ExtractionProcess]:
    with ExtractionProcess(LIMITS) as shared:
        yield shared


def fail(extraction: ExtractionProcess, path: Path) -> str:
    """Return the message of the error for a file; check that it is one line and that the next file is read."""
    with pytest.raises(DocumentError) as caught:
        extraction.extract(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name} cannot be read: ")
    assert "\n" not in message
    assert "Traceback" not in message
    check_next_file(extraction, path.parent)
    return message.partition("cannot be read: ")[2]


def extract_or_fail(extraction: ExtractionProcess, path: Path) -> ExtractedDocument | None:
    """Return the text of a file; None if there is an error, whose message is one line."""
    try:
        return extraction.extract(path)
    except DocumentError as error:
        message = str(error)
    assert message.startswith(f"{path.name} cannot be read: ")
    assert "\n" not in message
    return None


def check_next_file(extraction: ExtractionProcess, folder: Path) -> None:
    path = folder / "good.md"
    path.write_text("# Good\n")
    assert extraction.extract(path).sections[0].text == "# Good\n"


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def write_bomb(path: Path, name: str, parts: tuple[bytes, bytes, int, bytes], **others: str) -> Path:
    """Write an archive with a part that begins with the first of `parts` and repeats the second."""
    start, unit, count, end = parts
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other_name, content in others.items():
            archive.writestr(other_name, content)
        with archive.open(name, "w") as file:
            file.write(start)
            for _ in range(count):
                file.write(unit)
            file.write(end)
    return path


def make_message() -> bytes:
    message = EmailMessage()
    message["From"], message["Subject"] = "Ann <ann@example.org>", "Hello"
    message.set_content("Text of the message.\n" * 20)
    message.add_alternative("<p>Text of the message.</p>", subtype="html")
    message.add_attachment(b"data" * 100, maintype="application", subtype="octet-stream", filename="a.bin")
    return bytes(message)


GOOD_FILES = {
    "a.docx": make_docx(paragraph("Title", "H1") + paragraph("Text & more. " * 40) + table([["a", "b"], ["c", "d"]])),
    "a.pptx": make_pptx([("One", "Text", "Notes"), ("Two", "More text", "")]),
    "a.xlsx": make_xlsx(
        {"One": '<row><c r="A1" t="s"><v>0</v></c><c r="B1" s="1"><v>45292</v></c></row>' * 20}, ["text"]
    ),
    "a.epub": make_epub({"a.xhtml": "<h1>One</h1><p>Text", "b.xhtml": "<p>More</p>" * 30}),
    "a.pdf": make_pdf(["Page one", "Page two\nwith lines", None]),
    "a.eml": make_message(),
    "a.html": b"<html><body><h1>Title</h1><p>Text</p><table><tr><td>1</td></tr></table></body></html>" * 5,
    "a.md": "# Title\n\nText with ümlauts.\n".encode() * 20,
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_damaged_files_have_text_or_one_clear_line(name: str, extraction: ExtractionProcess, tmp_path: Path) -> None:
    good, generator = GOOD_FILES[name], random.Random(name)
    assert extraction.extract(write(tmp_path, name, good)).sections
    n_errors = 0
    for number in range(N_DAMAGED):
        data = bytearray(good)
        if number % 2:
            del data[generator.randrange(len(data)) :]
        else:
            for _ in range(generator.randint(1, 20)):
                data[generator.randrange(len(data))] = generator.randrange(256)
        document = extract_or_fail(extraction, write(tmp_path, name, bytes(data)))
        n_errors += document is None
        if document is not None:
            assert document.sections or document.notice
            chunks.split(document, name)
    assert n_errors or name in {"a.html", "a.md", "a.eml"}
    check_next_file(extraction, tmp_path)


def test_zip_bomb_is_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    start = b'<w:document xmlns:w="x"><w:body>'
    path = write_bomb(
        tmp_path / "a.docx",
        "word/document.xml",
        (start, b"<w:x>" + b" " * (1 << 20) + b"</w:x>", 70, b"</w:body></w:document>"),
    )
    assert path.stat().st_size < 1 << 20
    assert "unpacks to more than 67 MB, as a ZIP bomb does" in fail(extraction, path)


@pytest.mark.slow
def test_text_without_end_is_cut_off_with_a_notice(extraction: ExtractionProcess, tmp_path: Path) -> None:
    start, unit = b'<w:document xmlns:w="x"><w:body>', b"<w:p><w:r><w:t>some text of it</w:t></w:r></w:p>" * 1000
    path = write_bomb(tmp_path / "a.docx", "word/document.xml", (start, unit, 500, b"</w:body></w:document>"))
    document = extraction.extract(path)
    assert 3 << 20 < sum(len(section.text) for section in document.sections) <= 4 << 20
    assert "Only the first 4 MB of the text were read." in document.notice


def test_entities_of_xml_are_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{entities}]><x>&j;</x>'
    path = write(tmp_path, "a.docx", make_zip({"word/document.xml": bomb}))
    assert "declares a document type" in fail(extraction, path)
    (tmp_path / "secret").write_text("secret")
    external = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]><x>&e;</x>'
    path = write(tmp_path, "b.docx", make_zip({"word/document.xml": external}))
    assert "secret" not in fail(extraction, path).replace(str(tmp_path), "")


def test_deeply_nested_xml_is_read(extraction: ExtractionProcess, tmp_path: Path) -> None:
    depth = 20_000
    body = f"<w:tbl><w:tr><w:tc>{paragraph('text')}" * depth + "</w:tc></w:tr></w:tbl>" * depth
    document = extraction.extract(write(tmp_path, "a.docx", make_docx(body)))
    assert document.sections[0].text.count("text") == depth


@pytest.mark.slow
def test_deeply_nested_html_and_messages_are_read_or_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    document = extraction.extract(write(tmp_path, "a.html", b"<table><tr><td><ul><li>x" * 20_000))
    assert document.sections[0].text.count("x") == 20_000
    part = "".join(f"Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n" for i in range(3000))
    assert fail(extraction, write(tmp_path, "a.eml", f"Subject: x\nMIME-Version: 1.0\n{part}\n\ntext".encode()))


def test_workbook_with_repeated_long_text_is_cut_off(extraction: ExtractionProcess, tmp_path: Path) -> None:
    data = make_xlsx({"A": '<row><c t="s"><v>0</v></c></row>' * 10_000}, ["x" * 100_000])
    document = extraction.extract(write(tmp_path, "a.xlsx", data))
    assert "Only the first" in document.notice


def make_page(stream: bytes) -> bytes:
    return join_pdf([
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources 6 0 R /Contents 4 0 R >>", stream,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", b"<< /Font << /F 5 0 R >> >>",
    ])  # fmt: skip


def test_pdf_with_a_million_pages_is_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    declared = write(tmp_path, "a.pdf", make_pdf(["text"], count=1_000_000))
    assert fail(extraction, declared) == "it has more than 1,000 pages. Split it into smaller files."
    kids = b"3 0 R " * 1_000_000
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [" + kids + b"] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
    ]  # fmt: skip
    assert fail(extraction, write(tmp_path, "b.pdf", join_pdf(objects)))


def test_pdf_with_endless_page_tree_is_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    cycle = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 >>"]
    assert fail(extraction, write(tmp_path, "a.pdf", join_pdf(cycle)))
    nodes = [b"<< /Type /Pages /Kids [%d 0 R] /Count 1 >>" % (i + 3) for i in range(50_000)]
    deep = [b"<< /Type /Catalog /Pages 2 0 R >>", *nodes, b"<< /Type /Page >>"]
    assert fail(extraction, write(tmp_path, "b.pdf", join_pdf(deep)))


@pytest.mark.slow
def test_pdf_with_compressed_bomb_is_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    compressor = zlib.compressobj(9)
    bomb = b"".join([*(compressor.compress(b" " * (1 << 20)) for _ in range(500)), compressor.flush()])
    stream = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%b\nendstream" % (len(bomb), bomb)
    assert fail(extraction, write(tmp_path, "a.pdf", make_page(stream)))
    twice = b"<< /Filter [/FlateDecode /FlateDecode] /Length %d >>\nstream\n%b\nendstream"
    bomb = zlib.compress(bomb)
    assert fail(extraction, write(tmp_path, "b.pdf", make_page(twice % (len(bomb), bomb))))


def test_pdf_with_huge_pictures_is_not_decoded(extraction: ExtractionProcess, tmp_path: Path) -> None:
    content = b"BI /W 1000000 /H 1000000 /BPC 8 /CS /RGB ID xxxx EI"
    assert fail(extraction, write(tmp_path, "a.pdf", make_page(make_stream(content, ""))))
    data = make_pdf(["words", None], picture_size=1_000_000)
    assert "Page 2 has no text, only a picture" in extraction.extract(write(tmp_path, "b.pdf", data)).notice


def test_nested_pdf_objects_are_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    nested = b"[" * 100_000 + b"]" * 100_000
    objects = [b"<< /Type /Catalog /Pages 2 0 R /X " + nested + b" >>", b"<< /Type /Pages /Kids [] /Count 0 >>"]
    assert fail(extraction, write(tmp_path, "a.pdf", join_pdf(objects)))


def test_encrypted_files_say_so(extraction: ExtractionProcess, tmp_path: Path) -> None:
    import pypdf

    for password, is_readable in (("secret", False), ("", True)):
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["words"])))
        writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
        stream = io.BytesIO()
        writer.write(stream)
        path = write(tmp_path, "a.pdf", stream.getvalue())
        if is_readable:
            assert extraction.extract(path).sections[0].text == "words"
        else:
            assert fail(extraction, path) == "it is encrypted with a password. Save a copy without a password."
    data = bytearray(make_docx(paragraph("words")))
    for start in range(len(data) - 4):
        if data[start : start + 4] == b"PK\x01\x02":  # entries of the directory
            data[start + 8] |= 1
    assert "encrypted with a password" in fail(extraction, write(tmp_path, "a.docx", bytes(data)))
    office = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(5000) + "EncryptedPackage".encode("utf-16-le")
    assert "encrypted with a password" in fail(extraction, write(tmp_path, "b.docx", office))


def test_text_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "🦉 text\n".encode() * (6 << 20))
    # A new process has up to 120 MiB of address space, most of it reserved by malloc for each thread.
    with ExtractionProcess(ExtractionLimits(memory_bytes=200 << 20)) as extraction:
        assert "needs more than 210 MB of memory" in fail(extraction, path)


def test_missing_and_special_files_are_refused(extraction: ExtractionProcess, tmp_path: Path) -> None:
    assert fail(extraction, tmp_path / "missing.md") == "No such file or directory."
    assert fail(extraction, tmp_path)
    assert fail(extraction, tmp_path / ("x" * 300))
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.txt")
        assert fail(extraction, tmp_path / "pipe.txt") == "not a regular file."


def test_file_names_are_printed_in_one_line(extraction: ExtractionProcess, tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        extraction.extract(tmp_path / "two\nlines.pdf")
    assert str(caught.value).startswith("two\\nlines.pdf cannot be read")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_process_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    with ExtractionProcess(ExtractionLimits(timeout_s=60)) as extraction:
        check_next_file(extraction, tmp_path)
        child, _ = extraction._child or pytest.fail("no child process")
        os.kill(child.pid, signal.SIGSTOP)
        extraction.limits = ExtractionLimits(timeout_s=1)
        with pytest.raises(DocumentError, match="reading it took more than 1 s"):
            extraction.extract(tmp_path / "good.md")
        assert child.returncode == -signal.SIGKILL
        extraction.limits = ExtractionLimits()
        check_next_file(extraction, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_memory_is_polled_where_the_system_does_not_limit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExtractionProcess() as extraction:
        check_next_file(extraction, tmp_path)
        child, _ = extraction._child or pytest.fail("no child process")
        os.kill(child.pid, signal.SIGSTOP)
        monkeypatch.setattr(process, "_LIMITS_ADDRESS_SPACE", False)
        monkeypatch.setattr(process, "read_rss_bytes", lambda pid: (2 << 30) if pid == child.pid else 0)
        with pytest.raises(DocumentError, match=r"needs more than 1\.07 GB of memory"):
            extraction.extract(tmp_path / "good.md")
        check_next_file(extraction, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_killed_process_is_replaced(tmp_path: Path) -> None:
    with ExtractionProcess() as extraction:
        check_next_file(extraction, tmp_path)
        child, _ = extraction._child or pytest.fail("no child process")
        child.kill()
        child.wait()
        check_next_file(extraction, tmp_path)
        child, _ = extraction._child or pytest.fail("no child process")
        os.kill(child.pid, signal.SIGSTOP)

        def kill() -> bool:
            child.kill()
            return False

        with pytest.raises(DocumentError, match="the system ended the process that reads it"):
            extraction.extract(tmp_path / "good.md", kill)
        check_next_file(extraction, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_cancelled_extraction_ends_its_process(tmp_path: Path) -> None:
    with ExtractionProcess() as extraction:
        check_next_file(extraction, tmp_path)
        child, _ = extraction._child or pytest.fail("no child process")
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DocumentError, match="cancelled"):
            extraction.extract(tmp_path / "good.md", lambda: True)
        check_next_file(extraction, tmp_path)


def test_one_process_reads_many_files(tmp_path: Path) -> None:
    with ExtractionProcess() as extraction:
        check_next_file(extraction, tmp_path)
        first = extraction._child
        for number in range(50):
            path = write(tmp_path, f"{number}.txt", b"text" if number % 2 else b"\0binary")
            assert (extract_or_fail(extraction, path) is None) == (number % 2 == 0)
        assert extraction._child is first
    assert first is not None
    assert first[0].poll() is not None
    assert extract_file(tmp_path / "1.txt").sections[0].text == "text"


def test_memory_of_the_parent_process_does_not_count(tmp_path: Path) -> None:
    """A child process starts with the peak memory of its parent in `ru_maxrss`."""
    ballast = bytearray(400 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    del ballast
    with ExtractionProcess(ExtractionLimits(memory_bytes=2 * read_peak_rss_bytes() - (8 << 20))) as extraction:
        check_next_file(extraction, tmp_path)
        assert extraction._child is not None


@pytest.mark.slow
def test_walk_of_20_000_files(tmp_path: Path) -> None:
    root = tmp_path / "files"
    for number in range(20):
        folder = root / f"d{number}"
        folder.mkdir(parents=True)
        for file_number in range(1000):
            (folder / f"{file_number}.md").touch()
    (root / ".gitignore").write_text("/d7/\n")
    assert sum(1 for _ in find_files(root)) == 19_000
