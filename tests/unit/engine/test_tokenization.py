"""Tokenising rendered prompts with a tokenizer that makes one token per character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.tokenization import check_tokens, tokenize_prompt
from edgechat.errors import EngineError
from edgechat.prompt.renderer import PromptMessage, guard_messages

BOS, USER, END = 1_000_001, 1_000_002, 1_000_003


class CharTokenizer:
    """One token per character; like llama.cpp, it recognises control tokens only with `parse_special`."""

    def __init__(self, *, adds_bos: bool) -> None:
        self.control_tokens = {"<bos>": BOS, "<user>": USER, "<end>": END}
        self.bos = "<bos>"
        self.adds_bos = adds_bos

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = [BOS] if add_special and self.adds_bos else []
        while text:
            control = next((t for t in self.control_tokens if parse_special and text.startswith(t)), None)
            tokens.append(self.control_tokens[control] if control else ord(text[0]))
            text = text[len(control or text[0]) :]
        return tokens


def char_tokens(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_bos_is_added_once() -> None:
    assert tokenize_prompt(CharTokenizer(adds_bos=True), "<bos>hi", "") == [BOS, *char_tokens("hi")]
    assert tokenize_prompt(CharTokenizer(adds_bos=True), "hi", "") == [BOS, *char_tokens("hi")]
    assert tokenize_prompt(CharTokenizer(adds_bos=False), "hi", "") == char_tokens("hi")
    assert tokenize_prompt(CharTokenizer(adds_bos=True), "<\ufdd0bos>", "\ufdd0") == [BOS, *char_tokens("<bos>")]


@given(st.lists(st.sampled_from(["<bos>", "<user>", "<end>", "<", "end>", "a", " ", "<us", "er>"])).map("".join))
def test_user_text_never_becomes_a_control_token(content: str) -> None:
    model = CharTokenizer(adds_bos=True)
    guarded, guard = guard_messages([PromptMessage("user", content)], list(model.control_tokens))
    tokens = tokenize_prompt(model, f"<user>{guarded[0]['content']}<end>", guard)
    assert tokens == [BOS, USER, *char_tokens(content), END]


def test_tokens_outside_the_vocabulary_are_an_error() -> None:
    check_tokens([0, 9], 10)
    for tokens in ([-1], [0, 10]):
        with pytest.raises(EngineError, match=f"Token {tokens[-1]} is not in this model's vocabulary of 10"):
            check_tokens(tokens, 10)
