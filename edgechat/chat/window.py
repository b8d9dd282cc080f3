"""Context window: chooses the turns that the prompt contains if the conversation is longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edgechat.chat.messages import Message
from edgechat.engine.overflow import make_overflow_error
from edgechat.errors import ContextOverflowError

T = TypeVar("T")

# Fraction of the context that is reserved for the reply, unless the user limits replies to fewer tokens.
_REPLY_FRACTION: Final = 1 / 8
# Maximum fraction of the context that the prompt fills after turns were dropped. Each drop requires a prefill of the
# remaining prompt, so more turns than necessary are dropped to make drops rare, as in llama.cpp's context shift.
_MAX_FILL_AFTER_DROP: Final = 1 / 2


def choose_window_start(
    path: Sequence[Message],
    *,
    n_ctx: int,
    max_tokens: int | None,
    previous_start: int,
    count_tokens: Callable[[int], int],
    n_ctx_train: int = 0,
) -> int:
    """Return the index of the first message of `path` to put in the prompt.

    `count_tokens(start)` returns the length in tokens of the prompt that begins at message `start`, or raises
    ContextOverflowError if that prompt is much longer than the context. The result is

    - 0 if the prompt of the whole path fits in the context,
    - otherwise `previous_start`, the result of the previous turn, if the prompt from there fits, because
      the beginning of that prompt is in the prefix cache,
    - otherwise the start of a later turn, with space for several more turns.

    Raises ContextOverflowError if the last turn alone does not fit.
    """

    def fits(start: int, n_tokens: int) -> bool:
        try:
            return count_tokens(start) <= n_tokens
        except ContextOverflowError:
            return False

    n_reserved = max(1, min(max_tokens or n_ctx, int(n_ctx * _REPLY_FRACTION)))
    starts = find_turn_starts(path)
    if not starts or fits(0, n_ctx - n_reserved):
        return 0
    if previous_start in starts and fits(previous_start, n_ctx - n_reserved):
        return previous_start
    later_starts = [s for s in starts if s > previous_start] or starts[-1:]
    start = _find_first_match(later_starts, lambda s: fits(s, int(n_ctx * _MAX_FILL_AFTER_DROP)))
    n_prompt_tokens = count_tokens(start)
    if n_prompt_tokens >= n_ctx:
        raise make_overflow_error(
            f"The message and the system prompt have {n_prompt_tokens:,} tokens", n_ctx, n_ctx_train, "Shorten them"
        )
    return start


def find_turn_starts(path: Sequence[Message]) -> list[int]:
    """Return the indices of the user messages in `path`. Each user message begins a turn."""
    return [i for i, m in enumerate(path) if m.role == "user"]


def _find_first_match(items: Sequence[T], condition: Callable[[T], bool]) -> T:
    """Find the first item that meets a monotone `condition`, by bisection; return the last item if there is none."""
    low, high = 0, len(items) - 1
    while low < high:
        middle = (low + high) // 2
        if condition(items[middle]):
            high = middle
        else:
            low = middle + 1
    return items[low]
