from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.extraction import formats
from edgechat.documents.extraction.builder import DocumentBuilder, ExtractionLimits
from edgechat.documents.extraction.html_document import convert_html
from edgechat.documents.text import ExtractedDocument
from edgechat.errors import DocumentError
from tests.document_files import (
    make_docx,
    make_epub,
    make_pdf,
    make_pptx,
    make_xlsx,
    make_zip,
    paragraph,
    table,
)
from tests.unit.documents.extraction.helpers import extract, extract_text, fail


def test_known_formats_are_named() -> None:
    assert fail(b"\x89PNG\r\n\x1a\n", "a.txt") == "It is an image. edgechat does not read images."
    assert fail(b"{\\rtf1 text}", "a.doc") == "It is an RTF document. Save its text as a text file first."
    assert "before 2007" in fail(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "a.doc")
    encrypted = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")
    assert "password" in fail(encrypted, "a.docx")
    assert "name ends in .pdf, but its content has another format or is damaged." in fail(b"text", "a.pdf")
    assert fail(b"", "a.docx") == "The file is empty."
    assert fail(make_zip({"a.txt": "text"}), "a.zip") == "it is a ZIP archive. Extract it first."


def test_html_becomes_markdown() -> None:
    page = """<!DOCTYPE html><html><head><title> My  page </title><style>p {}</style>
    <script>if (a < b) {}</script></head>
    <body><nav><a href="/">Home</a></nav><h1>First <em>heading</em></h1><p>A paragraph &amp; <b>bold</b>
    text.<br>Next line.</p><ul><li>one<li>two<ul><li>inner</li></ul></li></ul><ol><li>first</li><li>second</li></ol>
    <table><tr><th>Name</th><th>Value</th></tr><tr><td><p>a</p></td><td>1<br>2</td></tr></table>
    <pre><code>def f():
        return 1
    </code></pre><div>Last<div>nested</div>text</div></body></html>"""
    document = extract(page.encode(), "a.html")
    assert document.title == "My page"
    assert document.sections[0].text == (
        "# First heading\n\nA paragraph & bold text.\nNext line.\n\n- one\n- two\n  - inner\n\n1. first\n2. second\n\n"
        "Name | Value\na | 1 2\n\n```\ndef f():\n        return 1\n    \n```\n\nLast\n\nnested\n\ntext"
    )


def test_html_with_navigation_without_end_has_text() -> None:
    assert extract_text(b"<html><nav>Menu<p>Content</html>", "a.html") == "Menu\n\nContent"


@pytest.mark.parametrize("element", ["script", "style", "template"])
def test_hidden_element_without_end_has_a_notice(element: str) -> None:
    document = extract(f"<p>Before</p><{element}>var a = 1;<p>After".encode(), "a.html")
    assert document.sections[0].text == "Before"
    assert document.notice == f"The text after an element <{element}> without an end was not read."
    assert not extract(f"<p>Before</p><{element}>var a = 1;</{element}><p>After".encode(), "a.html").notice


def test_notice_of_several_chapters_is_given_once() -> None:
    document = extract(make_epub({"a.xhtml": "<p>one<script>x", "b.xhtml": "<p>two<script>y"}), "a.epub")
    assert [section.text for section in document.sections] == ["one", "two"]
    assert document.notice == "The text after an element <script> without an end was not read."


def test_html_uses_its_declared_encoding() -> None:
    assert extract_text('<meta charset="iso-8859-2"><p>ľúbiť'.encode("iso-8859-2"), "a.htm") == "ľúbiť"
    assert extract_text('<meta charset="nonsense"><p>é'.encode(), "a.htm") == "é"


