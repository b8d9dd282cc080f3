"""Titles: when a conversation needs one, and which model outputs are titles."""

from __future__ import annotations

import pytest

from edgechat.chat.messages import Conversation, Message, first_line
from edgechat.chat.titles import needs_title, parse_title
from edgechat.engine.generation import GenerationStats
from edgechat.engine.protocol import FinishReason, RequestFinished, TokensGenerated

STATS = GenerationStats(
    prompt_tokens=1, cached_tokens=0, completion_tokens=1, ttft_s=0.0, prefill_tps=0.0, decode_tps=0.0
)


def title_from(text: str, finish_reason: FinishReason = "stop") -> str:
    finished = RequestFinished(id=1, finish_reason=finish_reason, stats=STATS, context_tokens=1)
    return parse_title([TokensGenerated(id=1, text=text, tokens=[0]), finished])


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('"Sums of small numbers."', "Sums of small numbers"),
        ("Title: **Colours**", "Colours"),
        (" Rivers\n", "Rivers"),
        ("Two\nlines", ""),
        ("x" * 61, ""),
        ("", ""),
    ],
)
def test_title_is_one_short_line_without_quotes(text: str, title: str) -> None:
    assert title_from(text) == title


def test_truncated_output_is_no_title() -> None:
    assert title_from("Rivers of", "length") == ""


def test_conversation_needs_a_title_after_the_first_complete_reply() -> None:
    message = Message(id="1", role="user", text="What is a river?")
    reply = Message(id="2", parent_id="1", role="assistant", text="Water.", finish_reason="stop")
    untitled = Conversation(id="c", title=first_line(message.text))
    assert needs_title(untitled, [message, reply])
    assert not needs_title(untitled, [message])
    assert not needs_title(Conversation(id="c", title="Rivers"), [message, reply])


def test_first_line_skips_blank_lines_and_cuts_at_a_word() -> None:
    assert first_line("\n\n  What   about\tthis\nand that?") == "What about this"
    assert first_line("one two three", 9) == "one two…"
    assert first_line("x" * 20, 9) == "x" * 9 + "…"
