"""Text of HTML: headings, paragraphs, lists, tables and code, in Markdown; without scripts, styles and navigation."""

from __future__ import annotations

import html.parser
import re
from io import BufferedReader
from typing import Final, NamedTuple

from edgechat.documents.extraction.blocks import LINE, PARAGRAPH, BlockWriter, format_row
from edgechat.documents.extraction.builder import DocumentBuilder
from edgechat.documents.extraction.plain_text import decode, normalize_newlines
from edgechat.file_formats import find_byte_order_mark

_DECLARED_ENCODING: Final = re.compile(rb"(?i)(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})")
_HEAD_BYTES: Final = 4096
# Elements without text for readers. The parser itself regards the contents of scripts and styles as one text.
_HIDDEN: Final = frozenset(("script", "style", "template", "noscript", "svg", "iframe", "object", "select", "nav"))
_VOID: Final = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
))  # fmt: skip
_PARAGRAPHS: Final = frozenset((
    "address", "article", "aside", "blockquote", "body", "center", "details", "dialog", "div", "dl", "fieldset",
    "figcaption", "figure", "footer", "form", "header", "hr", "main", "ol", "p", "section", "summary", "table", "ul",
))  # fmt: skip
_LINES: Final = frozenset(("dd", "dt", "li", "option", "tr", "caption"))
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_SPACES: Final = re.compile(r"[ \t\n\r\f]+")
_MAX_INDENT: Final = 6


def extract(file: BufferedReader, builder: DocumentBuilder) -> None:
    """Add the text of the page as one section in Markdown."""
    max_bytes = builder.limits.max_text_bytes
    data = file.read(max_bytes + 1) or b""
    text, builder.title = convert_html(decode_html(data[:max_bytes], builder), builder)
    builder.add(text)
    if len(data) > max_bytes:
        builder.cut_off()


def decode_html(data: bytes, builder: DocumentBuilder) -> str:
    """Decode HTML by its byte order mark, the encoding that it declares, or its bytes."""
    declared = _DECLARED_ENCODING.search(data[:_HEAD_BYTES])
    if declared and not find_byte_order_mark(data)[1] and declared[1].lower() not in {b"utf-8", b"utf8", b"utf-16"}:
        try:
            text = data.decode(declared[1].decode("ascii"))
            return normalize_newlines(text) if isinstance(text, str) else decode(data, builder)
        except (LookupError, UnicodeError):
            pass  # a wrong declaration
    return decode(data, builder)


class HtmlText(NamedTuple):
    """Text of a page in Markdown, and its title."""

    text: str
    title: str


def convert_html(text: str, builder: DocumentBuilder) -> HtmlText:
    """Return the text of a page, up to about the limit of the text.

    A notice says if an element without text for readers, such as a script, has no end and hides the rest of the page.
    """
    max_chars = builder.limits.max_text_bytes
    converter = _Converter(max_chars, _HIDDEN)
    converter.convert(text)
    if converter.hidden_element or not converter.writer.text:  # such as navigation without an end, or around all text
        converter = _Converter(max_chars, _HIDDEN - {"nav", "noscript", "object", "svg"})
        converter.convert(text)
    if converter.hidden_element:
        builder.add_notice(f"The text after an element <{converter.hidden_element}> without an end was not read.")
    return HtmlText(converter.writer.text, converter.title)


class _StopConversion(Exception):  # noqa: N818  (not an error)
    """Raised when the text reaches its maximum length."""


