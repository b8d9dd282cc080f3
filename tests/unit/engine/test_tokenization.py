"""Tokenising rendered prompts with a tokenizer that makes one token per character."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine import tokenization
from edgechat.engine.tokenization import TokenizationQueue, check_tokens, iterate_prompt
from edgechat.errors import EngineError, RequestCancelledError
from edgechat.prompt.renderer import PromptMessage, guard_messages

BOS, USER, END = 1_000_001, 1_000_002, 1_000_003


class CharTokenizer:
    """One token per character; like llama.cpp, it recognises control tokens only with `parse_special`."""

    def __init__(self, *, adds_bos: bool) -> None:
        self.control_tokens = {"<bos>": BOS, "<user>": USER, "<end>": END}
        self.bos = "<bos>"
        self.adds_bos = adds_bos

    def iterate_tokens(
        self, text: str, *, add_special: bool, parse_special: bool, guard: str = "", is_prompt: bool = False
    ) -> Iterator[list[int]]:
        yield [BOS] if add_special and self.adds_bos else []
        while text:
            control = next((t for t in self.control_tokens if parse_special and text.startswith(t)), None)
            yield [self.control_tokens[control]] if control else [ord(text[0])] if text[0] != guard else []
            text = text[len(control or text[0]) :]
        yield [END] if add_special and not is_prompt else []


def tokenize_prompt(model: CharTokenizer, text: str, guard: str) -> list[int]:
    return [token for part in iterate_prompt(model, text, guard) for token in part]


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


class Outcomes:
    """Adds texts to a queue, and records what becomes of them."""

    def __init__(self) -> None:
        self.queue = TokenizationQueue(n_ctx=100, n_ctx_train=100)
        self.steps: list[int] = []
        """Request ids in the order of the parts that were tokenised."""
        self.tokens: dict[int, list[int]] = {}
        self.errors: dict[int, Exception] = {}

    def add(self, request_id: int, n_parts: int, max_tokens: int | None = None) -> None:
        def parts() -> Iterator[list[int]]:
            for i in range(n_parts):
                self.steps.append(request_id)
                yield [i, i]

        def fail(error: Exception) -> None:
            self.errors[request_id] = error

        self.queue.add(request_id, parts(), lambda tokens: self.tokens.update({request_id: tokens}), fail, max_tokens)

    def run(self) -> None:
        while not self.queue.is_empty:
            self.queue.step()


def test_texts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_SLICE_S", -1.0)  # a slice of one part
    outcomes = Outcomes()
    for request_id, n_parts in ((1, 3), (2, 1), (3, 2)):
        outcomes.add(request_id, n_parts)
    outcomes.run()
    assert outcomes.steps == [1, 2, 3, 1, 3, 1]
    assert outcomes.tokens == {1: [0, 0, 1, 1, 2, 2], 2: [0, 0], 3: [0, 0, 1, 1]}


def test_cancelled_text_ends_between_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_SLICE_S", -1.0)
    outcomes = Outcomes()
    outcomes.add(1, 1000)
    outcomes.add(2, 2)
    for _ in range(3):
        outcomes.queue.step()
    outcomes.queue.cancel({1, 7})
    outcomes.run()
    assert outcomes.steps == [1, 2, 1, 2]
    assert outcomes.tokens == {2: [0, 0, 1, 1]}
    assert isinstance(outcomes.errors[1], RequestCancelledError)


def test_text_with_too_many_tokens_is_not_read_to_its_end() -> None:
    outcomes = Outcomes()
    outcomes.add(1, 1000, max_tokens=6)
    outcomes.add(2, 3, max_tokens=6)
    outcomes.run()
    assert outcomes.steps == [1, 1, 1, 1, 2, 2, 2]
    assert outcomes.tokens == {2: [0, 0, 1, 1, 2, 2]}
    assert str(outcomes.errors[1]).startswith("The text has more than 6 tokens, but the context holds 100 tokens.")


def test_error_of_one_text_leaves_the_others() -> None:
    outcomes = Outcomes()

    def fail() -> Iterator[list[int]]:
        yield [1]
        raise EngineError("no")

    outcomes.queue.add(1, fail(), lambda _: None, lambda error: outcomes.errors.update({1: error}), None)
    outcomes.add(2, 1)
    outcomes.run()
    assert str(outcomes.errors[1]) == "no"
    assert outcomes.tokens == {2: [0, 0]}


def test_tokens_outside_the_vocabulary_are_an_error() -> None:
    check_tokens([0, 9], 10)
    for tokens in ([-1], [0, 10]):
        with pytest.raises(EngineError, match=f"Token {tokens[-1]} is not in this model's vocabulary of 10"):
            check_tokens(tokens, 10)
