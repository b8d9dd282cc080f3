"""Drafter over the current text."""

from __future__ import annotations

import pytest

from edgechat.speculation.drafter import FROM_CONTEXT, Draft, LiveDrafter, LivePool
from tests.suffix_reference import PlainIndex


def test_new_text_reindexes_only_the_tokens_after_the_shared_prefix() -> None:
    index = PlainIndex()
    drafter = LiveDrafter(index)
    drafter.start([1, 2, 3, 4, 1, 2])
    assert drafter.draft(3) == Draft([3, 4, 1], 2, FROM_CONTEXT)
    drafter.append([3])
    drafter.start([1, 2, 3, 9, 9])
    assert index.tokens == [1, 2, 3, 9, 9]
    drafter.start([])
    assert index.tokens == []
    assert drafter.draft(3).tokens == []


def test_pool_whose_index_cannot_be_allocated_keeps_its_place() -> None:
    n_failures = 3

    def make_index() -> PlainIndex:
        nonlocal n_failures
        if pool is not None and n_failures:
            n_failures -= 1
            raise MemoryError
        return PlainIndex()

    pool: LivePool | None = None
    pool = LivePool(make_index, 2)
    assert pool.acquire([]) is not None
    while n_failures:
        with pytest.raises(MemoryError):
            pool.acquire([])
    assert pool.acquire([]) is not None
    assert pool.acquire([]) is None
