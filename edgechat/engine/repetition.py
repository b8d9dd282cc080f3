"""Detection of loops: a passage that the model repeats over and over at the end of its output.

Only exact repetitions count. The lines of a list differ in their numbers, so lists and tables of different rows are
not loops, however similar their lines are. The same passage can also repeat because the user asked for it: rows of
zeros, empty rows of a table, a line to write fifty times. Such passages are short, or consist of few different tokens,
so they must fill more tokens than a sentence or a paragraph before they count as a loop.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

MAX_PERIOD: Final = 400
"""Length of the longest passage that is compared, in tokens."""
MIN_REPEATS: Final = 4
"""Minimum number of times that a passage occurs in a loop. Songs can end with the same chorus three times."""
MIN_TOKENS: Final = 200
"""Minimum length of a loop, in tokens."""
MIN_DISTINCT_TOKENS: Final = 12
"""A passage with fewer different tokens needs a loop of `MIN_UNIFORM_TOKENS`."""
MIN_UNIFORM_TOKENS: Final = 600
"""Minimum length of a loop whose passage has few different tokens. A table of 16 rows and 16 columns of zeros has about
530 tokens, and a line of 10 tokens occurs 60 times."""

_TOKEN_ENCODING: Final = f"utf-32-{sys.byteorder[0]}e"
_WINDOW_TOKENS: Final = max(MAX_PERIOD * MIN_REPEATS, MIN_UNIFORM_TOKENS)
# Number of tokens between two searches. A search also finds loops that lack fewer tokens than this, so that the token
# that completes a loop is checked, too. It takes 10 to 30 microseconds for common texts.
_INTERVAL: Final = 16
# The end of each loop equals the text one period before. The shortest such match is that of a loop of `MIN_TOKENS`
# tokens whose passage occurs `MIN_REPEATS` times and which lacks as many tokens as are between two searches.
_NEEDLE_TOKENS: Final = MIN_TOKENS - MIN_TOKENS // MIN_REPEATS - _INTERVAL


class RepetitionDetector:
    """Detector of loops at the end of a growing output."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """Observe `tokens`, to which the caller appends one token before each call of `check`."""
        self._tokens = tokens
        self._next_search = MIN_TOKENS - MIN_TOKENS % _INTERVAL
        """Length of the output at the next search."""

    def check(self) -> bool:
        """Return whether a loop ends at the last token. Call it for each token of the output."""
        n_tokens = len(self._tokens)
        if n_tokens < self._next_search:
            return False
        interval = _INTERVAL - n_tokens % _INTERVAL
        n_missing = count_missing_tokens(self._tokens, interval)
        self._next_search = n_tokens + n_missing
        return n_missing == 0


def count_missing_tokens(tokens: Sequence[int], limit: int = 1) -> int:
    """Return the number of tokens that the loop at the end of `tokens` lacks; 0 if it is complete.

    The result is `limit` if each loop lacks at least that many tokens; `limit` is at most 16.
    """
    # A token is a character, because strings are searched at the speed of C. Vocabularies are smaller than Unicode.
    text = array("i", tokens[-_WINDOW_TOKENS:]).tobytes().decode(_TOKEN_ENCODING, "surrogatepass")
    for period, n_tokens in _find_repetitions(text):
        limit = min(limit, max(0, _find_min_length(text[-period:]) - n_tokens))
    return limit


def _find_min_length(passage: str) -> int:
    """Return the minimum length of a loop that repeats `passage`."""
    is_uniform = len(set(passage)) < MIN_DISTINCT_TOKENS
    return max(MIN_UNIFORM_TOKENS if is_uniform else MIN_TOKENS, MIN_REPEATS * len(passage))


def _find_repetitions(text: str) -> Iterator[tuple[int, int]]:
    """Yield the periods of the end of `text`, shortest first, each with the length of the end that has this period.

    Only periods of long ends can belong to a loop, so the others are not searched.
    """
    needle = text[-_NEEDLE_TOKENS:]
    start = max(0, len(text) - _NEEDLE_TOKENS - MAX_PERIOD)
    end = len(text) - 1
    while (position := text.rfind(needle, start, end)) >= 0:
        period = len(text) - len(needle) - position
        n_chars = _measure_end(text, period)
        yield period, n_chars
        end = position + len(needle) - 1
        if period <= len(needle):  # within this end, the needle is only found at multiples of the period
            end = min(end, len(text) - n_chars + len(needle) - 1)


def _measure_end(text: str, period: int) -> int:
    """Return the length of the longest end of `text` that has the period `period`."""
    lengths = range(period + 1, len(text) + 1)
    return period + bisect_left(lengths, True, key=lambda n: text[-n:-period] != text[len(text) - n + period :])
