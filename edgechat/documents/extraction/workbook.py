"""Text of Excel workbooks (XLSX): one section for each sheet, one line for each row, with calculated values."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from edgechat.documents.extraction.blocks import LINE, BlockWriter, format_row
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.xml_stream import StopParsing, XmlHandler
from edgechat.documents.extraction.zip_package import ZipPackage, get_relationship

_WORKBOOK: Final = "xl/workbook.xml"
_STRINGS: Final = "xl/sharedStrings.xml"
_STYLES: Final = "xl/styles.xml"
# Built-in formats of dates and times (ECMA-376, part 1, 18.8.30), which have no text in the file.
_DATE_FORMATS: Final = frozenset((*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)))
# Quoted text, colours, escaped characters and conditions of a format; the rest has letters only for dates and times.
_FORMAT_LITERALS: Final = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.|_.|\*.|General')
_EPOCH: Final = dt.datetime(1899, 12, 30)  # noqa: DTZ001  (workbooks have no time zones)
_EPOCH_1904: Final = dt.datetime(1904, 1, 1)  # noqa: DTZ001
_MAX_SERIAL: Final = 2_958_466  # the end of the year 9999
_REFERENCE: Final = re.compile(r"([A-Z]{1,3})\d+$")
# Most empty cells that are written between two cells of a row.
_MAX_GAP: Final = 50


def extract(package: ZipPackage, builder: DocumentBuilder) -> None:
    """Add the sheets in their order."""
    relationships = package.read_relationships(_WORKBOOK)
    book = _Book()
    package.parse(_WORKBOOK, book)
    strings, styles = _SharedStrings(builder.limits.max_text_bytes), _CellStyles()
    if _STRINGS in package.names:
        package.parse(_STRINGS, strings)
    if _STYLES in package.names:
        package.parse(_STYLES, styles)
    for number, (title, identifier) in enumerate(book.sheets, start=1):
        if builder.is_full or builder.is_late:
            if not builder.is_full:
                builder.add_notice(f"Only the first {number - 1} of its {len(book.sheets)} sheets were read in time.")
            break
        kind, name = relationships.get(identifier, ("", ""))
        if kind == "worksheet":
            writer = BlockWriter(builder.limits.max_text_bytes)
            package.parse(name, _SheetText(writer, strings.strings, styles.date_styles, book.epoch))
            builder.add(writer.text, page=number, heading=title)
    if not builder.has_text:
        builder.add_notice("The sheets have no text.")


class _Book(XmlHandler):
    """Names of the sheets, and the first day of the calendar."""

    def __init__(self) -> None:
        self.sheets: list[tuple[str, str]] = []
        self.epoch = _EPOCH

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sheet":
            self.sheets.append((attributes.get("name", ""), get_relationship(attributes)))
        elif name == "workbookPr" and attributes.get("date1904", "") in {"1", "true"}:
            self.epoch = _EPOCH_1904


class _SharedStrings(XmlHandler):
    """Texts to which cells refer by number."""

    def __init__(self, max_chars: int) -> None:
        self.strings: list[str] = []
        self._parts: list[str] = []
        self._is_text = False
        self._is_phonetic = False
        self._n_left = max_chars

    def start(self, name: str, attributes: dict[str, str]) -> None:  # noqa: ARG002  (of XmlHandler)
        if name == "rPh":
            self._is_phonetic = True
        self._is_text = name == "t" and not self._is_phonetic

    def text(self, text: str) -> None:
        if self._is_text:
            self._parts.append(text)

    def end(self, name: str) -> None:
        self._is_text = False
        if name == "rPh":
            self._is_phonetic = False
        elif name == "si":
            self.strings.append("".join(self._parts))
            self._parts = []
            self._n_left -= len(self.strings[-1])
            if self._n_left < 0:
                raise StopParsing


class _CellStyles(XmlHandler):
    """Numbers of the styles of cells with dates or times."""

    def __init__(self) -> None:
        self.date_styles: set[int] = set()
        self._date_formats = set(_DATE_FORMATS)
        self._is_cell_formats = False
        self._n_styles = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "numFmt":
            code = _FORMAT_LITERALS.sub("", attributes.get("formatCode", ""))
            if re.search("[ymdhs]", code.lower()):
                self._date_formats.add(_to_int(attributes.get("numFmtId", "")))
        elif name == "cellXfs":
            self._is_cell_formats = True
        elif name == "xf" and self._is_cell_formats:
            if _to_int(attributes.get("numFmtId", "")) in self._date_formats:
                self.date_styles.add(self._n_styles)
            self._n_styles += 1

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self._is_cell_formats = False


class _SheetText(XmlHandler):
    """Writes the rows of a sheet."""

    def __init__(self, writer: BlockWriter, strings: list[str], date_styles: set[int], epoch: dt.datetime) -> None:
        self._writer = writer
        self._strings = strings
        self._date_styles = date_styles
        self._epoch = epoch
        self._row: list[str] = []
        self._cell: dict[str, str] = {}
        self._parts: list[str] = []
        self._is_value = False
        self._is_phonetic = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            self._row = []
        elif name == "c":
            self._cell = attributes
            self._parts = []
        elif name == "rPh":
            self._is_phonetic = True
        self._is_value = name in {"v", "t"} and not self._is_phonetic

    def text(self, text: str) -> None:
        if self._is_value:
            self._parts.append(text)

    def end(self, name: str) -> None:
        self._is_value = False
        if name == "c":
            if value := self._format_cell("".join(self._parts)):
                gap = _column_of(self._cell.get("r", "")) - len(self._row)
                self._row.extend([""] * (gap if 0 < gap <= _MAX_GAP else 0))
                self._row.append(value)
            self._parts = []
        elif name == "rPh":
            self._is_phonetic = False
        elif name == "row":
            self._writer.add(format_row(self._row), LINE)
            if self._writer.is_full:
                raise StopParsing

    def _format_cell(self, value: str) -> str:
        kind = self._cell.get("t", "n")
        if kind == "s":
            index = _to_int(value)
            return self._strings[index] if 0 <= index < len(self._strings) else ""
        if kind == "b":
            return "TRUE" if value == "1" else "FALSE"
        if kind != "n" or not value:
            return value
        try:
            number = float(value)
        except ValueError:
            return value
        if _to_int(self._cell.get("s", "")) in self._date_styles and 0 <= number < _MAX_SERIAL:
            return _format_date(number, self._epoch)
        return f"{number:.15g}" if "." in value or "e" in value.lower() else value


def _format_date(number: float, epoch: dt.datetime) -> str:
    """Return a date, time or both in ISO 8601."""
    moment = epoch + dt.timedelta(seconds=round(number * 86_400))
    if number < 1:
        return moment.time().isoformat()
    return moment.date().isoformat() if number == int(number) else moment.isoformat(sep=" ")


def _column_of(reference: str) -> int:
    """Return the number of the column of a reference such as `C7`, from 0; -1 for an invalid reference."""
    if (match := _REFERENCE.match(reference)) is None:
        return -1
    column = 0
    for letter in match[1]:
        column = column * 26 + ord(letter) - ord("A") + 1
    return column - 1


def _to_int(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1  # noqa: PLR2004  (fits 32 bits)