@given(st.lists(st.sampled_from([
    "<p>", "</p>", "<td>", "</td>", "<tr>", "<table>", "</table>", "<li>", "</ul>", "<ol>", "<pre>", "</pre>", "<h1>",
    "</h1>", "<br/>", "<nav>", "</nav>", "<div/>", "<script>", "</script>", "&#0;", "&#xD800;", "<!--", "-->",
    "<![CDATA[",
    "]]>", "<?",
    "<title>", "</title>", "word", "\0", " ", "\n", "```",
]), max_size=40))  # fmt: skip
def test_any_html_is_converted(parts: list[str]) -> None:
    text, _ = convert_html("".join(parts), DocumentBuilder(ExtractionLimits(), timeout_s=1000))
    assert text.count("word") <= parts.count("word")


def test_word_document_has_headings_lists_tables_and_notes() -> None:
    body = (
        paragraph("Report", "Titel") + paragraph("Part| one", "H1") + paragraph("Some |text.") + paragraph("", "")
        + paragraph("first", properties='<w:numPr><w:numId w:val="1"/></w:numPr>')
        + paragraph("second", properties='<w:numPr><w:numId w:val="1"/></w:numPr>')
        + table([["Name", "Value"], ["a", "1 < 2"], ["b", ""]])
        + "<w:p><w:del><w:r><w:delText>deleted</w:delText><w:t>gone</w:t></w:r></w:del><w:r><w:t>After</w:t><w:tab/>"
        "<w:t>tab</w:t><w:br/><w:t>line</w:t></w:r></w:p>" + paragraph("Details", "H2")
    )  # fmt: skip
    notes = f'<w:footnotes xmlns:w="http://x"><w:footnote>{paragraph("A note.")}</w:footnote></w:footnotes>'
    assert extract_text(make_docx(body, footnotes=notes), "a.docx") == (
        "# Report\n\n# Part one\n\nSome text.\n\n- first\n- second\nName | Value\na | 1 < 2\nb\n\nAfter\ttab\nline\n\n"
        "## Details\n\n# Footnotes\n\nA note."
    )


def test_slides_are_pages_with_titles_and_notes() -> None:
    document = extract(make_pptx([("Sales", "Up\nby 3 %", "Smile"), ("", "", ""), ("End", "Thanks", "")]), "a.pptx")
    assert [(s.page, s.heading, s.text) for s in document.sections] == [
        (1, "Sales", "# Sales\n\nUp\nby 3 %\n\nNotes: Smile"), (3, "End", "# End\n\nThanks"),
    ]  # fmt: skip


def test_sheets_are_pages_with_rows_as_lines() -> None:
    rows = (
        '<row><c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>1</v></c></row>'
        '<row><c r="A2" s="1"><v>45292</v></c><c r="B2" s="2"><v>45292.75</v></c><c r="C2" s="3"><v>2.5</v></c></row>'
        '<row><c r="A3"><v>0.30000000000000004</v></c><c r="B3" t="b"><v>1</v></c><c r="C3" t="inlineStr">'
        '<is><t>in</t></is></c></row><row><c r="A4" t="str"><f>A1&amp;A2</f><v>both</v></c>'
        '<c r="B4" t="e"><v>#N/A</v></c>'
        '<c r="XFD4"><v>7</v></c></row>'
    )
    document = extract(
        make_xlsx({"One": rows, "Empty": "", "Two": "<row><c><v>1</v></c></row>"}, ["Name", "Größe"]), "a.xlsx"
    )
    assert [(s.page, s.heading, s.text) for s in document.sections] == [
        (1, "One", "Name |  | Größe\n2024-01-01 | 2024-01-01 18:00:00 | 2.5\n0.3 | TRUE | in\nboth | #N/A | 7"),
        (3, "Two", "1"),
    ]  # fmt: skip


def test_book_has_chapters_in_reading_order() -> None:
    data = make_epub({"b.xhtml": "<html><h1>One</h1><p>Text</p></html>", "a%20b.xhtml": "<p>x</p>"}, "My & book")
    document = extract(data, "a.epub")
    assert document.title == "My & book"
    assert [s.text for s in document.sections] == ["# One\n\nText"]
    assert document.notice == "1 of its 2 chapters are missing in the file."


