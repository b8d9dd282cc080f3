"""Text of Word documents (DOCX): paragraphs, headings, lists, tables and notes."""

from __future__ import annotations

import re
from typing import Final

from edgechat.documents.extraction.blocks import LINE, PARAGRAPH, BlockWriter, format_row
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.xml_stream import StopParsing, XmlHandler
from edgechat.documents.extraction.zip_package import ZipPackage

_DOCUMENT: Final = "word/document.xml"
_STYLES: Final = "word/styles.xml"
_NOTES: Final = (("word/footnotes.xml", "Footnotes"), ("word/endnotes.xml", "Endnotes"))
_HEADING_NAME: Final = re.compile(r"(?i)heading\s*([1-9])$")
_MAX_LEVEL: Final = 6
# Tables in tables in cells, from which text is written on its own: each level copies the text once.
_MAX_NESTED_CELLS: Final = 4


def extract(package: ZipPackage, builder: DocumentBuilder) -> None:
    """Add the text of the document as one section in Markdown."""
    styles = _Styles()
    if _STYLES in package.names:
        package.parse(_STYLES, styles)
    writer = BlockWriter(builder.limits.max_text_bytes)
    package.parse(_DOCUMENT, WordText(writer, styles))
    for name, title in _NOTES:
        if name in package.names and not writer.is_full:
            notes = BlockWriter(builder.limits.max_text_bytes)
            package.parse(name, WordText(notes, _Styles()))
            if notes.text:
                writer.add(f"# {title}")
                writer.add(notes.text)
    builder.add(writer.text)


class _Styles(XmlHandler):
    """Levels of the styles of headings, by the identifier of the style, and the styles of lists."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self.lists: set[str] = set()
        self._style = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        value = attributes.get("val", "")
        if name == "style":
            self._style = attributes.get("styleId", "")
        elif name == "name" and self._style:
            if match := _HEADING_NAME.match(value):
                self.levels[self._style] = int(match[1])
            elif value.lower() == "title":
                self.levels[self._style] = 1
        elif name == "numPr" and self._style:
            self.lists.add(self._style)
        elif name == "outlineLvl" and self._style and value.isdecimal():
            self.levels.setdefault(self._style, int(value[:2]) + 1)

    def end(self, name: str) -> None:
        if name == "style":
            self._style = ""


class _Paragraph:
    """Text and properties of a paragraph."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.level = 0
        """Level of a heading from 1; 0 for other paragraphs."""
        self.is_list_item = False


class WordText(XmlHandler):
    """Writes the paragraphs and tables of a part of a Word document."""

    def __init__(self, writer: BlockWriter, styles: _Styles) -> None:
        self._writer = writer
        self._styles = styles
        self._paragraphs: list[_Paragraph] = []
        self._rows: list[list[str]] = []
        self._cells: list[list[str]] = []
        self._is_text = False
        self._n_skipped = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name in {"Fallback", "del", "moveFrom"} or self._n_skipped:
            self._n_skipped += 1
        elif name == "p":
            self._paragraphs.append(_Paragraph())
        elif name == "tr":
            self._rows.append([])
        elif name == "tc":
            self._cells.append([])
        elif self._paragraphs:
            self._start_in_paragraph(name, attributes)

    def _start_in_paragraph(self, name: str, attributes: dict[str, str]) -> None:
        paragraph = self._paragraphs[-1]
        if name == "t":
            self._is_text = True
        elif name in {"tab", "ptab"} and not attributes:  # with attributes, it defines a tab stop
            paragraph.parts.append("\t")
        elif name in {"br", "cr"}:
            paragraph.parts.append("\n")
        elif name in {"noBreakHyphen", "softHyphen"}:
            paragraph.parts.append("-" if name == "noBreakHyphen" else "")
        elif name == "pStyle":
            paragraph.level = self._styles.levels.get(attributes.get("val", ""), 0)
            paragraph.is_list_item = attributes.get("val") in self._styles.lists
        elif name == "outlineLvl" and attributes.get("val", "").isdecimal():
            level = int(attributes["val"][:2]) + 1
            paragraph.level = level if level <= _MAX_LEVEL else 0
        elif name == "numId":
            paragraph.is_list_item = attributes.get("val") != "0"

    def text(self, text: str) -> None:
        if self._is_text:
            self._paragraphs[-1].parts.append(text)

    def end(self, name: str) -> None:
        if self._n_skipped:
            self._n_skipped -= 1
        elif name == "t":
            self._is_text = False
        elif name == "p" and self._paragraphs:
            self._write_paragraph(self._paragraphs.pop())
        elif name == "tc" and self._cells:
            cell = " ".join(self._cells.pop())
            if self._rows:
                self._rows[-1].append(cell)
        elif name == "tr" and self._rows:
            self._write(format_row(self._rows.pop()), LINE)
        elif name == "tbl":
            self._writer.end_paragraph()

    @property
    def _is_in_cell(self) -> bool:
        return 0 < len(self._cells) <= _MAX_NESTED_CELLS

    def _write_paragraph(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.parts).strip()
        if not text:
            return
        if self._is_in_cell:
            self._cells[-1].append(text)
        elif paragraph.level:
            self._write(f"{'#' * min(paragraph.level, _MAX_LEVEL)} {' '.join(text.split())}", PARAGRAPH)
        elif paragraph.is_list_item:
            self._write(f"- {text}", LINE)
        else:
            self._write(text, PARAGRAPH)

    def _write(self, text: str, gap: int) -> None:
        if self._is_in_cell:
            self._cells[-1].append(text)
            return
        self._writer.add(text, gap)
        if self._writer.is_full:
            raise StopParsing
