"""Reasoning in the content of earlier replies, and tags at which templates cut contents."""

from __future__ import annotations

import pytest

from edgechat.prompt.inline_thoughts import find_searched_tags, split_reasoning, split_reply_start
from edgechat.prompt.reasoning import REASONING_FORMATS
from edgechat.prompt.renderer import PromptMessage
from tests.time_limit import ends_within

THINK = next(f for f in REASONING_FORMATS if f.start_tag == "<think>")
GPT_OSS = REASONING_FORMATS[0]


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nHmm\n</think>\n\nSo", "Hmm", "So"),
        (" <think></think>So", "", "So"),
        ("<think>a</think>\n<think>b</think>So <think>c</think>", "a\n\nb", "So <think>c</think>"),
        ("[THINK]Hmm[/THINK]So", "Hmm", "So"),  # of another model
        ("<think>Hmm", "", "<think>Hmm"), ("So </think>", "", "So </think>"),
        ("`<think>` </think>", "", None), ("", "", ""),
    ],
)  # fmt: skip
def test_reasoning_at_the_start_of_a_reply_is_split_off(content: str, reasoning: str, rest: str | None) -> None:
    expected = PromptMessage("assistant", content if rest is None else rest, reasoning)
    assert split_reasoning([PromptMessage("assistant", content)], THINK) == [expected]
    for message in (PromptMessage("user", content), PromptMessage("system", content)):
        assert split_reasoning([message], THINK) == [message]
    assert split_reasoning([PromptMessage("assistant", content)], None) == [PromptMessage("assistant", content)]


def test_reasoning_of_a_field_comes_first_and_the_prefix_of_the_content_is_removed() -> None:
    content = f"{GPT_OSS.start_tag}b{GPT_OSS.end_tag}{GPT_OSS.content_prefix}So"
    assert split_reasoning([PromptMessage("assistant", content, "a")], GPT_OSS) == [
        PromptMessage("assistant", "So", "a\n\nb")
    ]


def test_reasoning_is_split_in_linear_time() -> None:
    for content in ("<think></think>" * 50_000, "<think>" * 100_000, " " * 1_000_000, "<think></think> \n" * 50_000):
        with ends_within():
            split_reasoning([PromptMessage("assistant", content)], THINK)


def test_tags_that_a_template_searches_are_found() -> None:
    template = (
        """{{ m.content.split( "</a>", 1)[0] }}{% if '[B C]' in m.content and "<|d|>" not in x %}<e>{% endif %}"""
    )
    assert find_searched_tags(template) == ["</a>", "<|d|>", "[B C]"]
    assert find_searched_tags("{{ x.split('\\n') }}{% if 'image' in x %}{% endif %}") == []


@pytest.mark.parametrize(
    ("content", "reasoning", "rest", "placeholder"),
    [
        ("<think>\n", "x", "", "x"), ("<think>\nOkay, the user ", "Okay, the user ", "", ""),
        ("<think>\n\n</think>\n\n", "", "x", "x"), ("<think>a</think>", "a", "x", "x"),
        ("<think>a</think>\n\n  So ", "a", "  So ", ""), ("<think>a</think><think>b", "a\n\nb", "", ""),
        ("So", "", "So", ""), ("  ", "", "  ", ""), ("", "", "", ""), ("So <think>", "", "So <think>", ""),
    ],
)  # fmt: skip
def test_begun_reply_is_split_at_its_tags(content: str, reasoning: str, rest: str, placeholder: str) -> None:
    reply = PromptMessage("assistant", content)
    assert split_reply_start(reply, THINK) == (PromptMessage("assistant", rest, reasoning), placeholder)
    assert split_reply_start(reply, None) == (reply, "")
