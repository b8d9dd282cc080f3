"""The Ollama dialect: complete responses, and streams of one JSON object per line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.generation import GenerationStats, TokenLogprobs
from edgechat.prompt.reply_parser import ParsedToolCall, ToolCallDelta
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.choices import Choice, ChoiceDelta, FinishReason, PromptProgress, UsageTotals
from edgechat.serve.dialects.error_bodies import make_error_body
from edgechat.serve.dialects.ollama import OllamaDialect, format_time, make_load_object
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import FakeQueue, chat_request

STATS = GenerationStats(
    prompt_tokens=30, cached_tokens=10, completion_tokens=8, ttft_s=0.1, prefill_tps=10.0, decode_tps=4.0
)


def make_dialect(*, is_chat: bool = True) -> OllamaDialect:
    builder = ChatResponseBuilder(FakeQueue(), chat_request(stream=True))  # type: ignore[arg-type]
    return OllamaDialect(builder, "model:latest", is_chat=is_chat)


def make_totals() -> UsageTotals:
    totals = UsageTotals()
    totals.add(STATS)
    return totals


def read_lines(parts: Sequence[bytes]) -> list[dict[str, Any]]:
    """Decode the parts of a stream; each is one line."""
    assert all(part.endswith(b"\n") and part.count(b"\n") == 1 for part in parts)
    return [json.loads(part) for part in parts]


TEXTS = st.text(max_size=8)
CALLS = st.lists(st.tuples(st.sampled_from(("f", "g")), st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2)))


@st.composite
def deltas(draw: st.DrawFn) -> list[ChoiceDelta]:
    """Return text in pieces, and calls whose arguments are split at random positions."""
    pieces = [ChoiceDelta(0, text) for text in draw(st.lists(TEXTS, max_size=5))]
    thoughts = [ChoiceDelta(0, reasoning=text) for text in draw(st.lists(TEXTS, max_size=3))]
    call_deltas: list[ToolCallDelta] = []
    for index, (name, arguments) in enumerate(draw(CALLS)):
        text = json.dumps(arguments)
        split = draw(st.integers(0, len(text)))
        call_deltas.append(ToolCallDelta(index, name, f"call_{index}", text[:split]))
        call_deltas.append(ToolCallDelta(index, "", f"call_{index}", text[split:]))
    n_last = draw(st.integers(0, len(call_deltas)))
    middle, last = call_deltas[: len(call_deltas) - n_last], call_deltas[len(call_deltas) - n_last :]
    reasons: tuple[FinishReason, ...] = ("tool_calls",) if call_deltas else ("stop", "length")
    reason = draw(st.sampled_from(reasons))
    calls = [ChoiceDelta(0, calls=(delta,)) for delta in middle]
    return [*thoughts, *pieces, *calls, ChoiceDelta(0, draw(TEXTS), calls=last, finish_reason=reason)]


@given(all_deltas=deltas(), is_chat=st.booleans())
def test_any_stream_is_ndjson_whose_pieces_are_the_reply(*, all_deltas: list[ChoiceDelta], is_chat: bool) -> None:
    dialect = make_dialect(is_chat=is_chat)
    parts = [part for delta in all_deltas for part in (*dialect.encode_delta(delta), *dialect.encode_delta(None))]
    *lines, end = read_lines([*parts, *dialect.encode_ping(), *dialect.encode_end(make_totals())])
    messages = [line["message"] if is_chat else line for line in [*lines, end]]
    text_name = "content" if is_chat else "response"
    assert "".join(message[text_name] for message in messages) == "".join(delta.content for delta in all_deltas)
    thoughts = "".join(message.get("thinking", "") for message in messages)
    assert thoughts == "".join(delta.reasoning for delta in all_deltas)
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    arguments = [json.dumps(call["arguments"]) for call in calls]
    sent = "".join(call.arguments for delta in all_deltas for call in delta.calls)
    assert "".join(arguments) == sent
    assert [call["index"] for call in calls] == list(range(len(calls)))
    assert not any(line["done"] for line in lines)
    assert end["done"]
    assert end["done_reason"] == ("length" if all_deltas[-1].finish_reason == "length" else "stop")
    assert all(line["model"] == "model:latest" for line in lines)


def test_call_that_was_cut_off_is_left_out() -> None:
    dialect = make_dialect()
    calls = (ToolCallDelta(0, "f", "a", "{}"), ToolCallDelta(1, "g", "b", '{"x": '))
    lines = read_lines(dialect.encode_delta(ChoiceDelta(0, calls=calls, finish_reason="length")))
    assert [call["function"]["name"] for line in lines for call in line["message"]["tool_calls"]] == ["f"]
    (end,) = read_lines(dialect.encode_end(make_totals()))
    assert end["done_reason"] == "length"


def test_complete_response_has_counts_and_durations_in_nanoseconds() -> None:
    choice = Choice(0)
    choice.content, choice.reasoning, choice.finish_reason = "Hi", "Hm.", "tool_calls"
    choice.calls = [ParsedToolCall("f", '{"a": 1}', "call_1"), ParsedToolCall("g", "", "call_2")]
    choice.logprobs = [TokenLogprobs(token_bytes=b"Hi", logprob=-1.0, top_logprobs=[])]
    body = make_dialect().make_body([choice], make_totals())
    assert body["message"] == {
        "role": "assistant", "content": "Hi", "thinking": "Hm.",
        "tool_calls": [
            {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
            {"id": "call_2", "function": {"index": 1, "name": "g", "arguments": {}}},
        ],
    }  # fmt: skip
    assert (body["done"], body["done_reason"], body["logprobs"][0]["token"]) == (True, "stop", "Hi")
    assert (body["prompt_eval_count"], body["eval_count"]) == (30, 8)
    assert (body["prompt_eval_duration"], body["eval_duration"]) == (2_000_000_000, 2_000_000_000)
    assert body["total_duration"] > 0
    assert "tool_calls" not in make_dialect().make_body([Choice(0)], make_totals())["message"]
    assert make_dialect(is_chat=False).make_body([choice], make_totals())["response"] == "Hi"


def test_time_has_nanoseconds() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000000000Z"
    assert format_time(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    body = make_load_object("m", is_chat=True, is_unload=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", body["created_at"])


@pytest.mark.parametrize(("is_unload", "reason"), [(False, "load"), (True, "unload")])
def test_request_without_a_prompt_is_answered_at_once(reason: str, *, is_unload: bool) -> None:
    chat_body = make_load_object("m", is_chat=True, is_unload=is_unload)
    assert (chat_body["message"]["content"], chat_body["done"], chat_body["done_reason"]) == ("", True, reason)
    assert make_load_object("m", is_chat=False, is_unload=is_unload)["response"] == ""


def test_progress_sends_nothing() -> None:
    assert make_dialect().encode_delta(PromptProgress(0, 10, 0, 5, 0.1)) == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/unknown", "/api/"])
def test_errors_have_one_message_that_names_ollamas_fields(path: str) -> None:
    assert make_error_body(ApiError(404, "model 'x' not found"), path) == {"error": "model 'x' not found"}
    error = ApiError(400, "json_schema: not valid JSON: line 1.")
    assert make_error_body(error, path) == {"error": "format: not valid JSON: line 1."}
    assert read_lines(make_dialect().encode_error(error)) == [make_error_body(error, path)]
