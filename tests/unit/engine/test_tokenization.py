"""Tokenising a rendered prompt, with a tokenizer of one token per character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.tokenization import tokenize_prompt
from edgechat.prompt.renderer import PromptMessage, guard_messages

BOS, USER, END = 1_000_001, 1_000_002, 1_000_003


class Letters:
    """Characters are tokens; control tokens are recognised only when asked for, as llama.cpp does."""

    def __init__(self, *, adds_bos: bool) -> None:
        self.control_tokens = {"<bos>": BOS, "<user>": USER, "<end>": END}
        self.bos = "<bos>"
        self.adds_bos = adds_bos

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = [BOS] if add_special and self.adds_bos else []
        while text:
            found = next((t for t in self.control_tokens if parse_special and text.startswith(t)), None)
            tokens.append(self.control_tokens[found] if found else ord(text[0]))
            text = text[len(found or text[0]) :]
        return tokens


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_bos_is_there_once() -> None:
    assert tokenize_prompt(Letters(adds_bos=True), "<bos>hi", "") == [BOS, *letters("hi")]
    assert tokenize_prompt(Letters(adds_bos=True), "hi", "") == [BOS, *letters("hi")]
    assert tokenize_prompt(Letters(adds_bos=False), "hi", "") == letters("hi")
    assert tokenize_prompt(Letters(adds_bos=True), "<\ufdd0bos>", "\ufdd0") == [BOS, *letters("<bos>")]


@given(st.lists(st.sampled_from(["<bos>", "<user>", "<end>", "<", "end>", "a", " ", "<us", "er>"])).map("".join))
def test_control_tokens_come_from_the_template_only(content: str) -> None:
    model = Letters(adds_bos=True)
    guarded, guard = guard_messages([PromptMessage("user", content)], list(model.control_tokens))
    tokens = tokenize_prompt(model, f"<user>{guarded[0]['content']}<end>", guard)
    assert tokens == [BOS, USER, *letters(content), END]
