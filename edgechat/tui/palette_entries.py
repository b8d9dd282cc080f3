"""Entries of the command palette, and the search for them by words in any order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

EntryKind = Literal["command", "conversation", "model", "persona", "theme", "setting", "message"]

MAX_MATCHES_PER_KIND: Final = 20
"""Maximum number of entries of one kind that a query finds, so that one kind does not hide the others."""
_MAX_SUGGESTED: Final = {"conversation": 10}
"""Maximum number of entries of a kind that are listed without a query."""
_WORD: Final = re.compile(r"[^\W_]+")
# Rank of entries that contain the words of the query only inside other words.
_INSIDE: Final = 3
# Minimum length of a query word that also matches inside words; shorter query words match only beginnings of words.
_MIN_INNER_CHARS: Final = 3


class PaletteEntry(NamedTuple):
    """One row of the command palette."""

    kind: EntryKind
    id: str
    title: str
    description: str = ""
    key: str = ""
    """Label of the key with the same effect; "" if there is none."""
    more_words: str = ""
    """Words that also find the entry, such as aliases."""

    @property
    def choice(self) -> str:
        """Identifier of the entry in the list of recent choices."""
        return f"{self.kind}:{self.id}"


class PaletteChoice(NamedTuple):
    """Chosen entry, and the query that found it."""

    entry: PaletteEntry
    query: str


class IndexedEntry(NamedTuple):
    """Entry with its words, as `split_words` returns them."""

    entry: PaletteEntry
    title: str
    words: str
    """Words of the title, the description, the kind and `more_words`."""
    choice: str


def index_entries(entries: Iterable[PaletteEntry]) -> list[IndexedEntry]:
    """Split the texts of entries into words. Takes 15 microseconds per entry."""
    indexed_entries = []
    for entry in entries:
        title = split_words(entry.title)
        others = split_words(f"{entry.description} {entry.more_words} {entry.kind}")
        indexed_entries.append(IndexedEntry(entry, title, title + others, entry.choice))
    return indexed_entries


class PaletteIndex:
    """Searchable list of palette entries, in the order in which equal matches are shown."""

    def __init__(self) -> None:
        self._entries: list[IndexedEntry] = []

    def add(self, entries: Iterable[IndexedEntry]) -> None:
        """Append entries to the searchable list."""
        self._entries += entries

    def find(self, query: str, recent: Sequence[str]) -> list[PaletteEntry]:
        """Return the entries that contain all words of the query, best matches first.

        Recent choices come first, then matches in titles. Entries with the words only inside other words come last.
        An empty query finds entries of all kinds, but only a few conversations.
        """
        query_words = _Query(query)
        choice_ranks = {choice: rank for rank, choice in enumerate(recent)}
        matches = [
            (rank == _INSIDE, choice_ranks.get(choice, len(choice_ranks)), rank, order, entry)
            for order, (entry, title, words, choice) in enumerate(self._entries)
            if (rank := query_words.rank(title, words)) is not None
        ]
        limits = dict.fromkeys(("conversation", "setting", "theme", "model"), MAX_MATCHES_PER_KIND)
        limits = limits if query_words.terms else _MAX_SUGGESTED
        counts: dict[str, int] = {}
        results = []
        for *_, entry in sorted(matches):  # the order is unique, so entries are not compared
            counts[entry.kind] = counts.get(entry.kind, 0) + 1
            if counts[entry.kind] <= limits.get(entry.kind, len(matches)) or entry.choice in choice_ranks:
                results.append(entry)
        return results


def split_words(text: str) -> str:
    """Return the words of a text in lower case and without accents, with spaces around them."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return f" {' '.join(_WORD.findall(text.casefold()))} "


class _Query:
    """Words of a query, prepared for comparisons with ten thousand entries."""

    def __init__(self, query: str) -> None:
        self.terms = split_words(query).split()
        self._whole = [f" {term} " for term in self.terms]
        # Texts in scripts without spaces have no beginnings of words.
        self._beginnings = [term if not term.isascii() else f" {term}" for term in self.terms]
        self._inside = [term if len(term) >= _MIN_INNER_CHARS else b for term, b in zip(self.terms, self._beginnings)]  # noqa: B905

    def rank(self, title: str, words: str) -> int | None:
        """Return the rank of an entry, 0 for the best match; None if the entry does not match.

        The ranks are: whole words of the title, beginnings of title words, beginnings of any words, inside of words.
        """
        if not all(map(words.__contains__, self._inside)):
            return None
        if all(map(title.__contains__, self._whole)):
            return 0
        if all(map(title.__contains__, self._beginnings)):
            return 1
        return 2 if all(map(words.__contains__, self._beginnings)) else _INSIDE
