"""Passages to show in the panel: those that a reply cites, or all that belong to a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgechat.documents.citations import Citation
    from edgechat.documents.passages import Passage, PassageSet


class PassageItem(NamedTuple):
    """One passage in the panel."""

    number: int
    passage: Passage | None
    """None if the reply cites a number that no passage has."""
    problem: str = ""
    """What the user should check in the citing sentence; "" if nothing is suspicious."""
    terms: tuple[str, ...] = ()
    """Numbers and names of the citing sentence to highlight in the text."""
    citation_index: int | None = None
    """Index of the citation in the reply; None for a passage of a user message."""


def list_cited(citations: Sequence[Citation]) -> list[PassageItem]:
    """Return the passages of all citations of a reply, in the order of the text."""
    items = []
    for index, citation in enumerate(citations):
        by_number = {passage.number: passage for passage in citation.passages}
        items += [
            PassageItem(n, by_number.get(n), citation.problem, citation.found_terms, index) for n in citation.numbers
        ]
    return items


def list_all(passages: PassageSet) -> list[PassageItem]:
    """Return all passages of a user message, in the order of their numbers."""
    return [PassageItem(p.number, p) for p in sorted(passages.passages, key=lambda p: p.number)]


def find_citation(items: Iterable[PassageItem], citation_index: int) -> int:
    """Return the index of the first passage of a citation; 0 if there is none."""
    return next((i for i, item in enumerate(items) if item.citation_index == citation_index), 0)
