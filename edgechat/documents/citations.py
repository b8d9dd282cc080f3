"""Citations in replies: find `[3]`, `[1, 4]` and `[2-4]`, and compare the citing sentences with the cited passages.

The comparison is of words and numbers only. It finds numbers and names that the passages do not contain, but not a
sentence that uses the words of a passage to say something else.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from edgechat.documents.claim_terms import (
    ClaimTerm,
    capitalizes_nouns,
    find_claim_terms,
    list_passage_terms,
    normalize,
)
from edgechat.documents.passages import Passage

MAX_CITATIONS: Final = 2000
"""Maximum number of citations in one reply; later ones remain plain text."""
# Maximum number of passages in one pair of brackets. Longer ranges, such as [1-500], are not citations.
_MAX_NUMBERS: Final = 40
_CITATION: Final = re.compile(r"(?<!\\)\[ ?(\d{1,6}(?: ?[,;\u2013-] ?\d{1,6}){0,39}) ?\](?!\()")
_RANGE: Final = re.compile(r"(\d+)(?: ?[\u2013-] ?(\d+))?")
_DEFINITION: Final = re.compile(r"^ {0,3}\[(\d{1,6})\]:[ \t]*(\S*)", re.MULTILINE)
_FENCE: Final = re.compile(r" *(?P<marks>`{3,}|~{3,}) *(?P<info>.*)")
_BACKTICKS: Final = re.compile("`+")
_ITEM: Final = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]|#|\|)")
_ITEM_MARK: Final = re.compile(r"[ \t>]*(?:#{1,6}[ \t]+|(?:[-*+]|\d{1,9}[.)])[ \t]+)?")
_HEADING: Final = re.compile(r"[ \t>]*#{1,6}[ \t]")
# End of a sentence, with the quotation marks and brackets that close in it.
_SENTENCE_END: Final = re.compile(
    r"(?:[.!?\u2026]{1,8}[\"'\u201d\u2019\u00bb)*_]{0,8}(?=\s|\[ ?\d|\Z))|[\u3002\uff01\uff1f]+"
)
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|ca|no|nos|fig|figs|eq|sec|ch|pp?|vol|mr|mrs|ms|dr|prof|st|jr|sr|inc|ltd|co|al"
    r"|bzw|z\.\s?b|usw|nr|u\.s)|\b[^\W\d_])\.\Z",
    re.IGNORECASE,
)
_MAX_ABBREVIATION_CHARS: Final = 12
_CONTINUES: Final = re.compile(r"\s*[a-z]")
_BETWEEN_CITATIONS: Final = re.compile(r"[\s,;&]*(?:and|und)?\s*\Z")
_MAX_BETWEEN_CHARS: Final = 12
_MAX_INDENT: Final = 3


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers in brackets in a reply that refer to passages."""

    start: int
    """Index of the opening bracket in the text of the reply."""
    end: int
    """Index after the closing bracket."""
    numbers: tuple[int, ...]
    passages: tuple[Passage, ...]
    """Passages with these numbers; fewer than `numbers` if some passages do not exist."""
    missing_terms: tuple[str, ...] = ()
    """Numbers and names of the citing sentence that no passage cited in it contains, as they are in the sentence."""
    found_terms: tuple[str, ...] = ()
    """The other numbers and names of the citing sentence."""

    @property
    def unknown_numbers(self) -> tuple[int, ...]:
        """Numbers without a passage."""
        existing = {passage.number for passage in self.passages}
        return tuple(number for number in self.numbers if number not in existing)

    @property
    def problem(self) -> str:
        """What the user should check, such as "not in the passage: 42 %"; "" if nothing is suspicious."""
        parts = []
        if unknown := self.unknown_numbers:
            parts.append(f"no such passage: {', '.join(map(str, unknown))}")
        if self.missing_terms:
            noun = "passage" if len(self.passages) == 1 else "passages"
            parts.append(f"not in the {noun}: {', '.join(self.missing_terms)}")
        return "; ".join(parts)


