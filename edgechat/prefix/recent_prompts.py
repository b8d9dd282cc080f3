"""Recent prompts, with which a new prompt is compared to find out why the prefix cache did not hold more of it."""

from __future__ import annotations

import bisect
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

_MAX_PROMPTS: Final = 8
_MAX_COMPARED_PROMPTS: Final = 3
_MAX_TOKENS: Final = 1 << 15
_BLOCK_TOKENS: Final = 16
_TOKEN_BYTES: Final = array("i").itemsize


class PromptDifference(NamedTuple):
    """Difference between a prompt and the most similar recent prompt."""

    n_common: int
    """Number of tokens at the beginning of both prompts, which are the same."""
    n_repeated: int
    """Number of tokens in blocks of 16 of the recent prompt that the prompt repeats anywhere after the difference."""


class RecentPrompts:
    """The last eight prompts of an engine. Comparing a prompt of 15,000 tokens with them takes a few milliseconds.

    Of longer prompts, only the first 32,768 tokens are kept and compared.
    """

    def __init__(self) -> None:
        self._prompts: deque[bytes] = deque(maxlen=_MAX_PROMPTS)

    def add(self, tokens: Sequence[int]) -> None:
        """Add a prompt; the oldest one is discarded."""
        self._prompts.appendleft(_encode(tokens))

    def copy(self) -> RecentPrompts:
        """Return a copy to which later prompts are not added."""
        copy = RecentPrompts()
        copy._prompts.extend(self._prompts)
        return copy

    def compare(self, tokens: Sequence[int]) -> PromptDifference:
        """Return the difference between a prompt and the recent prompt that has most of its tokens."""
        data = _encode(tokens)
        pairs = [(_find_difference(prompt, data), prompt) for prompt in self._prompts]
        pairs.sort(key=lambda pair: pair[0], reverse=True)  # a later prompt comes first if prefixes are equally long
        differences = [
            PromptDifference(n_common, _count_repeated(prompt, data, n_common))
            for n_common, prompt in pairs[:_MAX_COMPARED_PROMPTS]
        ]
        return max(differences, key=sum, default=PromptDifference(0, 0))


def _encode(tokens: Sequence[int]) -> bytes:
    return array("i", tokens[:_MAX_TOKENS]).tobytes()


def _find_difference(a: bytes, b: bytes) -> int:
    """Return the number of tokens at the beginning that `a` and `b` have in common."""
    n_tokens = min(len(a), len(b)) // _TOKEN_BYTES
    lengths = range(1, n_tokens + 1)
    return bisect.bisect_left(lengths, True, key=lambda n: a[: n * _TOKEN_BYTES] != b[: n * _TOKEN_BYTES])


def _count_repeated(earlier: bytes, data: bytes, n_common: int) -> int:
    """Return how many tokens of `data` after the first `n_common` are in blocks of `earlier` after as many tokens."""
    n_bytes = _BLOCK_TOKENS * _TOKEN_BYTES
    start = n_common * _TOKEN_BYTES
    blocks = {earlier[i : i + n_bytes] for i in range(start, len(earlier) - n_bytes + 1, n_bytes)}
    n_repeated = 0
    while blocks and start + n_bytes <= len(data):
        if data[start : start + n_bytes] in blocks:
            n_repeated += _BLOCK_TOKENS
            start += n_bytes
        else:
            start += _TOKEN_BYTES
    return n_repeated
