"""Context window: chooses the turns for the prompt if the conversation is longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edgechat.chat.messages import Message
from edgechat.errors import ContextOverflowError

T = TypeVar("T")

# Fraction of the context that is reserved for the reply, unless the user limits replies to fewer tokens.
_REPLY_FRACTION: Final = 1 / 8
# Maximum fraction of the context that the prompt fills after turns were dropped. Dropping turns causes a prefill of the
# whole remaining prompt, so enough turns are dropped for several later turns, as in the context shift of llama.cpp.
_FILL_AFTER_DROP: Final = 1 / 2


def window_start(
    path: Sequence[Message],
    *,
    n_ctx: int,
    max_tokens: int | None,
    previous_start: int,
    n_tokens: Callable[[int], int],
) -> int:
    """Return the index of the first message of `path` to put in the prompt.

    `n_tokens(start)` returns the length of the prompt that begins at message `start`. If the whole path fits, the
    window is the whole path. Otherwise the window starts at `previous_start`, as in the previous turn, if that prompt
    fits, so that its cached prefix stays valid. Otherwise whole turns are dropped from the front, but never the last.

    Raises ContextOverflowError if the last turn alone does not fit.
    """
    n_reserved = max(1, min(max_tokens or n_ctx, int(n_ctx * _REPLY_FRACTION)))
    starts = turn_starts(path)
    if not starts or n_tokens(0) + n_reserved <= n_ctx:
        return 0
    if previous_start in starts and n_tokens(previous_start) + n_reserved <= n_ctx:
        return previous_start
    later = [s for s in starts if s > previous_start] or starts[-1:]
    start = _first_match(later, lambda s: n_tokens(s) <= int(n_ctx * _FILL_AFTER_DROP))
    shortest = n_tokens(start)
    if shortest >= n_ctx:
        raise ContextOverflowError(
            f"The prompt has {shortest} tokens, but the context holds {n_ctx}: "
            "shorten it, or set a larger context with --ctx"
        )
    return start


def turn_starts(path: Sequence[Message]) -> list[int]:
    """Return the indices of the user messages in `path`, at which turns begin."""
    return [i for i, m in enumerate(path) if m.role == "user"]


def _first_match(items: Sequence[T], condition: Callable[[T], bool]) -> T:
    """Return the first item that meets a monotone condition, by bisection; the last item if no item meets it."""
    low, high = 0, len(items) - 1
    while low < high:
        middle = (low + high) // 2
        if condition(items[middle]):
            high = middle
        else:
            low = middle + 1
    return items[low]
