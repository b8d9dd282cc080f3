"""Adapt the tokens of parsed Markdown to Rich: formulas as Unicode, tasks, footnotes, images. No word is lost."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from markdown_it.token import Token

from edgechat.terminal import escape_controls
from edgechat.tui.render.citation_marks import CitationMark, CitationMarks, restore_citations, split_at_placeholders
from edgechat.tui.render.formulas import convert_formula

if TYPE_CHECKING:
    from edgechat.markdown import Document

MUTED_TAG: Final = "muted"
"""Tag of tokens for text in a quiet colour."""
_TASK: Final = re.compile(r"\[([ xX])\][ \t]+")
_TASK_LINE: Final = re.compile(r"^([ \t>]*(?:[-*+]|\d{1,9}[.)])[ \t]+)\[[xX]\](?=[ \t])", re.MULTILINE)
_BOXES: Final = {" ": "☐", "x": "☑", "X": "☑"}
_FOOTNOTE: Final = re.compile(r"\[\^(?:(?P<number>\d{1,4})|(?P<name>[^\]\[\s^]{1,40}))\](?P<colon>:[ \t]*)?")
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class TokenAdapter:
    """Converts the tokens of one document. In ASCII mode, formulas, tasks and footnotes are left unchanged."""

    def __init__(
        self, document: Document, *, is_ascii: bool, citations: CitationMarks = MappingProxyType({}),
        doubt_glyph: str = "",
    ) -> None:  # fmt: skip
        """`doubt_glyph` is shown after citations that the user should check."""
        self._document = document
        self._citations = citations
        self._doubt_glyph = doubt_glyph
        self._is_ascii = is_ascii
        formulas: Mapping[int, str] = document.formulas.by_placeholder
        if citations:
            formulas = {key: restore_citations(text, citations) for key, text in formulas.items()}
        self._shown_formulas = formulas if is_ascii else {key: convert_formula(text) for key, text in formulas.items()}

    @property
    def shown_text(self) -> str:
        """The text that the screen must show: the source with decoded entities and formulas, without `[x]` of tasks."""
        text = html.unescape(self._document.formulas.text)
        if not self._is_ascii and "[" in text:
            text = _TASK_LINE.sub(r"\1", text)
        return text.translate(self._shown_formulas) if self._shown_formulas else text

    def _show(self, text: str) -> str:
        """Replace placeholders in a text with the formulas to show, and escape control characters."""
        # Control characters of the source are escaped already; entities such as `&rlm;` add new ones.
        if self._shown_formulas and not text.isascii():
            text = text.translate(self._shown_formulas)
        return escape_controls(text)

    def _restore(self, text: str) -> str:
        """Replace placeholders in code or a link target with the formulas' source, and escape control characters."""
        return escape_controls(restore_citations(self._document.formulas.restore(text), self._citations))

    def adapt(self) -> list[Token]:
        """Adapt the tokens of the document in place, and return them."""
        item: Token | None = None
        previous_type = ""
        for token in self._document.tokens:
            if token.type == "list_item_open":
                item = token
            elif token.type == "inline":
                children = token.children or []
                if not self._is_ascii:
                    self._mark_task(item, children)
                    item = None
                is_image_block = previous_type == "paragraph_open" and _has_only_images(children)
                adapt = self._adapt_image_block if is_image_block else self._adapt_children
                token.children = list(adapt(children))
            elif token.type != "paragraph_open":
                item = None
            token.content = self._restore(token.content)
            previous_type = token.type
        return self._document.tokens

    def _mark_task(self, item: Token | None, children: Sequence[Token]) -> None:
        """Replace `[x]` at the start of a list item with a box; in an unordered list, the box replaces the bullet."""
        if item is None or not children or children[0].type != "text":
            return
        task = _TASK.match(children[0].content)
        if task is not None:
            box, content = _BOXES[task[1]], children[0].content[task.end() :]
            if item.markup in ("-", "*", "+"):
                item.meta["bullet"] = box
            else:
                content = f"{box} {content}"
            children[0].content = content

    def _adapt_children(self, children: Iterable[Token]) -> Iterator[Token]:
        """Yield inline tokens for Rich: line ends become line breaks, images become links, autolinks become text."""
        starts_line = True
        for child in children:
            if child.type == "text":
                child.content = self._show(self._format_footnotes(child.content, starts_line=starts_line))
                if self._citations:
                    yield from self._split_at_citations(child.content)
                    starts_line = False
                    continue
            else:
                child.content = self._restore(child.content)
            starts_line = child.type in ("softbreak", "hardbreak")
            if child.type == "softbreak":
                child.type = "hardbreak"
            if child.type == "image":
                yield Token("text", "", 0, content="[image] ")
                yield Token("link_open", "a", 1, attrs={"href": self._format_target(child, "src")})
                yield from self._adapt_children(child.children or ())
                yield Token("link_close", "a", -1)
            elif child.type == "link_open":
                if child.markup != "autolink":
                    yield Token("link_open", "a", 1, attrs={"href": self._format_target(child, "href")})
            elif child.type != "link_close" or child.markup != "autolink":
                yield child

    def _split_at_citations(self, text: str) -> Iterator[Token]:
        for part in split_at_placeholders(text, self._citations):
            if isinstance(part, CitationMark):
                yield Token("citation_open", part.tag, 1)
                yield Token("text", "", 0, content=part.format_label(self._doubt_glyph))
                yield Token("citation_close", part.tag, -1)
            else:
                yield Token("text", "", 0, content=part)

    def _adapt_image_block(self, children: Iterable[Token]) -> Iterator[Token]:
        """Yield two lines for each image of a paragraph that contains only images: its description and its address."""
        for number, image in enumerate(child for child in children if child.type == "image"):
            if number:
                yield Token("hardbreak", "br", 0)
            yield Token("strong_open", "strong", 1)
            yield Token("text", "", 0, content="[image] " if self._is_ascii else "▣ Image: ")
            yield from self._adapt_children(image.children or ())
            yield Token("strong_close", "strong", -1)
            yield Token("hardbreak", "br", 0)
            yield Token("muted_open", MUTED_TAG, 1)
            yield Token("text", "", 0, content=f"  {self._format_target(image, 'src')}")
            yield Token("muted_close", MUTED_TAG, -1)

    def _format_footnotes(self, text: str, *, starts_line: bool) -> str:
        """Replace the reference `[^1]`, and the label `[^1]:` at the start of a note, with a superscript number."""
        if self._is_ascii or "[^" not in text:
            return text

        def format_mark(mark: re.Match[str]) -> str:
            is_note = starts_line and not mark.start() and mark["colon"] is not None
            label = mark["number"].translate(_SUPERSCRIPTS) if mark["number"] else f"[{mark['name']}]"
            return f"{label} " if is_note else label + (mark["colon"] or "")

        return _FOOTNOTE.sub(format_mark, text)

    def _format_target(self, token: Token, attribute: str) -> str:
        """Return the URL of a link or image, with its title if it has one."""
        title = token.attrs.get("title")
        address = str(token.attrs.get(attribute, ""))
        return self._restore(f'{address} "{title}"' if title else address)


def _has_only_images(children: Sequence[Token]) -> bool:
    return bool(children) and all(child.type in ("image", "softbreak") for child in children)
