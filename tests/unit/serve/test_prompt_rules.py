"""Prompt rules remove volatile text from system prompts, and nothing else."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.renderer import PromptMessage
from edgechat.serve.prompt_rules import PROMPT_RULES, apply_prompt_rules


def apply(text: str, *names: str) -> str:
    [message] = apply_prompt_rules([PromptMessage("system", text)], names or PROMPT_RULES)
    return message.content


TODAY = dt.datetime.now(dt.timezone.utc).date().isoformat()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;\nYou are an agent.",
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=00b1c;\nYou are an agent.",
            "You are an agent.",
        ),
        (
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cch=fa690;You are Claude Code, an agent.\nYou help.",
            "x-anthropic-billing-header: cc_version=2.1.37.0d9; cch=00b1c;You are Claude Code, an agent.\nYou help.",
            "You are Claude Code, an agent.\nYou help.",
        ),
        (f"It is {TODAY}T14:05:09Z.", f"It is {TODAY}T14:06:59Z.", f"It is {TODAY}T14:00:00Z."),
        ("Current time: 14:05:09.123", "Current time: 14:06:59.5", "Current time: 14:00:00"),
        ("- Request-ID: 3f2a9c01d2ee\nHi", "- Request-ID: 77aa00000001\nHi", "- Request-ID: 0\nHi"),
        ('trace_id = "0af7651916cd43dd"', 'trace_id = "b7ad6b7169203331"', 'trace_id = "0"'),
        (
            "turn_id: 6f9619ff-8b86-d011-b42d-00cf4fc964ff", "turn_id: 16763be4-6022-406e-a950-fcd5018633ca",
            "turn_id: 0",
        ),
        ("Message ID: msg_01XFDUDYJgAACzvnptvVoYEL", "Message ID: msg_02YAAUDYJgAACzvnptvVoYEL", "Message ID: 0"),
    ],
)  # fmt: skip
def test_prompts_that_differ_only_in_volatile_text_become_equal(first: str, second: str, expected: str) -> None:
    assert apply(first) == apply(second) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The shop opens at 09:30:15 and closes at 18:00:00.", "Use IPv6 fe80::12:34:56.", "Today is 2026-11-29.",
        "Meeting: 2027-03-01 14:30:15, ends 2027-03-01 14:45:15", "Today the shop opens at 09:30:15.",
        "The request id is part of the answer.", "- request_id: required string", "trace_id: identifier of the trace",
        "Read the header x-anthropic-billing-header: if there is one.", "x-anthropic-billing-header: explain it\nHi",
        "Current score: 12:30", "message ids are short", "",
    ],
)  # fmt: skip
def test_other_texts_stay(text: str) -> None:
    assert apply(text) == text


def test_only_system_messages_and_enabled_rules_change() -> None:
    text = "Current time: 14:05:09"
    assert apply(text, "request-id") == text
    assert [m.content for m in apply_prompt_rules([PromptMessage("user", text)], PROMPT_RULES)] == [text]


PIECES = st.sampled_from([
    "x-anthropic-billing-header: cc_version=2.1; cch=fa690;", "\n", " ", f"{TODAY} 14:05:09", "Current time: 14:05:09",
    "request_id: 3f2a9c01d2ee", "trace_id=", "0af7651916cd43dd", "You are an agent.", ":", "é",
])  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
def test_rules_applied_twice_change_nothing_more(text: str) -> None:
    assert apply(apply(text)) == apply(text)


def test_only_the_beginning_of_a_huge_prompt_is_changed() -> None:
    line = "Current time: 14:05:09\n"
    changed = apply(line + "x" * (1 << 17) + "\n" + line)
    assert changed.startswith("Current time: 14:00:00\n")
    assert changed.endswith(line)
