"""Input of completions and embeddings."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.serve.completions import split_inputs
from edgechat.serve.errors import ApiError


@pytest.mark.parametrize("inputs", [[], ["a", 1], [1, [2]], [[1], "a"], ["a"] * 65])
def test_empty_mixed_and_too_long_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(ApiError):
        split_inputs(inputs, "prompt")


def test_texts_and_token_lists_are_split() -> None:
    assert split_inputs("a", "prompt") == ["a"]
    assert split_inputs([1, 2], "prompt") == [[1, 2]]
    assert split_inputs([[1], [2]], "prompt") == [[1], [2]]
