"""Chunks: consecutive parts of a document, which end where a heading, function, paragraph, line or sentence ends.

The chunks of a document do not overlap, and have all its text except whitespace between them. The time is linear in
the length of the text: headings and definitions are searched in the whole text, other borders near the end of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from edgechat.documents.code_structure import (
    CODE_EXTENSIONS,
    find_definitions,
    find_headings,
    find_underlined_headings,
)
from edgechat.documents.text import Chunk, ExtractedDocument, Section

TARGET_CHARS: Final = 1200
"""Usual length of a chunk in characters, about 300 tokens. Common embedding models read 256 to 512 tokens."""
MAX_CHARS: Final = 2000
"""Maximum length of a chunk in characters."""
MIN_CHARS: Final = 400
"""Length from which a chunk ends at a heading or definition; a shorter one continues, up to the target."""
_MAX_HEADING_CHARS: Final = 300
_SENTENCE_END: Final = re.compile(r"[.!?][\"')\]]*\s|[\u3002\uff01\uff1f]")  # with the marks of Chinese and Japanese
_TABLE_EXTENSIONS: Final = frozenset(("csv", "tsv", "xlsx", "xlsm"))
# Extensions of formats whose extraction returns Markdown.
_MARKDOWN_EXTENSIONS: Final = frozenset((
    "md", "markdown", "mdx", "qmd", "rmd", "htm", "html", "xhtml", "docx", "docm", "pptx", "pptm", "epub",
    "eml",
))  # fmt: skip


class _Range(NamedTuple):
    """Consecutive text of a section, before it is cut into chunks."""

    start: int
    end: int
    heading: str


def split(document: ExtractedDocument, name: str) -> list[Chunk]:
    """Split a document into chunks; the extension of `name` gives the language."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    chunks: list[Chunk] = []
    for section in document.sections:
        for chunk in _split_section(section, extension):
            if chunks and (joined := _join(chunks[-1], chunk)):
                chunks[-1] = joined
            else:
                chunks.append(chunk)
    return chunks


def _join(chunk: Chunk, following: Chunk) -> Chunk | None:
    """Return one chunk for the text of two pages, if the first has little text; None if they are to be separate."""
    if chunk.page is None or following.page is None or chunk.last_page == following.page:
        return None
    if len(chunk.text) >= MIN_CHARS or len(chunk.text) + len(following.text) > TARGET_CHARS:
        return None
    heading = chunk.heading
    if heading != following.heading:
        heading = f"{heading}; {following.heading}".strip("; ")
    return Chunk(
        text=f"{chunk.text}\n\n{following.text}", heading=heading[:_MAX_HEADING_CHARS], page=chunk.page,
        last_page=following.last_page,
    )  # fmt: skip


def _split_section(section: Section, extension: str) -> Iterator[Chunk]:
    """Yield the chunks of a section."""
    text = section.text
    position, line = 0, section.first_line
    for part in _cut_ranges(text, _pack(_find_ranges(text, extension))):
        if (trimmed := _trim(text, part.start, part.end)) is None:
            continue
        start, end = trimmed
        last_line = None
        if line is not None:
            line += text.count("\n", position, start)
            position = start
            last_line = line + text.count("\n", start, end)
        yield Chunk(
            text=text[start:end], heading=_join_headings(section.heading, part.heading), page=section.page,
            last_page=section.page, first_line=line, last_line=last_line,
        )  # fmt: skip


def _join_headings(section_heading: str, heading: str) -> str:
    if heading == section_heading or heading.startswith(f"{section_heading} > "):
        joined = heading
    else:
        joined = " > ".join(filter(None, (section_heading, heading)))
    return joined if len(joined) <= _MAX_HEADING_CHARS else f"{joined[: _MAX_HEADING_CHARS - 1]}\u2026"


def _find_ranges(text: str, extension: str) -> Iterator[_Range]:
    """Yield the parts of `text` between headings or definitions; together they are the whole text."""
    heading = ""
    starts: Iterable[tuple[int, str]] = ()
    if extension in _MARKDOWN_EXTENSIONS:
        starts = find_headings(text)
    elif extension in CODE_EXTENSIONS:
        starts = find_definitions(text, extension)
    elif extension == "rst":
        starts = find_underlined_headings(text)
    elif extension in _TABLE_EXTENSIONS:  # the first row has the names of the columns
        heading = " ".join(text[: text.find("\n") if "\n" in text else 0][:_MAX_HEADING_CHARS].split())
    position = 0
    for start, next_heading in starts:
        if start > position:
            yield _Range(position, start, heading)
            position = start
        heading = next_heading
    yield _Range(position, len(text), heading)


def _pack(ranges: Iterable[_Range]) -> Iterator[_Range]:
    """Join consecutive ranges that are shorter than `MIN_CHARS` with the next one, up to `TARGET_CHARS`."""
    current: _Range | None = None
    for part in ranges:
        if current is None:
            current = part
        elif current.end - current.start < MIN_CHARS and part.end - current.start <= TARGET_CHARS:
            current = _Range(current.start, part.end, current.heading or part.heading)
        else:
            yield current
            current = part
    if current is not None:
        yield current


def _cut_ranges(text: str, ranges: Iterable[_Range]) -> Iterator[_Range]:
    """Yield the ranges, those with more than `MAX_CHARS` in several parts."""
    for start, end, heading in ranges:
        position = start
        while end - position > MAX_CHARS:
            border = _find_border(text, position)
            yield _Range(position, border, heading)
            position = border
        yield _Range(position, end, heading)


def _find_border(text: str, start: int) -> int:
    """Return the best end of a chunk that begins at `start` and has at most `MAX_CHARS`.

    That is the last end of a paragraph up to the target, otherwise the first after it; then the end of a line, a
    sentence, or a word.
    """
    minimum, target, maximum = start + MIN_CHARS, start + TARGET_CHARS, start + MAX_CHARS
    for separator in ("\n\n", "\n"):
        if (position := text.rfind(separator, minimum, target)) >= 0:
            return position + len(separator)
        if (position := text.find(separator, target, maximum)) >= 0:
            return min(position + len(separator), maximum)
    sentence_end = 0
    for match in _SENTENCE_END.finditer(text, minimum, maximum):
        if sentence_end and match.end() > target:
            break
        sentence_end = match.end()
    space = text.rfind(" ", minimum, target) + 1 or text.find(" ", target, maximum) + 1
    return sentence_end or space or maximum


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the range without blank lines at its start and whitespace at its end; None if it has only whitespace.

    The indentation of the first line is kept.
    """
    part = text[start:end]
    trimmed_end = start + len(part.rstrip())
    if trimmed_end == start:
        return None
    first = start + len(part) - len(part.lstrip())
    line_start = text.rfind("\n", start, first) + 1
    return (line_start or start), trimmed_end
