"""Values of the facts in the synthetic corpus: dates, numbers, names; and the recognition of a value in a reply."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from edgechat.errors import UsageError

_RANGE: Final = re.compile(r"(\d+)-(\d+)(?:/(\d+))?")
_DECIMAL: Final = re.compile(r"decimal-(\d+)-(\d+)")
# From this number on, texts have a separator between thousands.
_SEPARATOR_MIN: Final = 10_000


class ValueLists(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Words from which values and names are made."""

    place_starts: list[str]
    place_ends: list[str]
    first_names: list[str]
    last_names: list[str]
    company_starts: list[str]
    company_ends: list[str]
    colours: list[str]
    weekdays: list[str]
    months: list[str]

    def iterate_people(self, rng: random.Random) -> Iterator[str]:
        """Yield names of people without end, each once and in random order; later ones have middle initials."""
        initials = ["", *(f" {chr(code)}." for code in range(ord("A"), ord("Z") + 1))]
        for initial in initials:
            names = [f"{first}{initial} {last}" for first in self.first_names for last in self.last_names]
            rng.shuffle(names)
            yield from names

    def make_places(self, rng: random.Random, count: int) -> list[str]:
        """Return `count` different names of towns. Raises UsageError if there are fewer."""
        names = [start + end for start in self.place_starts for end in self.place_ends]
        if count > len(names):
            raise UsageError(f"The corpus has at most {len(names)} towns. Use fewer documents.")
        return rng.sample(names, count)


class ValueMaker:
    """Makes values of the kinds that the templates name."""

    def __init__(self, lists: ValueLists, rng: random.Random) -> None:
        self._lists = lists
        self._rng = rng
        self._people = lists.iterate_people(rng)

    def make(self, kind: str) -> tuple[str, tuple[str, ...]]:
        """Return a value of a kind, and all spellings in which a reply may have it. Raises UsageError."""
        rng, lists = self._rng, self._lists
        if kind == "date":
            return self._make_date()
        if kind == "person":
            text = next(self._people)
            return text, (text, text.rpartition(" ")[2])
        if (entries := getattr(lists, f"{kind}s", None)) is not None:
            text = rng.choice(entries)
        elif kind == "month-year":
            text = f"{rng.choice(lists.months)} {rng.randrange(2027, 2033)}"
        elif kind == "year":
            text = str(rng.randrange(1871, 2021))
        elif kind.startswith("time-"):
            hour = rng.randrange(4, 7) if kind == "time-early" else rng.randrange(18, 24)
            text = f"{hour}:{rng.randrange(5, 60, 5):02}"
        elif kind == "phone":
            text = str(rng.randrange(2100, 9800))
        elif kind == "company":
            text = f"{rng.choice(lists.company_starts)} {rng.choice(lists.company_ends)}"
        else:
            text = self._make_number(kind)
        return text, (text,)

    def _make_number(self, kind: str) -> str:
        rng = self._rng
        if match := _DECIMAL.fullmatch(kind):
            return f"{rng.randrange(10 * int(match[1]) + 1, 10 * int(match[2])) / 10:.1f}"
        if match := _RANGE.fullmatch(kind):
            number = rng.randrange(int(match[1]), int(match[2]) + 1, int(match[3] or 1))
            return f"{number:,}" if number >= _SEPARATOR_MIN else str(number)
        raise UsageError(f"{kind!r} is not a kind of value.")

    def _make_date(self) -> tuple[str, tuple[str, ...]]:
        rng, months = self._rng, self._lists.months
        day, month, year = rng.randrange(1, 29), rng.randrange(12), rng.randrange(2008, 2026)
        text = f"{day} {months[month]} {year}"
        return text, (text, f"{months[month]} {day} {year}", f"{year}-{month + 1:02}-{day:02}")


def contains_value(reply: str, spellings: tuple[str, ...]) -> bool:
    """Return whether a reply contains a value in one of its spellings, as whole words.

    Case, markup, separators of thousands and endings of ordinals do not matter.
    """
    text = _normalize(reply)
    return any(
        re.search(rf"(?<![\w.]){re.escape(_normalize(spelling))}(?![\w]|\.\d)", text) is not None
        for spelling in spellings
    )


def _normalize(text: str) -> str:
    text = re.sub(r"[*_`]", "", text.casefold())
    text = re.sub(r"(?<=\d)[,\u00a0\u202f'](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b(?: of\b)?", "", text)
    return re.sub(r"[\s,]+", " ", text)
