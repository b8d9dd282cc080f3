"""Text of PowerPoint presentations (PPTX): one section for each slide, with its title and notes."""

from __future__ import annotations

from typing import Final

from edgechat.documents.extraction.blocks import LINE, PARAGRAPH, BlockWriter, format_row
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.xml_stream import StopParsing, XmlHandler
from edgechat.documents.extraction.zip_package import ZipPackage, get_relationship

_PRESENTATION: Final = "ppt/presentation.xml"
_TITLES: Final = frozenset(("title", "ctrTitle"))
# Placeholders whose text is the same on all slides, or a picture of the slide in the notes.
_SKIPPED: Final = frozenset(("sldNum", "dt", "ftr", "hdr", "sldImg"))


def extract(package: ZipPackage, builder: DocumentBuilder) -> None:
    """Add the slides in their order."""
    relationships = package.read_relationships(_PRESENTATION)
    slide_list = _SlideList()
    package.parse(_PRESENTATION, slide_list)
    for number, identifier in enumerate(slide_list.identifiers, start=1):
        if builder.is_full:
            break
        if number > builder.limits.max_pages or builder.is_late:
            builder.add_notice(f"Only the first {number - 1} of its {len(slide_list.identifiers)} slides were read.")
            break
        _, name = relationships.get(identifier, ("", ""))
        slide = _SlideText(BlockWriter(builder.limits.max_text_bytes))
        package.parse(name, slide)
        for kind, notes_name in package.read_relationships(name).values():
            if kind == "notesSlide" and notes_name in package.names:
                notes = _SlideText(BlockWriter(builder.limits.max_text_bytes))
                package.parse(notes_name, notes)
                slide.writer.add(f"Notes: {notes.writer.text}" if notes.writer.text else "")
        builder.add(slide.writer.text, page=number, heading=slide.title)
    if not builder.has_text:
        builder.add_notice("The slides have no text, only pictures.")


class _SlideList(XmlHandler):
    """Identifiers of the slides of a presentation."""

    def __init__(self) -> None:
        self.identifiers: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sldId":
            self.identifiers.append(get_relationship(attributes))


class _SlideText(XmlHandler):
    """Writes the text of a slide or its notes."""

    def __init__(self, writer: BlockWriter) -> None:
        self.writer = writer
        self.title = ""
        self._placeholder = ""
        self._paragraph: list[str] = []
        self._row: list[str] | None = None
        self._cell: list[str] | None = None
        self._is_text = False
        self._n_skipped = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "Fallback" or self._n_skipped:
            self._n_skipped += 1
        elif name == "sp":
            self._placeholder = ""
        elif name == "ph":
            self._placeholder = attributes.get("type", "body")
        elif name == "t":
            self._is_text = True
        elif name == "br":
            self._paragraph.append("\n")
        elif name == "tr":
            self._row = []
        elif name == "tc":
            self._cell = []

    def text(self, text: str) -> None:
        if self._is_text and self._placeholder not in _SKIPPED:
            self._paragraph.append(text)

    def end(self, name: str) -> None:
        if self._n_skipped:
            self._n_skipped -= 1
        elif name == "t":
            self._is_text = False
        elif name == "p":
            self._write_paragraph("".join(self._paragraph).strip())
            self._paragraph = []
        elif name == "tc" and self._row is not None and self._cell is not None:
            self._row.append(" ".join(self._cell))
            self._cell = None
        elif name == "tr" and self._row is not None:
            self.writer.add(format_row(self._row), LINE)
            self._row = None
        elif name in {"sp", "tbl"}:
            self.writer.end_paragraph()
            self._placeholder = ""

    def _write_paragraph(self, text: str) -> None:
        if not text:
            return
        if self._cell is not None:
            self._cell.append(text)
        elif self._placeholder in _TITLES:
            text = " ".join(text.split())
            self.title = f"{self.title} {text}".strip()
            self.writer.add(f"# {text}", PARAGRAPH)
        else:
            self.writer.add(text, LINE)
        if self.writer.is_full:
            raise StopParsing
