"""Terms of claims: the numbers, names and identifiers of a sentence, in a form that can be compared with a passage.

The forms of a number are those in which people write it: 1,000 is 1000 and 1 000; 3.50 is 3.5; 1.5 million is 1500000.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(r"\w+(?:[.,'\u2019]\w+)*")
_PART: Final = re.compile(r"\w+")
_NUMBER: Final = re.compile(r"\d+(?:[.,'\u2019]\d+)*")
# Number at the start of a token.
_WHOLE_NUMBER: Final = re.compile(r"(?<!\w)(?<!\w[.,'\u2019])\d+(?:[.,'\u2019]\d+)*")
# Number of which the value is known, unlike "1,2,3".
_PLAIN_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DIGITS: Final = re.compile(r"\d+")
_SPACED_THOUSANDS: Final = re.compile(r"(?<![\w.,])\d{1,3}(?: \d{3})+(?!\w)")
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:([.,'\u2019])\d{3})(?:\1\d{3})*")
_MAGNITUDE: Final = re.compile(
    r"\s?(?:(?P<thousand>thousand|k)|(?P<million>million|mio|mn|m)|(?P<billion>billion|bn|b)|(?P<trillion>trillion|tn))"
    r"s?\b\.?",
    re.IGNORECASE,
)
_EXPONENTS: Final = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Addresses and link targets, which are not words of the sentence.
_ADDRESS: Final = re.compile(r"https?://[^\s)>\]]+|\]\([^()\s]*\)")
_UNIT: Final = re.compile(r" ?(?:%|\u2030|\u00b0[CF]?|\u20ac|\$)")
_CAMEL_CASE: Final = re.compile(r"[^\W\d_][^\W_]*[a-z\d][A-Z]")
_LABEL: Final = re.compile(r"\s*(?:\*\*|__)[^*_\n]{1,80}(?:\*\*|__)")
# A number that counts parts of the reply, or names a passage: "(1)", "passage 3".
_REFERENCE: Final = re.compile(r"\b(?:passages?|sources?|documents?|citations?|quelle)\s\Z", re.IGNORECASE)
_MAX_REFERENCE_CHARS: Final = 12
_MAX_NUMBER_CHARS: Final = 30
_MAX_START_CHARS: Final = 40
# Marks that may stand before the first word of a sentence or of a table cell, and characters before them.
_OPENING_MARKS: Final = " \t\n*_\"'\u201c\u201e\u2018\u00ab([~"
_STARTS: Final = ":;|\u2013\u2014\u2022.!?\u2026"

_SMALL_NUMBERS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_NUMBER_WORDS: Final = {word: str(number) for number, word in enumerate(_SMALL_NUMBERS)} | {
    "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "hundred": "100", "first": "1", "second": "2", "third": "3", "once": "1", "twice": "2", "half": "50",
}  # fmt: skip
_MONTHS: Final = {
    "january": 1, "february": 2, "march": 3, "april": 4, "may": 5, "june": 6, "july": 7, "august": 8, "september": 9,
    "october": 10, "november": 11, "december": 12,
}  # fmt: skip
# Words that are often capitalised within a sentence without being names.
_COMMON_WORDS: Final = frozenset({
    "a", "according", "also", "an", "and", "article", "as", "at", "but", "by", "chapter", "document", "documents",
    "eq", "equation", "false", "fig", "figure", "figures", "for", "from", "he", "her", "here", "his", "how", "however",
    "if", "in", "is", "it", "its", "line", "lines", "no", "none", "not", "note", "null", "of", "on", "or", "our",
    "page", "pages", "part", "passage", "passages", "section", "sections", "she", "so", "source", "sources", "step",
    "table", "tables", "that", "the", "their", "then", "there", "these", "they", "this", "those", "thus", "to", "true",
    "we", "what", "when", "where", "which", "while", "who", "why", "with", "yes", "you", "your",
})  # fmt: skip
# Frequent words of German, in which all nouns are capitalised.
_GERMAN_WORDS: Final = frozenset({
    "der", "die", "das", "und", "ist", "nicht", "ein", "eine", "einen", "mit", "von", "den", "dem", "des", "im", "zu",
    "auf", "für", "sich", "auch", "wird", "werden", "sind", "oder",
})  # fmt: skip
_MIN_GERMAN_SHARE: Final = 0.12
_MAX_LANGUAGE_CHARS: Final = 4000


class ClaimTerm(NamedTuple):
    """Number or name of a sentence that the cited passage should contain."""

    start: int
    """Index in the sentence."""
    text: str
    """The term as it is in the sentence, for the user."""
    keys: frozenset[str]
    """Forms of the term; a passage contains the term if it has one of them."""


def list_passage_terms(text: str) -> frozenset[str]:
    """Return all forms of the words and numbers of a passage."""
    text = normalize(text)
    terms = set(map(str.casefold, set(_PART.findall(text))))
    terms |= {_NUMBER_WORDS[word] for word in terms & _NUMBER_WORDS.keys()}
    terms |= {_strip_zeros(digits) for digits in set(_DIGITS.findall(text))}
    terms |= {_strip_zeros(number) for number in set(_SPACED_THOUSANDS.findall(text))}
    for match in _WHOLE_NUMBER.finditer(text):
        if not match[0].isdigit() or _MAGNITUDE.match(text, match.end()) is not None:
            terms |= _list_number_keys(match[0], text, match.end())
    return frozenset(terms)


def find_claim_terms(sentence: str, *, checks_names: bool = True) -> Iterator[ClaimTerm]:
    """Yield the numbers and identifiers of a normalized sentence, and its names unless `checks_names` is False.

    A name is a capitalised word that does not start the sentence and is not in a label such as "**Total Cost**:".
    """
    text = _ADDRESS.sub(lambda match: " " * len(match[0]), sentence)
    label = _LABEL.match(text)
    label_end = label.end() if label is not None else 0
    end = 0
    for match in _TOKEN.finditer(text):
        start = match.start()
        if start < end or (start and text[start - 1] == "\\"):
            continue
        spaced = _SPACED_THOUSANDS.match(text, start)
        number = spaced or _NUMBER.match(text, start, match.end())
        if number is not None:
            end = number.end()
            if _is_ordinal(text, start, end):
                continue
            keys = _list_number_keys(number[0].replace(" ", ""), text, end, is_claim=True)
            unit = _UNIT.match(text, end)
            yield ClaimTerm(start, text[start : unit.end() if unit is not None else end], frozenset(keys))
            continue
        for part in _PART.finditer(match[0]):
            is_checked = checks_names and start >= label_end
            keys = _list_name_keys(part[0], text, start + part.start(), checks_names=is_checked)
            if keys:
                yield ClaimTerm(start + part.start(), part[0], frozenset(keys))


def capitalizes_nouns(text: str) -> bool:
    """Return whether the language of the text seems to be German, in which a capital letter does not mark a name."""
    words = [word.casefold() for word in _PART.findall(text[:_MAX_LANGUAGE_CHARS])]
    return sum(word in _GERMAN_WORDS for word in words) > _MIN_GERMAN_SHARE * max(1, len(words))


def _is_ordinal(text: str, start: int, end: int) -> bool:
    """Return whether a number is a digit in parentheses, as in "(1) first", or follows a word such as "passage"."""
    if end - start == 1 and text[max(0, start - 1) : end + 1] == f"({text[start]})":
        return True
    return _REFERENCE.search(text[max(0, start - _MAX_REFERENCE_CHARS) : start]) is not None


def _list_name_keys(word: str, text: str, start: int, *, checks_names: bool) -> set[str]:
    """Return the forms of a name or an identifier; an empty set for other words."""
    folded = word.casefold()
    is_identifier = ("_" in word.strip("_") or _CAMEL_CASE.match(word) is not None) and len(word) > 2  # noqa: PLR2004
    is_acronym = len(word) > 1 and word.upper() == word and word[0].isalpha() and word.lower() != word
    if not is_identifier:
        if not checks_names or len(word) < 2 or not word[0].isupper() or folded in _COMMON_WORDS:  # noqa: PLR2004
            return set()
        if not is_acronym and _starts_sentence(text, start):
            return set()
    keys = {folded, f"{folded}s"}
    if folded.endswith("s"):
        keys.add(folded[:-1])
    if folded in _MONTHS:
        keys |= {folded[:3], str(_MONTHS[folded])}
    return keys


def _starts_sentence(text: str, start: int) -> bool:
    """Return whether the word at `start` is the first one of the sentence, a quotation after a colon, or a cell."""
    before = text[max(0, start - _MAX_START_CHARS) : start].rstrip(_OPENING_MARKS)
    return (not before and start <= _MAX_START_CHARS) or before[-1:] in tuple(_STARTS)


def _list_number_keys(number: str, text: str, end: int, *, is_claim: bool = False) -> set[str]:
    """Return the forms of a number; `end` is its end in `text`, where a word such as "million" can follow.

    In a claim, a comma before three digits separates thousands; in a passage, it can also be a decimal comma.
    """
    if len(number) > _MAX_NUMBER_CHARS:
        return {number}
    values = _parse_number(number, is_claim=is_claim)
    magnitude = _MAGNITUDE.match(text, end)
    if magnitude is not None and magnitude.lastgroup is not None:
        scale = Decimal(10) ** _EXPONENTS[magnitude.lastgroup]
        values |= {_format_decimal(Decimal(value) * scale) for value in values if _PLAIN_NUMBER.fullmatch(value)}
    return values


def _parse_number(number: str, *, is_claim: bool) -> set[str]:
    """Return the possible values of a number: "1.000" can be 1000 or 1, and "1.2.3" is only itself."""
    separators = re.sub(r"\d", "", number)
    if not separators:
        return {_strip_zeros(number)}
    values = set()
    if _THOUSANDS.fullmatch(number):
        values.add(_strip_zeros(number))
        if is_claim and separators[0] == ",":
            return values
    whole, decimals = number[: number.rfind(separators[-1])], number[number.rfind(separators[-1]) + 1 :]
    if len(separators) == 1 or (separators[-1] not in separators[:-1] and _THOUSANDS.fullmatch(whole)):
        values.add(_format_decimal(Decimal(f"{_to_ascii(whole)}.{_to_ascii(decimals)}")))
    return values or {number}


def _to_ascii(digits: str) -> str:
    """Convert decimal digits of any script to ASCII; leave out other characters."""
    return "".join(str(unicodedata.decimal(character, "")) for character in digits)


def _strip_zeros(digits: str) -> str:
    return _to_ascii(digits).lstrip("0") or "0"


def _format_decimal(value: Decimal) -> str:
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text).lstrip("0") or "0"


def normalize(text: str) -> str:
    """Replace compatibility characters, such as no-break spaces and digits of full width, with ordinary ones."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)
