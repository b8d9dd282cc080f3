"""Context window: which turns of a conversation longer than the context are in the prompt."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgechat.chat.messages import Message
from edgechat.chat.window import choose_window_start, find_turn_starts
from edgechat.errors import ContextOverflowError

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def path_of_sizes(sizes: list[int]) -> list[Message]:
    return [Message(id=str(i), role="assistant" if i % 2 else "user", text="x" * n) for i, n in enumerate(sizes)]


@given(SIZES, st.integers(64, 2000), st.none() | st.integers(1, 500), st.integers(0, 39))
def test_window_fits_begins_with_a_turn_and_drops_no_more_than_necessary(
    sizes: list[int], n_ctx: int, max_tokens: int | None, previous: int
) -> None:
    sizes = sizes if len(sizes) % 2 else sizes[:-1]
    assume(sizes)
    path = path_of_sizes(sizes)
    starts = find_turn_starts(path)
    previous = starts[previous % len(starts)]

    def n_tokens(start: int) -> int:
        return sum(sizes[start:])

    if n_tokens(starts[-1]) >= n_ctx:
        with pytest.raises(ContextOverflowError, match=str(n_ctx)):
            choose_window_start(
                path, n_ctx=n_ctx, max_tokens=max_tokens, previous_start=previous, count_tokens=n_tokens
            )
        return
    start = choose_window_start(
        path, n_ctx=n_ctx, max_tokens=max_tokens, previous_start=previous, count_tokens=n_tokens
    )
    assert start in starts
    assert n_tokens(start) < n_ctx
    n_reserved = min(max_tokens or n_ctx, n_ctx // 8)
    if n_tokens(0) + n_reserved <= n_ctx:
        assert start == 0
    elif n_tokens(previous) + n_reserved <= n_ctx:
        assert start == previous  # the cached prefix stays valid
    elif start != starts[-1]:
        assert n_tokens(start) <= n_ctx // 2  # space for more than one turn
        earlier = [s for s in starts if previous < s < start]
        assert not earlier or n_tokens(earlier[-1]) > n_ctx // 2


def test_last_turn_is_never_dropped() -> None:
    path = path_of_sizes([10, 10, 90])
    lengths = [110, 0, 90]
    assert (
        choose_window_start(path, n_ctx=100, max_tokens=None, previous_start=0, count_tokens=lengths.__getitem__) == 2
    )


def test_prompts_that_are_too_long_to_count_are_dropped() -> None:
    path = path_of_sizes([10, 10, 90, 10, 20])

    def count_tokens(start: int) -> int:
        if start < 2:
            raise ContextOverflowError("more than 400 tokens")
        return sum(len(message.text) for message in path[start:])

    assert choose_window_start(path, n_ctx=100, max_tokens=None, previous_start=0, count_tokens=count_tokens) == 4
    with pytest.raises(ContextOverflowError, match="more than 400"):
        choose_window_start(path[:1], n_ctx=100, max_tokens=None, previous_start=0, count_tokens=count_tokens)