class CitationFinder:
    """Finds citations of a set of passages, whose words are collected once."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._passages = {passage.number: passage for passage in passages}
        self._terms: dict[int, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._passages)

    def find(self, text: str) -> list[Citation]:
        """Return the citations in a reply, in order. Takes linear time in the length of `text`."""
        if not self._passages or "[" not in text:
            return []
        citations: list[Citation] = []
        defined = {int(m[1]) for m in _DEFINITION.finditer(text) if "://" in m[2] or m[2].startswith(("#", "mailto:"))}
        checks_names = not capitalizes_nouns(text)
        for paragraph in _split_paragraphs(text):
            marks = _find_marks(text, paragraph, defined)
            for sentence_marks, start, end in _group_by_sentence(text, paragraph, marks):
                names = checks_names and not paragraph.is_heading
                citations += self._check_sentence(text, start, end, sentence_marks, checks_names=names)
                if len(citations) >= MAX_CITATIONS:
                    return citations[:MAX_CITATIONS]
        return citations

    def _check_sentence(
        self, text: str, start: int, end: int, marks: Sequence[_Mark], *, checks_names: bool
    ) -> Iterator[Citation]:
        """Yield the citations of one sentence. A term that is missing belongs to the citation that follows it."""
        cited = {n: self._passages[n] for mark in marks for n in mark.numbers if n in self._passages}
        missing: dict[int, dict[str, None]] = {}
        found: dict[str, None] = {}
        if cited:
            claim, mark_starts = _blank_marks(text, start, end, marks)
            group_ends = [i for i, mark in enumerate(marks) if i + 1 == len(marks) or not mark.joins_next]
            starts = [mark_starts[i] for i in group_ends]
            for term in find_claim_terms(claim, checks_names=checks_names):
                if self._has_term(term, cited):
                    found[term.text] = None
                else:
                    index = group_ends[min(bisect_left(starts, term.start), len(starts) - 1)]
                    missing.setdefault(index, {})[term.text] = None
        for i, mark in enumerate(marks):
            yield Citation(
                start=mark.start,
                end=mark.end,
                numbers=mark.numbers,
                passages=tuple(cited[n] for n in mark.numbers if n in cited),
                missing_terms=tuple(missing.get(i, ())),
                found_terms=tuple(found),
            )

    def _has_term(self, term: ClaimTerm, numbers: Iterable[int]) -> bool:
        return any(not term.keys.isdisjoint(self._read_terms(number)) for number in numbers)

    def _read_terms(self, number: int) -> frozenset[str]:
        terms = self._terms.get(number)
        if terms is None:
            passage = self._passages[number]
            parts = (passage.place, passage.heading, passage.text)
            terms = self._terms[number] = list_passage_terms("\n".join(parts))
        return terms


def find_citations(text: str, passages: Iterable[Passage]) -> list[Citation]:
    """Return the citations of `passages` in the text of a reply, in order."""
    return CitationFinder(passages).find(text)


class _Paragraph(NamedTuple):
    """Lines of a reply that form a paragraph, a list item, a heading or a table row."""

    start: int
    end: int
    is_heading: bool


class _Mark(NamedTuple):
    """Numbers in brackets."""

    start: int
    end: int
    numbers: tuple[int, ...]
    joins_next: bool = False
    """True if there are no words between this mark and the next one."""


def _split_paragraphs(text: str) -> Iterator[_Paragraph]:
    """Yield the paragraphs of Markdown, without code blocks."""
    start: int | None = None
    is_heading = False
    fence = ""
    position = 0
    while position < len(text):
        newline = text.find("\n", position)
        end = len(text) if newline < 0 else newline
        line = text[position:end]
        match = _FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
        if fence:
            stripped = line.strip()
            if len(stripped) >= len(fence) and not stripped.strip(fence[0]):
                fence = ""
        elif match is not None and not (match["marks"][0] == "`" and "`" in match["info"]):
            fence = match["marks"]
            if start is not None:
                yield _Paragraph(start, position, is_heading)
            start = None
        elif start is not None and (is_heading or not line.strip() or _ITEM.match(line)):
            yield _Paragraph(start, position, is_heading)
            start = None
        if start is None and not fence and match is None and line.strip():
            start, is_heading = position, _HEADING.match(line) is not None
        position = end + 1
    if start is not None:
        yield _Paragraph(start, len(text), is_heading)


def _find_marks(text: str, paragraph: _Paragraph, defined: set[int]) -> list[_Mark]:
    """Return the numbers in brackets in a paragraph outside of code spans, links and definitions of links."""
    marks: list[_Mark] = []
    code = _find_code_spans(text, paragraph)
    code_starts = [start for start, _ in code]
    for match in _CITATION.finditer(text, paragraph.start, paragraph.end):
        start, end = match.span()
        index = bisect_right(code_starts, start) - 1
        if index >= 0 and start < code[index][1]:
            continue
        numbers = _parse_numbers(match[1])
        line_start = text[max(0, start - _MAX_INDENT - 1) : start].rstrip(" ")
        is_definition = text[end : end + 1] == ":" and (line_start.endswith("\n") or not (start and line_start))
        is_reference = start > 0 and text[start - 1] == "]" and not defined.isdisjoint(numbers)
        if is_definition or is_reference or not numbers:
            continue
        if marks:
            between = text[marks[-1].end : start] if start - marks[-1].end <= _MAX_BETWEEN_CHARS else "x"
            marks[-1] = marks[-1]._replace(joins_next=_BETWEEN_CITATIONS.match(between) is not None)
        marks.append(_Mark(start, end, numbers))
        if len(marks) >= MAX_CITATIONS:
            break
    return marks


def _find_code_spans(text: str, paragraph: _Paragraph) -> list[tuple[int, int]]:
    """Return the code spans of a paragraph: from a run of backticks to the next run of the same length."""
    runs = [match.span() for match in _BACKTICKS.finditer(text, paragraph.start, paragraph.end)]
    next_of_length: dict[int, int] = {}
    closing: list[int | None] = [None] * len(runs)
    for index in range(len(runs) - 1, -1, -1):
        length = runs[index][1] - runs[index][0]
        closing[index] = next_of_length.get(length)
        next_of_length[length] = index
    spans = []
    index = 0
    while index < len(runs):
        end = closing[index]
        if end is not None:
            spans.append((runs[index][0], runs[end][1]))
            index = end
        index += 1
    return spans


def _parse_numbers(content: str) -> tuple[int, ...]:
    """Return the numbers of a citation such as "1, 4-6", each once; an empty tuple if it is not a citation."""
    numbers: dict[int, None] = {}
    for match in _RANGE.finditer(content):
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= last or last - first >= _MAX_NUMBERS:
            return ()
        numbers.update(dict.fromkeys(range(first, last + 1)))
        if len(numbers) > _MAX_NUMBERS:
            return ()
    return tuple(numbers)


def _group_by_sentence(
    text: str, paragraph: _Paragraph, marks: Sequence[_Mark]
) -> Iterator[tuple[list[_Mark], int, int]]:
    """Yield the marks of each sentence with the start and the end of the sentence."""
    index = 0
    for start, end in _split_sentences(text, paragraph, marks) if marks else ():
        first = index
        while index < len(marks) and marks[index].start < end:
            index += 1
        if index > first:
            yield list(marks[first:index]), start, end


def _split_sentences(text: str, paragraph: _Paragraph, marks: Sequence[_Mark]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the sentences. Citations after the end of a sentence belong to it: "It is red. [1]"."""
    mark = _ITEM_MARK.match(text, paragraph.start, paragraph.end)
    start = mark.end() if mark is not None else paragraph.start
    index = 0
    for match in _SENTENCE_END.finditer(text, start, paragraph.end):
        end = match.end()
        if end <= start or _is_abbreviation(text, match.start()):
            continue
        while index < len(marks) and marks[index].start < end:
            index += 1
        first = index
        while index < len(marks) and _is_close(text, end, marks[index].start):
            end = marks[index].end
            index += 1
        if index > first and _CONTINUES.match(text, end, paragraph.end):  # "It is red. [1] says more."
            end, index = match.end(), first
        yield start, end
        start = end
    if start < paragraph.end:
        yield start, paragraph.end


def _is_close(text: str, end: int, start: int) -> bool:
    """Return whether there are at most a few spaces between two positions."""
    return start - end <= _MAX_INDENT and not text[end:start].strip()


def _is_abbreviation(text: str, dot: int) -> bool:
    """Return whether the dot at index `dot` belongs to an abbreviation or an initial."""
    if text[dot] != "." or text[dot + 1 : dot + 2] == ".":
        return False
    return _ABBREVIATION.search(text[max(0, dot - _MAX_ABBREVIATION_CHARS) : dot + 1]) is not None


def _blank_marks(text: str, start: int, end: int, marks: Sequence[_Mark]) -> tuple[str, list[int]]:
    """Return the normalized text[start:end] with spaces in place of the marks, and the indices of the marks in it."""
    parts: list[str] = []
    starts = []
    position, n_chars = start, 0
    for mark in marks:
        parts += [normalize(text[position : mark.start]), " " * (mark.end - mark.start)]
        n_chars += len(parts[-2])
        starts.append(n_chars)
        n_chars += len(parts[-1])
        position = mark.end
    return "".join([*parts, normalize(text[position:end])]), starts
