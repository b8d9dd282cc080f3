"""Rules for system prompts remove what changes without a meaning, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.renderer import PromptMessage
from edgechat.serve.prompt_rules import PROMPT_RULES, apply_prompt_rules


def apply(text: str, *names: str) -> str:
    [message] = apply_prompt_rules([PromptMessage("system", text)], names or PROMPT_RULES)
    return message.content


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;\nYou are an agent.",
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=00b1c;\nYou are an agent.",
            "You are an agent.",
        ),
        ("It is 2026-11-29T14:05:09Z.", "It is 2026-11-29T14:06:59Z.", "It is 2026-11-29T14:00:00Z."),
        ("Current time: 14:05:09.123", "Current time: 14:06:59.5", "Current time: 14:00:00"),
        ("- Request-ID: 3f2a-9c01d2ee\nHi", "- Request-ID: 77aa-00000001\nHi", "- Request-ID: 0\nHi"),
        ('trace_id = "0af7651916cd43dd"', 'trace_id = "b7ad6b7169203331"', 'trace_id = "0"'),
    ],
)
def test_prompts_that_differ_without_a_meaning_become_equal(first: str, second: str, expected: str) -> None:
    assert apply(first) == apply(second) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The shop opens at 09:30:15 and closes at 18:00:00.", "Use IPv6 fe80::12:34:56.", "Today is 2026-11-29.",
        "The request id is part of the answer.", "Read the header x-anthropic-billing-header: if there is one.",
        "Current score: 12:30", "message ids are short", "",
    ],
)  # fmt: skip
def test_other_texts_stay(text: str) -> None:
    assert apply(text) == text


def test_only_system_messages_and_enabled_rules_change() -> None:
    text = "Current time: 14:05:09"
    assert apply(text, "request-id") == text
    assert [m.content for m in apply_prompt_rules([PromptMessage("user", text)], PROMPT_RULES)] == [text]


@given(st.text(alphabet="x-:0123456789T \nCurrent=ad;", max_size=200))
def test_rules_applied_twice_change_nothing_more(text: str) -> None:
    assert apply(apply(text)) == apply(text)
