"""Differences between a prompt and the recent prompts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prefix.recent_prompts import PromptDifference, RecentPrompts

TOKENS = random.Random(3).sample(range(1 << 20), 1000)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TOKENS, PromptDifference(1000, 0)),
        ([*TOKENS, 1, 2], PromptDifference(1000, 0)),
        (TOKENS[:300], PromptDifference(300, 0)),
        ([*TOKENS[:200], 1, *TOKENS[201:]], PromptDifference(200, 784)),  # without the block of the changed token
        ([*TOKENS[:200], *[1] * 50, *TOKENS[200:]], PromptDifference(200, 800)),
        ([*TOKENS[:200], *reversed(TOKENS[200:])], PromptDifference(200, 0)),
        ([1, 2, 3], PromptDifference(0, 0)),
        ([], PromptDifference(0, 0)),
    ],
)
def test_difference_from_one_prompt(prompt: list[int], expected: PromptDifference) -> None:
    recent = RecentPrompts()
    recent.add(TOKENS)
    assert recent.compare(prompt) == expected


def test_prompt_with_most_of_the_tokens_is_compared() -> None:
    recent = RecentPrompts()
    assert recent.compare(TOKENS) == PromptDifference(0, 0)
    recent.add([*TOKENS[:10], *[1] * 500])
    recent.add([*TOKENS[:10], 2, *TOKENS[11:]])
    recent.add([*TOKENS[:10], *[3] * 500])
    assert recent.compare(TOKENS).n_common == 10
    assert recent.compare(TOKENS).n_repeated > 950


def test_copy_has_no_later_prompts() -> None:
    recent = RecentPrompts()
    copy = recent.copy()
    recent.add(TOKENS)
    assert copy.compare(TOKENS).n_common == 0
    assert recent.copy().compare(TOKENS).n_common == 1000


def test_only_the_beginning_of_a_long_prompt_is_compared() -> None:
    recent = RecentPrompts()
    recent.add(TOKENS * 50)
    assert recent.compare(TOKENS * 60) == PromptDifference(1 << 15, 0)


def test_oldest_prompts_are_discarded() -> None:
    recent = RecentPrompts()
    recent.add(TOKENS)
    for i in range(7):
        recent.add([i])
    assert recent.compare(TOKENS).n_common == 1000
    recent.add([7])
    assert recent.compare(TOKENS).n_common == 0


SHORT_PROMPTS = st.lists(st.integers(0, 2), max_size=80)


@given(st.lists(SHORT_PROMPTS, max_size=3), SHORT_PROMPTS)
def test_counts_are_within_the_prompt(earlier: list[list[int]], prompt: list[int]) -> None:
    recent = RecentPrompts()
    for tokens in earlier:
        recent.add(tokens)
    difference = recent.compare(prompt)
    lengths = [common_prefix_length(tokens, prompt) for tokens in earlier] or [0]
    assert difference.n_common in lengths
    assert difference.n_common + difference.n_repeated >= max(lengths)
    assert 0 <= difference.n_repeated <= len(prompt) - difference.n_common
