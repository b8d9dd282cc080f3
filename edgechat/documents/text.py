"""Text of a document: the sections that extraction returns, and the chunks that the index holds."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a document with one page number: a page of a PDF, a slide, a sheet, or the whole of a text file."""

    text: str
    page: int | None = None
    """Number of the page, slide or sheet from 1; None for documents without pages."""
    heading: str = ""
    """Title of the section, such as the name of a sheet; "" if there is none."""
    first_line: int | None = None
    """Line of the file, from 1, on which the text starts; None if the lines of the text are not those of the file."""


class ExtractedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Text of one file, in the order of the document."""

    sections: tuple[Section, ...]
    title: str = ""
    notice: str = ""
    """Sentence about parts that could not be read, such as scanned pages; "" if all text was read."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive text of a document that is searched, shown and cited as a unit. Chunks do not overlap."""

    text: str
    heading: str = ""
    """Headings above the text, such as "Installation > Linux", or the name of a function; "" if there is none."""
    page: int | None = None
    last_page: int | None = None
    first_line: int | None = None
    last_line: int | None = None
