"""Which part of a conversation the model sees, when all of it is longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edgechat.chat.messages import Message
from edgechat.errors import ContextOverflowError

T = TypeVar("T")

# An answer wants room: an eighth of the context, as long as the user asked for no less.
_ANSWER_PART: Final = 8
# Dropping turns costs a prefill of all that stays. So more is dropped than must be: until half the context is free,
# which is what llama.cpp's own tools leave when they shift.
_KEPT_PART: Final = 2


def fit(
    path: Sequence[Message],
    *,
    n_ctx: int,
    max_tokens: int | None,
    previous_start: int,
    count: Callable[[int], int],
) -> int:
    """Index of the first message of `path` that the model is shown.

    `count(start)` is the length in tokens of the prompt that starts there. All is shown if it fits. Else the
    window of the turn before (`previous_start`) stays as it is while that fits, so that what was computed can be
    used again; else whole turns leave from the front. The last turn never leaves.

    Raises ContextOverflowError if not even that one fits.
    """
    room = max(1, min(max_tokens or n_ctx, n_ctx // _ANSWER_PART))
    starts = turn_starts(path)
    if not starts or count(0) + room <= n_ctx:
        return 0
    if previous_start in starts and count(previous_start) + room <= n_ctx:
        return previous_start
    later = [s for s in starts if s > previous_start] or starts[-1:]
    start = _first(later, lambda s: count(s) <= n_ctx // _KEPT_PART)
    shortest = count(start)
    if shortest >= n_ctx:
        raise ContextOverflowError(
            f"the prompt has {shortest} tokens, but the context holds {n_ctx}: "
            "shorten it, or ask for a larger context with --ctx"
        )
    return start


def turn_starts(path: Sequence[Message]) -> list[int]:
    """Where turns begin: at messages of the user."""
    return [i for i, m in enumerate(path) if m.role == "user"]


def _first(items: Sequence[T], holds: Callable[[T], bool]) -> T:
    """The first item for which a monotone condition holds, by bisection; the last one if it never does."""
    low, high = 0, len(items) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(items[middle]):
            high = middle
        else:
            low = middle + 1
    return items[low]
