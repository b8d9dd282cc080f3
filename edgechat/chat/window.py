"""Context window: which turns of a conversation are in the prompt when the whole is longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edgechat.chat.messages import Message
from edgechat.errors import ContextOverflowError

T = TypeVar("T")

# Part of the context to leave free for the reply, unless the user limits replies to fewer tokens.
_REPLY_FRACTION: Final = 1 / 8
# Dropping turns costs a prefill of the whole remaining prompt, so drop enough for several turns: until the prompt fills
# at most half of the context, as llama.cpp's tools do when they shift the context.
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

    `n_tokens(start)` is the length of the prompt that begins at `start`. The window is the whole path if that fits;
    else the window of the previous turn (`previous_start`) while that fits, so that its cached prefix stays valid;
    else whole turns are dropped from the front. The last turn is never dropped.

    Raises ContextOverflowError if the last turn alone does not fit.
    """
    n_reserved = max(1, min(max_tokens or n_ctx, int(n_ctx * _REPLY_FRACTION)))
    starts = turn_starts(path)
    if not starts or n_tokens(0) + n_reserved <= n_ctx:
        return 0
    if previous_start in starts and n_tokens(previous_start) + n_reserved <= n_ctx:
        return previous_start
    later = [s for s in starts if s > previous_start] or starts[-1:]
    start = _first(later, lambda s: n_tokens(s) <= int(n_ctx * _FILL_AFTER_DROP))
    shortest = n_tokens(start)
    if shortest >= n_ctx:
        raise ContextOverflowError(
            f"The prompt has {shortest} tokens, but the context holds {n_ctx}: "
            "shorten it, or set a larger context with --ctx"
        )
    return start


def turn_starts(path: Sequence[Message]) -> list[int]:
    """Return the indices of user messages, at which turns begin."""
    return [i for i, m in enumerate(path) if m.role == "user"]


def _first(items: Sequence[T], condition: Callable[[T], bool]) -> T:
    """Return the first item that meets a monotone condition, by bisection; the last item if none does."""
    low, high = 0, len(items) - 1
    while low < high:
        middle = (low + high) // 2
        if condition(items[middle]):
            high = middle
        else:
            low = middle + 1
    return items[low]
