"""Choices assembled from engine events, and their usage."""

from __future__ import annotations

import pytest

from edgechat.engine.generation import GenerationStats
from edgechat.engine.protocol import TokensGenerated
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.prompt.reply_parser import ReplyParser
from edgechat.prompt.thoughts import ThoughtFinder
from edgechat.prompt.tool_formats import format_calls
from edgechat.serve.choices import Choice, UsageTotals, make_stop_fields


def refuse_call(**request: object) -> object:
    raise AssertionError(request)  # a format without a parser needs no library


def test_choice_separates_reasoning_text_and_calls() -> None:
    parser = ReplyParser(
        refuse_call, ReplyFormat(), ThoughtFinder("<think>", ()), tool_names=["get_time"], use_generic_calls=True
    )
    choice = Choice(0, parser)
    output = "<think>\nhm\n</think>\n\nYes. " + format_calls([("get_time", "{}")])
    deltas = [choice.feed(TokensGenerated(id=1, text=letter, tokens=[])) for letter in output]
    last = choice.finish("stop")
    assert "".join(d.reasoning for d in [*deltas, last]) == choice.reasoning == "hm"
    assert "".join(d.content for d in [*deltas, last]) == choice.content == "Yes. "
    assert [c.name for c in choice.calls] == ["get_time"]
    assert last.finish_reason == choice.finish_reason == "tool_calls"


def test_end_tag_alone_separates_reasoning_and_text() -> None:
    choice = Choice(0, ReplyParser(refuse_call, ReplyFormat(), ThoughtFinder("<think>", ())))
    output = "Secret</think>Answer"
    deltas = [choice.feed(TokensGenerated(id=1, text=letter, tokens=[])) for letter in output]
    deltas.append(choice.finish("stop"))
    assert "".join(d.content for d in deltas) == output  # a stream cannot take back what it has sent
    assert (choice.reasoning, choice.content) == ("Secret", "Answer")


def test_cancelled_choice_finishes_with_length() -> None:
    choice = Choice(0)
    choice.feed(TokensGenerated(id=1, text="Half", tokens=[]))
    assert choice.finish("cancelled").finish_reason == "length"


def test_choice_that_repeats_itself_finishes_with_length_and_a_stop_reason() -> None:
    choice = Choice(0)
    delta = choice.finish("repetition")
    assert (choice.finish_reason, choice.stop_reason) == ("length", "repetition_detected")
    assert (delta.finish_reason, delta.stop_reason) == ("length", "repetition_detected")
    assert make_stop_fields(choice.stop_reason) == {"stop_reason": "repetition_detected"}
    other = Choice(0)
    assert make_stop_fields(other.finish("stop").stop_reason) == {}


def test_usage_and_timings_of_several_requests_are_summed() -> None:
    totals = UsageTotals()
    assert totals.usage()["total_tokens"] == 0
    assert totals.timings()["prompt_per_second"] == 0
    for _ in range(2):
        totals.add(GenerationStats(
            prompt_tokens=10, cached_tokens=4, completion_tokens=5, ttft_s=0.1, prefill_tps=60.0, decode_tps=50.0,
            n_drafted=4, n_accepted=3, reasoning_tokens=2,
        ))  # fmt: skip
    usage, timings = totals.usage(), totals.timings()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (20, 10, 30)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 8
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 4, "accepted_prediction_tokens": 6, "rejected_prediction_tokens": 2
    }  # fmt: skip
    assert timings["prompt_n"] == 12
    assert timings["prompt_per_second"] == pytest.approx(60)
    assert timings["predicted_ms"] == pytest.approx(200)
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (8, 6)
