"""Reasoning between tags in a content: several times, unclosed, in pieces; and text about tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.thoughts import KNOWN_TAGS, ThoughtFinder

EVERYWHERE = ThoughtFinder("", ["<think>", "</think>"])
AT_START = ThoughtFinder("no tags", ())


def test_tags_at_the_start_do_not_continue_reasoning_that_has_ended() -> None:
    text = "<thought>\nmore</think>"
    for is_final in (True, False):
        assert AT_START.split(text, is_final=is_final, follows_reasoning=True) == ("", text)
    assert AT_START.split("<thou", is_final=False, follows_reasoning=True) == ("", "<thou")
    assert EVERYWHERE.split("<think>a</think>b", is_final=True, follows_reasoning=True) == ("a", "b")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nSecret\n</think>\n\nAnswer", "Secret", "Answer"),
        ("Two<think>Three</think>Four", "Three", "TwoFour"),
        ("<think>a</think>b<think>c</think>d", "a\n\nc", "bd"),
        ("<think>a</think>\n\nb<think>c</think>d", "a\n\nc", "bd"),
        ("<think>still thinking", "still thinking", ""),
        ("<think></think>Answer", "", "Answer"),
        ("Answer", "", "Answer"),
    ],
)
def test_reasoning_is_found_anywhere_if_the_model_has_the_tags(content: str, reasoning: str, rest: str) -> None:
    assert EVERYWHERE.split(content, is_final=True) == (reasoning, rest)


def test_unknown_tags_count_only_at_the_beginning() -> None:
    assert AT_START.split("<think>Secret</think>Answer", is_final=True) == ("Secret", "Answer")
    text = "Models write `<think>` before and `</think>` after."
    assert AT_START.split(text, is_final=True) == ("", text)
    assert not AT_START.can_begin_anywhere
    assert EVERYWHERE.can_begin_anywhere
    assert AT_START.may_start_with_tag(" <thi")
    assert not AT_START.may_start_with_tag("<thing")


@pytest.mark.parametrize("tags", KNOWN_TAGS, ids=lambda tags: tags[0])
@given(
    texts=st.lists(st.text("ab <|/>k\n", max_size=8), min_size=1, max_size=4), cut=st.integers(0, 100),
    everywhere=st.booleans(),
)  # fmt: skip
def test_parts_of_a_partial_content_begin_those_of_the_whole(
    tags: tuple[str, str], texts: list[str], cut: int, *, everywhere: bool
) -> None:
    start, end = tags
    content = "".join(text + (start if i % 2 == 0 else end) for i, text in enumerate(texts)) + "end"
    finder = ThoughtFinder("", tags if everywhere else ())
    reasoning, rest = finder.split(content, is_final=True)
    partial_reasoning, partial_rest = finder.split(content[:cut], is_final=False)
    assert rest.startswith(partial_rest)
    assert reasoning.startswith(partial_reasoning.rstrip("\n"))


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("Secret\n</think>\n\nAnswer", "Secret", "Answer"),
        ("</think>Answer", "", "Answer"),
        ("<think>a</think>b", "", "<think>a</think>b"),
        ("The tag `</think>` ends it.", "", "The tag `</think>` ends it."),
        ("Answer", "", "Answer"),
    ],
)
def test_end_tag_alone_ends_the_reasoning(content: str, reasoning: str, rest: str) -> None:
    assert EVERYWHERE.split_unopened(content) == (reasoning, rest)
    assert AT_START.split_unopened(content) == ("", content)