def test_protected_book_is_refused() -> None:
    encryption = '<encryption><CipherReference URI="OEBPS/a.xhtml"/></encryption>'
    assert "DRM" in fail(make_epub({"a.xhtml": "<p>x</p>"}, encryption=encryption), "a.epub")
    fonts = '<encryption><CipherReference URI="OEBPS/font.otf"/></encryption>'
    assert extract_text(make_epub({"a.xhtml": "<p>x</p>"}, encryption=fonts), "a.epub") == "x"


def test_pdf_pages_are_sections_and_pages_with_pictures_are_named() -> None:
    document = extract(make_pdf(["Page one\n(text)", None, None, "Page four", ""], "A title"), "a.pdf")
    assert [(s.page, s.text) for s in document.sections] == [(1, "Page one\n(text)"), (4, "Page four")]
    assert document.title == "A title"
    assert document.notice == "Pages 2-3 have no text, only pictures, as in a scan."


def test_scanned_pdf_is_refused() -> None:
    assert fail(make_pdf([None, None]), "a.pdf") == (
        "it has no text: its 2 pages are pictures, as in a scan. Recognise the text first, for example with `ocrmypdf`."
    )
    assert fail(make_pdf([""]), "a.pdf") == "it has no text on its 1 page."


def extract_late(data: bytes, name: str, n_timely: int, monkeypatch: pytest.MonkeyPatch) -> ExtractedDocument:
    """Extract with a time limit that has passed when `is_late` was asked `n_timely` times."""
    answers = iter([False] * n_timely)
    monkeypatch.setattr(DocumentBuilder, "is_late", property(lambda self: next(answers, True)))
    return extract(data, name)


@pytest.mark.parametrize(
    ("data", "name", "notice"),
    [
        (make_pdf(["one", "two", "three"]), "a.pdf", "Pages 2-3 were not read in time."),
        (make_pdf(["one", "two"]), "a.pdf", "Page 2 was not read in time."),
        (make_pptx([("one", "", ""), ("two", "", "")]), "a.pptx", "Only the first 1 of its 2 slides were read."),
        (
            make_xlsx({"A": "<row><c><v>1</v></c></row>", "B": "<row><c><v>2</v></c></row>"}),
            "a.xlsx",
            "Only the first 1 of its 2 sheets were read in time.",
        ),
        (
            make_epub({"a.xhtml": "<p>one", "b.xhtml": "<p>two"}),
            "a.epub",
            "Only the first 1 of its 2 chapters were read in time.",
        ),
    ],
)
def test_document_that_takes_too_long_has_its_first_part(
    data: bytes, name: str, notice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = extract_late(data, name, 1, monkeypatch)
    assert len(document.sections) == 1
    assert document.notice == notice


def test_pdf_that_takes_too_long_before_any_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DocumentError, match="takes too long"):
        extract_late(make_pdf([None, "text"]), "a.pdf", 1, monkeypatch)


def test_wrong_extension_does_not_matter_for_archives_and_pdf() -> None:
    assert extract_text(make_docx(paragraph("Hello")), "a.txt") == "Hello"
    assert extract_text(make_pdf(["Hello"]), "a.docx") == "Hello"


@pytest.mark.parametrize("package", ["pypdf"])
def test_missing_extra_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    assert "pipx inject edgechat pypdf" in fail(make_pdf(["Hello"]), "a.pdf")


def test_text_formats_of_a_walk_are_recognised() -> None:
    assert formats.is_probably_text(b"text")
    assert formats.is_probably_text(codecs.BOM_UTF16_LE + "text".encode("utf-16-le"))
    assert not formats.is_probably_text(b"a\0b")
    assert not formats.is_probably_text(make_zip({"a": "b"}))
    assert formats.is_probably_text(make_pdf(["x"])[:512])
    assert Path("x").suffix.lower() not in formats.DOCUMENT_EXTENSIONS
