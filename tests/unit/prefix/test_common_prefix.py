"""The length of a common prefix, against a token-by-token comparison."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prefix.common_prefix import common_prefix_length

TOKENS = st.lists(st.integers(0, 2), max_size=8)


@pytest.mark.parametrize("as_type", [list, tuple])
@given(shared=TOKENS, a=TOKENS, b=TOKENS)
def test_length_is_that_of_a_token_by_token_comparison(
    as_type: type[Sequence[int]], shared: list[int], a: list[int], b: list[int]
) -> None:
    first, second = [*shared, *a], as_type([*shared, *b])  # type: ignore[call-arg]
    length = common_prefix_length(first, second)
    assert length >= len(shared)
    assert first[:length] == list(second)[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
