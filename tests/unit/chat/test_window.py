"""What the model sees of a conversation that is longer than its context."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgechat.chat.messages import Message
from edgechat.chat.window import turn_starts, window_start
from edgechat.errors import ContextOverflowError

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def a_path(sizes: list[int]) -> list[Message]:
    return [Message(id=str(i), role="assistant" if i % 2 else "user", text="x" * n) for i, n in enumerate(sizes)]


@given(SIZES, st.integers(64, 2000), st.none() | st.integers(1, 500), st.integers(0, 39))
def test_what_is_shown_fits_begins_with_a_turn_and_drops_no_more_than_it_must(
    sizes: list[int], n_ctx: int, max_tokens: int | None, previous: int
) -> None:
    sizes = sizes if len(sizes) % 2 else sizes[:-1]
    assume(sizes)
    path = a_path(sizes)
    starts = turn_starts(path)
    previous = starts[previous % len(starts)]

    def count(start: int) -> int:
        return sum(sizes[start:])

    if count(starts[-1]) >= n_ctx:
        with pytest.raises(ContextOverflowError, match=str(n_ctx)):
            window_start(path, n_ctx=n_ctx, max_tokens=max_tokens, previous_start=previous, n_tokens=count)
        return
    start = window_start(path, n_ctx=n_ctx, max_tokens=max_tokens, previous_start=previous, n_tokens=count)
    assert start in starts
    assert count(start) < n_ctx
    room = min(max_tokens or n_ctx, n_ctx // 8)
    if count(0) + room <= n_ctx:
        assert start == 0
    elif count(previous) + room <= n_ctx:
        assert start == previous  # what was computed can be used again
    elif start != starts[-1]:
        assert count(start) <= n_ctx // 2  # room for more than one turn
        earlier = [s for s in starts if previous < s < start]
        assert not earlier or count(earlier[-1]) > n_ctx // 2


def test_the_last_turn_never_leaves() -> None:
    path = a_path([10, 10, 90])
    assert window_start(path, n_ctx=100, max_tokens=None, previous_start=0, n_tokens=lambda s: [110, 0, 90][s]) == 2
