"""Small files in the formats of documents, written by hand, for tests of the extraction."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from html import escape

_RELATIONSHIPS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_SLIDES = (
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    f'xmlns:r="{_RELATIONSHIPS}"'
)
_SHEETS = f'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r="{_RELATIONSHIPS}"'


def make_zip(files: Mapping[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def make_relationships(targets: Mapping[str, tuple[str, str]]) -> str:
    items = "".join(
        f'<Relationship Id="{i}" Type="{_RELATIONSHIPS}/{kind}" Target="{target}"/>'
        for i, (kind, target) in targets.items()
    )
    return f'<?xml version="1.0"?><Relationships xmlns="{_PACKAGE}">{items}</Relationships>'


def make_docx(body: str, **parts: str | bytes) -> bytes:
    """Return a Word document with WordprocessingML as its body; `parts` are files in `word/`, without `.xml`."""
    styles = (
        f'<w:styles {_WORD}><w:style w:type="paragraph" w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Titel"><w:name w:val="Title"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="H2"><w:name w:val="Heading 2"/></w:style></w:styles>'
    )
    document = f"<w:document {_WORD}><w:body>{body}</w:body></w:document>"
    return make_zip({
        "[Content_Types].xml": "<Types/>", "word/document.xml": document,
        "word/styles.xml": styles, **{f"word/{name}.xml": content for name, content in parts.items()},
    })  # fmt: skip


def paragraph(text: str, style: str = "", properties: str = "") -> str:
    style_xml = f'<w:pStyle w:val="{style}"/>' if style else ""
    runs = "".join(f"<w:r><w:t>{escape(part)}</w:t></w:r>" for part in text.split("|"))
    return f"<w:p><w:pPr>{style_xml}{properties}</w:pPr>{runs}</w:p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def make_pptx(slides: Sequence[tuple[str, str, str]]) -> bytes:
    """Return a presentation of slides, each with a title, a text and notes."""
    files: dict[str, str | bytes] = {"[Content_Types].xml": "<Types/>"}
    targets: dict[str, tuple[str, str]] = {}
    for number, (title, text, notes) in enumerate(slides, start=1):
        shapes = _shape(title, "title") + _shape(text, "body") + _shape(str(number), "sldNum")
        files[f"ppt/slides/slide{number}.xml"] = (
            f"<p:sld {_SLIDES}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
        )
        files[f"ppt/slides/_rels/slide{number}.xml.rels"] = make_relationships(
            {"rId1": ("notesSlide", f"../notesSlides/n{number}.xml")}
        )
        if notes:
            files[f"ppt/notesSlides/n{number}.xml"] = f"<p:notes {_SLIDES}>{_shape(notes, 'body')}</p:notes>"
        targets[f"rId{number + 9}"] = ("slide", f"slides/slide{number}.xml")
    ids = "".join(f'<p:sldId id="{256 + i}" r:id="{r}"/>' for i, r in enumerate(targets))
    files["ppt/presentation.xml"] = f"<p:presentation {_SLIDES}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    files["ppt/_rels/presentation.xml.rels"] = make_relationships(targets)
    return make_zip(files)


def _shape(text: str, kind: str) -> str:
    paragraphs = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>'


def make_xlsx(sheets: Mapping[str, str], strings: Sequence[str] = ()) -> bytes:
    """Return a workbook whose sheets have rows in SpreadsheetML; the styles 1 and 2 are dates."""
    targets = {f"rId{i}": ("worksheet", f"worksheets/sheet{i}.xml") for i in range(1, len(sheets) + 1)}
    listed = "".join(
        f'<sheet name="{escape(name)}" sheetId="{i}" r:id="rId{i}"/>' for i, name in enumerate(sheets, start=1)
    )
    items = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    return make_zip({
        "[Content_Types].xml": "<Types/>", "xl/_rels/workbook.xml.rels": make_relationships(targets),
        "xl/workbook.xml": f"<workbook {_SHEETS}><sheets>{listed}</sheets></workbook>",
        "xl/sharedStrings.xml": f"<sst {_SHEETS}>{items}</sst>",
        "xl/styles.xml": f"<styleSheet {_SHEETS}><numFmts>"
        '<numFmt numFmtId="170" formatCode="[$-407]d. mmmm yyyy hh:mm"/>'
        '<numFmt numFmtId="171" formatCode="0.0 &quot;days&quot;"/></numFmts><cellXfs><xf numFmtId="0"/>'
        '<xf numFmtId="14"/><xf numFmtId="170"/><xf numFmtId="171"/></cellXfs></styleSheet>',
        **{
            f"xl/worksheets/sheet{i}.xml": f"<worksheet {_SHEETS}><sheetData>{rows}</sheetData></worksheet>"
            for i, rows in enumerate(sheets.values(), start=1)
        },
    })  # fmt: skip


def make_epub(chapters: Mapping[str, str], title: str = "A book", **parts: str) -> bytes:
    """Return an e-book with XHTML files in reading order; `parts` are files in `META-INF/`, without `.xml`."""
    items = "".join(
        f'<item id="i{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(chapters)
    )
    order = "".join(f'<itemref idref="i{i}"/>' for i in range(len(chapters)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>{escape(title)}</dc:title></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    container = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    return make_zip({
        "mimetype": "application/epub+zip", "META-INF/container.xml": container, "OEBPS/book.opf": package,
        **{f"META-INF/{name}.xml": content for name, content in parts.items()},
        **{f"OEBPS/{name}": content for name, content in chapters.items()},
    })  # fmt: skip


def make_pdf(pages: Sequence[str | None], title: str = "", *, count: int | None = None, picture_size: int = 1) -> bytes:
    """Return a PDF document; a page that is None has a picture and no text.

    `count` replaces the number of pages, and `picture_size` is the declared width and height of the picture.
    """
    n_pages = len(pages)
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(n_pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {n_pages if count is None else count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        _make_stream(b"\0" * 3, f"/Type /XObject /Subtype /Image /Width {picture_size} /Height {picture_size} "
                     "/ColorSpace /DeviceRGB /BitsPerComponent 8"),
    ]  # fmt: skip
    for i, text in enumerate(pages):
        resources = "/XObject << /I 4 0 R >>" if text is None else "/Font << /F 3 0 R >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << {resources} >> "
            f"/Contents {6 + 2 * i} 0 R >>".encode()
        )
        objects.append(_make_stream(b"/I Do" if text is None else _show_text(text), ""))
    objects.append(f"<< /Title ({title}) >>".encode())
    return join_pdf(objects, info=len(objects))


def join_pdf(objects: Sequence[bytes], info: int = 1) -> bytes:
    """Return a PDF document with objects numbered from 1; the first one is its catalogue."""
    data = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        info,
        start,
    )
    return bytes(data)


def _make_stream(content: bytes, entries: str) -> bytes:
    data = zlib.compress(content)
    return b"<< %b /Filter /FlateDecode /Length %d >>\nstream\n%b\nendstream" % (entries.encode(), len(data), data)


make_stream = _make_stream


def _show_text(text: str) -> bytes:
    lines = (line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in text.split("\n"))
    shown = "".join(f"({line}) Tj T*\n" for line in lines)
    return f"BT /F 12 Tf 14 TL 72 720 Td\n{shown}ET".encode("cp1252")
