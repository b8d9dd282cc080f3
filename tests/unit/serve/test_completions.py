"""Input of completions and embeddings."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.engine.generation import TokenLogprobs
from edgechat.serve.completions import _ChoiceText, split_inputs
from edgechat.serve.errors import ApiError


@pytest.mark.parametrize("inputs", [[], ["a", 1], [1, [2]], [[1], "a"], ["a"] * 65])
def test_empty_mixed_and_too_long_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(ApiError):
        split_inputs(inputs, "prompt")


def test_texts_and_token_lists_are_split() -> None:
    assert split_inputs("a", "prompt") == ["a"]
    assert split_inputs([1, 2], "prompt") == [[1, 2]]
    assert split_inputs([[1], [2]], "prompt") == [[1], [2]]


def token(text: str, logprob: float = -1.0) -> TokenLogprobs:
    return TokenLogprobs(
        token_bytes=text.encode("utf-8", "surrogateescape"), logprob=logprob, top_logprobs=[(b"x", -0.5)]
    )


def test_echo_begins_with_the_tokens_of_the_prompt() -> None:
    text = _ChoiceText("Hi é")
    text.prompt += [token("<s>", 0.0), token(" Hi"), token(" "), token("\udcc3"), token("\udca9")]
    logprobs = text.make_logprobs_object([token("!")], with_prompt=True)
    assert text.echo == "Hi é"
    assert logprobs["tokens"] == ["<s>", " Hi", " ", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs["text_offset"] == [0, 0, 2, 3, 3, 4]  # the start token and the first space are not in the text
    assert logprobs["token_logprobs"] == [None, -1, -1, -1, -1, -1]
    assert logprobs["top_logprobs"] == [None, *[{"x": -0.5}] * 5]
    assert text.make_logprobs_object([token("?")], with_prompt=False)["text_offset"] == [5]


def test_echo_of_token_ids_is_their_text() -> None:
    text = _ChoiceText(None)
    text.prompt += [token("One"), token(" two")]
    assert text.echo == "One two"
    assert text.make_logprobs_object([token("!")], with_prompt=True)["text_offset"] == [0, 3, 7]


def test_logprobs_without_echo_begin_after_nothing() -> None:
    logprobs = _ChoiceText("").make_logprobs_object([token("a"), token("b")], with_prompt=True)
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["token_logprobs"] == [-1, -1]
