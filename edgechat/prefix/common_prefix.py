"""Length of the common prefix of two token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of tokens at the start of `a` that equal those at the start of `b`."""
    longest = min(len(a), len(b))
    head_a, head_b = tuple(a[:longest]), tuple(b[:longest])
    if head_a == head_b:  # the usual case; tuples compare in C
        return longest
    return next(i for i, (x, y) in enumerate(zip(head_a, head_b, strict=True)) if x != y)
