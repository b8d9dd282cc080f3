"""Length of the common prefix of two token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of leading tokens that `a` and `b` have in common."""
    max_length = min(len(a), len(b))
    head_a, head_b = tuple(a[:max_length]), tuple(b[:max_length])
    if head_a == head_b:  # the usual case, which is fast because tuples are compared in C
        return max_length
    return next(i for i, (x, y) in enumerate(zip(head_a, head_b, strict=True)) if x != y)