class _Converter(html.parser.HTMLParser):
    """Writes the text of HTML as blocks."""

    def __init__(self, max_chars: int, hidden: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.writer = BlockWriter(max_chars)
        self.title = ""
        self._hidden_elements = hidden
        self._hidden: list[str] = []
        self._inline: list[str] = []
        self._prefix = ""
        self._lists: list[int | None] = []
        """Number of the next item of each open list; None for a list without numbers."""
        self._row: list[str] | None = None
        self._is_cell = False
        self._pre_depth = 0
        self._is_title = False

    @property
    def hidden_element(self) -> str:
        """Name of an element with hidden content that has not ended; "" if there is none."""
        return self._hidden[0] if self._hidden else ""

    def convert(self, text: str) -> None:
        """Parse a complete HTML page, and add its text to `writer`, up to the limit."""
        try:
            self.feed(text)
            self.close()
            self._flush(PARAGRAPH)
        except _StopConversion:
            pass

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            if tag == self._hidden[0]:
                self._hidden.append(tag)
        elif tag in self._hidden_elements:
            self._hidden.append(tag)
        elif tag in _PARAGRAPHS or tag in _LINES or tag in _HEADINGS or tag == "pre":
            self._start_block(tag)
        elif tag in {"td", "th"}:
            self._end_cell()
            self._is_cell = True
        elif tag == "br":
            self._inline.append("\n" if self._pre_depth else "\0")  # normalised text contains no \0
        elif tag == "title":
            self._is_title = not self.title
        elif tag == "img" and (alternative := dict(attrs).get("alt")):
            self._inline.append(f" {alternative} ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # Browsers ignore the slash of `<div/>`, but XHTML does not.
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            if tag == self._hidden[0]:
                self._hidden.pop()
        elif tag in _HEADINGS:
            self._flush(PARAGRAPH)
        elif tag in {"td", "th"}:
            self._end_cell()
        elif tag == "tr":
            self._end_row()
        elif tag == "pre":
            self._end_pre()
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._end_block(tag)
        elif tag == "title":
            self._is_title = False

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self.title += data
        elif not self._hidden:
            self._inline.append(data.replace("\0", ""))

    def _start_block(self, tag: str) -> None:
        if self._is_cell and tag != "tr":
            self._inline.append(" ")
            return
        if tag == "tr":
            self._end_row()
            self._row = []
        self._flush(LINE if tag in _LINES or self._lists else PARAGRAPH)
        if tag in {"ul", "ol"}:
            self._lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self._prefix = self._next_marker()
        elif tag in _HEADINGS:
            self._prefix = f"{'#' * _HEADINGS[tag]} "
        elif tag == "pre":
            self._pre_depth += 1

    def _next_marker(self) -> str:
        indent = "  " * min(max(len(self._lists) - 1, 0), _MAX_INDENT)
        if not self._lists or (number := self._lists[-1]) is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number}. "

    def _end_block(self, tag: str) -> None:
        if self._is_cell and tag != "table":
            self._inline.append(" ")
            return
        if tag == "table":
            self._end_row()
        self._flush(LINE if tag in _LINES or (tag in {"ul", "ol"} and len(self._lists) > 1) else PARAGRAPH)
        if tag in {"ul", "ol"}:
            if self._lists:
                self._lists.pop()
            if not self._lists:
                self.writer.end_paragraph()
        elif tag == "table":
            self.writer.end_paragraph()

    def _end_pre(self) -> None:
        if not self._pre_depth:
            return
        self._pre_depth -= 1
        text = "".join(self._inline).replace("\0", "\n").strip("\n")
        if not self._pre_depth and not self._is_cell:
            self._inline = []
            fence = "```" if "```" not in text else "~~~~"
            self._write(f"{fence}\n{text}\n{fence}" if text.strip() else "", PARAGRAPH)

    def _end_cell(self) -> None:
        if self._is_cell:
            if self._row is None:
                self._row = []
            self._row.append("".join(self._inline).replace("\0", " "))
            self._inline = []
            self._is_cell = False

    def _end_row(self) -> None:
        self._end_cell()
        if self._row is not None:
            self._write(format_row(self._row), LINE)
            self._row = None

    def _flush(self, gap: int) -> None:
        """Write the inline text as a block, after the prefix of a heading or item."""
        text = "".join(self._inline)
        self._inline = []
        if not self._pre_depth:
            lines = (_SPACES.sub(" ", line).strip() for line in text.split("\0"))
            text = "\n".join(filter(None, lines))
        if text.strip():
            prefix, self._prefix = self._prefix, ""
            if prefix.startswith("#"):
                text = text.replace("\n", " ")
            elif prefix:  # the item of a list
                gap = LINE
            self._write(prefix + text, gap)

    def _write(self, block: str, gap: int) -> None:
        self.writer.add(block, gap)
        if self.writer.is_full:
            raise _StopConversion
