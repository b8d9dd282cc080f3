"""Splitting texts at special tokens, compared with llama.cpp's algorithm: one token after the other, longest first."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.runtime.special_tokens import (
    SpecialToken,
    SpecialTokenSplitter,
    choose_guard,
    compile_pattern,
    guard_text,
)
from tests.time_limit import ends_within

TOKENS = [
    SpecialToken("<a>", 1),
    SpecialToken("<a>b", 2),
    SpecialToken("b<", 3),
    SpecialToken("\n\n", 4),
    SpecialToken("\n\n\n", 5),
    SpecialToken("<end>", 6, strips_right=True),
    SpecialToken("<mask>", 7, strips_left=True),
    SpecialToken("><", 8),
]


def split_like_llama(text: str, tokens: list[SpecialToken]) -> list[str | int]:
    parts: list[str | int] = [text] if text else []
    for token in sorted(tokens, key=lambda token: -len(token.text)):
        parts = [new_part for part in parts for new_part in split_part(part, token)]
    return parts


def split_part(part: str | int, token: SpecialToken) -> list[str | int]:
    if isinstance(part, int):
        return [part]
    left, found, right = part.partition(token.text)
    if not found:
        return [part] if part else []
    left = left.rstrip() if token.strips_left else left
    right = right.lstrip() if token.strips_right else right
    return [*([left] if left else []), token.token, *split_part(right, token)]


@given(st.lists(st.sampled_from([*(t.text for t in TOKENS), "<", ">", "\n", " ", "b", "x"])).map("".join))
def test_parts_equal_those_of_llama(text: str) -> None:
    assert list(SpecialTokenSplitter(TOKENS).split(text)) == split_like_llama(text, TOKENS)


# llama.cpp sorts tokens of equal length in no particular order.
RANDOM_TOKENS = st.lists(
    st.builds(SpecialToken, st.text("ab ", min_size=1, max_size=6), st.just(0), st.booleans(), st.booleans()),
    max_size=5, unique_by=lambda token: len(token.text),
).map(lambda tokens: [token._replace(token=number) for number, token in enumerate(tokens)])  # fmt: skip


@given(RANDOM_TOKENS, st.text("ab ", max_size=40))
@example([SpecialToken("bb", 1), SpecialToken("baa ", 2)], "   bbaa ")
@example([SpecialToken("  ", 1), SpecialToken("  a", 2)], "   a")
@example([SpecialToken("a ", 1), SpecialToken("   ", 2)], "a   ")
@example([SpecialToken("<end>", 1, strips_right=True), SpecialToken("  ", 2)], "<end>  a")
@example([SpecialToken(" ", 1, strips_right=True)], "a  b")
@example([SpecialToken("<end>", 1, strips_left=True), SpecialToken("a ", 2)], "a <end>")
def test_parts_of_random_tokens_equal_those_of_llama(tokens: list[SpecialToken], text: str) -> None:
    assert list(SpecialTokenSplitter(tokens).split(text)) == split_like_llama(text, tokens)


@given(st.lists(st.text("ab<>", min_size=1), min_size=1, unique=True), st.text("ab<>", max_size=200))
def test_pattern_matches_the_longest_text(texts: list[str], text: str) -> None:
    flat_pattern = "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True))
    assert compile_pattern(texts).findall(text) == re.findall(flat_pattern, text)


def test_no_special_tokens() -> None:
    assert list(SpecialTokenSplitter([]).split("a<b>")) == ["a<b>"]
    assert list(SpecialTokenSplitter(TOKENS).split("")) == []
    assert compile_pattern([]).search("a") is None


@pytest.mark.parametrize("text", ["<" * 1_000_000, "<unused" * 100_000, "<unused7>" * 100_000])
def test_time_hardly_depends_on_the_number_of_tokens(text: str) -> None:
    splitter = SpecialTokenSplitter([SpecialToken(f"<unused{i}>", i) for i in range(6000)])
    list(splitter.split("<"))
    with ends_within():  # a flat alternation takes minutes
        assert list(splitter.split(text)) == ([text] if "7" not in text else [7] * 100_000)


def test_many_nested_tokens() -> None:
    splitter = SpecialTokenSplitter([SpecialToken("a" * n, n) for n in range(1, 600)])
    assert list(splitter.split("a" * 700 + "b")) == [599, 101, "b"]


def test_guard_is_a_character_that_the_text_lacks() -> None:
    assert choose_guard("text") == "\ufdd0"
    assert choose_guard("\ufdd0\ufdd1") == "\ufdd2"
    assert choose_guard("".join(map(chr, range(0xFDD0, 0xFDF0)))) == ""


def test_guarded_text_has_no_match_also_where_matches_overlap() -> None:
    pattern = compile_pattern(["<a>", "><"])
    guarded_text = guard_text("<a><a>", pattern, "|")
    assert pattern.search(guarded_text) is None
    assert guarded_text.replace("|", "") == "<a><a>"
    assert guard_text("<a>", pattern, "") == "<a>"
