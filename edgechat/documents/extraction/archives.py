"""Documents that are ZIP archives: chooses the format by the parts in the archive."""

from __future__ import annotations

from io import BufferedReader
from typing import Final

from edgechat.documents.extraction import epub, presentation, word, workbook
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.zip_package import ZipPackage
from edgechat.errors import DocumentError

_EXTRACTORS: Final = (
    ("word/document.xml", word.extract), ("ppt/presentation.xml", presentation.extract),
    ("xl/workbook.xml", workbook.extract), ("META-INF/container.xml", epub.extract),
)  # fmt: skip


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the text of a DOCX, PPTX, XLSX or EPUB file. Raises DocumentError for another archive."""
    package = ZipPackage(file, builder)
    for name, extract_package in _EXTRACTORS:
        if name in package.names:
            extract_package(package, builder)
            return
    if "content.xml" in package.names:
        raise DocumentError("it is an OpenDocument file. Save it as DOCX, PPTX or XLSX.")
    if "xl/workbook.bin" in package.names:
        raise DocumentError("it is a binary workbook (XLSB). Save it as XLSX.")
    raise DocumentError("it is a ZIP archive. Extract it first.")
