"""Drafter over the current text."""

from __future__ import annotations

from edgechat.speculation.drafter import FROM_CONTEXT, Draft, LiveDrafter
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
