"""Citations in the Markdown of a reply: one private character stands for each, until its text is laid out.

So no rule of Markdown can split a citation, and the row that shows it knows which citation it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.style import Style
from rich.text import Text
from rich.theme import Theme

from edgechat.tui.render.palette import CITATION

if TYPE_CHECKING:
    from edgechat.documents.citations import Citation
    from edgechat.tui.render.palette import Palette

# Another private range than that of `edgechat.markdown`.
_PLACEHOLDERS: Final = range(0xF0000, 0xFFFFD)
_PLACEHOLDER: Final = re.compile("([\U000f0000-\U000ffffd])")


class CitationMark(NamedTuple):
    """Citation that a placeholder stands for."""

    number: int
    """Index among the citations of the reply."""
    source: str
    """Text of the citation in the reply."""
    is_doubtful: bool
    """True if the user should check the sentence."""

    @property
    def tag(self) -> str:
        """Tag of Markdown tokens, and name of a style."""
        return f"citation{self.number}"

    def format_label(self, doubt_glyph: str) -> str:
        """Return the text on the screen, without spaces, so that it is not wrapped."""
        return self.source.replace(" ", "") + (doubt_glyph if self.is_doubtful else "")

    def make_style(self, palette: Palette) -> Style:
        style = palette.doubt if self.is_doubtful else palette.citation
        return style + Style(meta={CITATION: self.number})


CitationMarks = Mapping[int, CitationMark]
"""Citations by the code points of their placeholders."""


def insert_placeholders(text: str, citations: Sequence[Citation]) -> tuple[str, CitationMarks]:
    """Replace the citations in `text` with placeholders that the text itself does not contain."""
    used = set(map(ord, _PLACEHOLDER.findall(text)))
    placeholders = (number for number in _PLACEHOLDERS if number not in used)
    marks: dict[int, CitationMark] = {}
    parts: list[str] = []
    position = 0
    for index, (citation, placeholder) in enumerate(zip(citations, placeholders, strict=False)):
        source = text[citation.start : citation.end]
        marks[placeholder] = CitationMark(index, source, bool(citation.problem))
        parts += [text[position : citation.start], chr(placeholder)]
        position = citation.end
    return "".join([*parts, text[position:]]), marks


def restore_citations(text: str, marks: CitationMarks) -> str:
    """Replace placeholders with the citations as they are in the reply."""
    if not marks or text.isascii():
        return text
    return text.translate({placeholder: mark.source for placeholder, mark in marks.items()})


def select_marks(text: str, marks: CitationMarks) -> CitationMarks:
    """Return the marks whose placeholders are in `text`."""
    if not marks or text.isascii():
        return {}
    return {number: marks[number] for number in map(ord, _PLACEHOLDER.findall(text)) if number in marks}


def split_at_placeholders(text: str, marks: CitationMarks) -> Iterator[str | CitationMark]:
    """Yield the parts of `text` between placeholders, and the marks that these stand for."""
    if not marks or text.isascii():
        yield text
        return
    for part in _PLACEHOLDER.split(text):
        mark = marks.get(ord(part)) if len(part) == 1 else None
        if mark is not None:
            yield mark
        elif part:
            yield part


def format_text(text: str, marks: CitationMarks, palette: Palette) -> Text:
    """Return plain text with the citations as links."""
    result = Text()
    for part in split_at_placeholders(text, marks):
        if isinstance(part, CitationMark):
            result.append(part.format_label(palette.glyphs.doubt), part.make_style(palette))
        else:
            result.append(part)
    return result


def use_styles(marks: CitationMarks, palette: Palette) -> AbstractContextManager[object]:
    """Return a context in which the palette's console knows the styles of these citations."""
    styles = {f"markdown.{mark.tag}": mark.make_style(palette) for mark in marks.values()}
    return palette.console.use_theme(Theme(styles, inherit=False))
