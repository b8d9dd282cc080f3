"""Excerpts of passages for the user: the part with the most words of a query."""

from __future__ import annotations

import re
from typing import Final

from edgechat.documents.keyword_search import find_prefix, find_words

_ELLIPSIS: Final = "…"


def make_excerpt(text: str, query: str, max_chars: int) -> str:
    """Return a part of `text` on one line, with at most `max_chars` characters and "…" where it was cut.

    The part has as many different words of the query as possible, also in other forms, in its middle. Without such a
    word, it is the beginning of the text.
    """
    text = " ".join(text.split())
    if len(text) <= max_chars:
        return text
    first, last = _find_best_span(text, query, max_chars - 2 * len(_ELLIPSIS))
    start = max(0, min((first + last - max_chars) // 2, len(text) - max_chars))
    end = start + max_chars
    # The words at the ends are complete, unless they are long.
    if start:
        start += 1  # for the ellipsis
        space = text.find(" ", start - 1, first)
        start = space + 1 if space >= 0 else start
    if end < len(text):
        end -= 1
        space = text.rfind(" ", max(start, last), end + 1)
        end = space if space >= 0 else end
    return f"{_ELLIPSIS if start else ''}{text[start:end]}{_ELLIPSIS if end < len(text) else ''}"


def _find_best_span(text: str, query: str, max_chars: int) -> tuple[int, int]:
    """Return where the part with the most different words of a query begins and ends; (0, 0) without such a word."""
    matches = sorted(
        (match.start(), min(match.end(), match.start() + max_chars), number)
        for number, pattern in enumerate(_make_patterns(query))
        for match in pattern.finditer(text)
    )
    best, best_count, begin = (0, 0), 0, 0
    counts: dict[int, int] = {}
    for start, end, number in matches:
        counts[number] = counts.get(number, 0) + 1
        while end - matches[begin][0] > max_chars:
            removed = matches[begin][2]
            counts[removed] -= 1
            if not counts[removed]:
                del counts[removed]
            begin += 1
        if len(counts) > best_count:
            best, best_count = (matches[begin][0], max(start, end)), len(counts)
    return best


def _make_patterns(query: str) -> list[re.Pattern[str]]:
    """Return one pattern for each word of `query`; it finds the word and its other forms, such as the plural."""
    patterns = []
    for word in find_words(query):
        beginning = "" if not word.isascii() else r"(?<!\w)"  # the index has pairs of letters of some scripts
        patterns.append(re.compile(f"{beginning}{re.escape(find_prefix(word) or word)}", re.IGNORECASE))
    return patterns
