"""Messages and streams of the Anthropic dialect, and error bodies."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.generation import GenerationStats
from edgechat.prompt.reply_parser import ParsedToolCall, ToolCallDelta
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, FinishReason, PromptProgress, UsageTotals
from edgechat.serve.dialects.anthropic import SIGNATURE, AnthropicDialect, make_model_list
from edgechat.serve.dialects.anthropic_requests import MessageResponseBuilder
from edgechat.serve.dialects.error_bodies import make_error_body
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import FakeQueue, chat_request

PROGRESS = PromptProgress(0, 100, 60, 80, 0.5)


def make_dialect() -> AnthropicDialect:
    return AnthropicDialect(MessageResponseBuilder(FakeQueue(), chat_request(stream=True)), ["END"])  # type: ignore[arg-type]


def make_totals() -> UsageTotals:
    totals = UsageTotals()
    totals.add(GenerationStats(
        prompt_tokens=100, cached_tokens=60, completion_tokens=7, ttft_s=0.0, prefill_tps=1.0, decode_tps=1.0
    ))  # fmt: skip
    return totals


def decode(part: bytes) -> dict[str, Any]:
    """Decode an event, and check that its name is its type."""
    name, data, *rest = part.decode().split("\n")
    assert rest == ["", ""]
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


def stream(*deltas: Delta) -> list[dict[str, Any]]:
    dialect = make_dialect()
    parts = [part for delta in deltas for part in dialect.encode_delta(delta)]
    return [decode(part) for part in [*parts, *dialect.encode_end(make_totals())]]


def assemble(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Assemble the message of a stream like the official client, and check the order of the events."""
    start, *events = events
    assert start["type"] == "message_start"
    message: dict[str, Any] = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    *events, delta, stop = events
    assert (delta["type"], stop) == ("message_delta", {"type": "message_stop"})
    blocks, is_open = message["content"], False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"] | ({"json": ""} if "input" in event["content_block"] else {}))
            is_open = True
            continue
        assert is_open
        assert event["index"] == len(blocks) - 1
        if event["type"] == "content_block_stop":
            is_open = False
            continue
        assert event["type"] == "content_block_delta"
        kind, name = event["delta"].pop("type"), next(iter(event["delta"]))
        assert kind == {"partial_json": "input_json_delta"}.get(name, f"{name}_delta")
        blocks[-1][name.replace("partial_", "")] += event["delta"][name]
    assert not is_open
    message |= delta["delta"] | {"usage": delta["usage"]}
    return message


def test_stream_of_a_reply_with_all_kinds_of_blocks() -> None:
    events = stream(
        PROGRESS, None, ChoiceDelta(0, reasoning="Hm"), ChoiceDelta(0, reasoning="m."), ChoiceDelta(0, "Look"),
        ChoiceDelta(0, "!", calls=[ToolCallDelta(0, "get_weather", "call_a.1", '{"ci')]),
        ChoiceDelta(0, "\n", calls=[ToolCallDelta(0, "", "call_a.1", 'ty": 1}'), ToolCallDelta(1, "b", "c", "{}")]),
        ChoiceDelta(0, finish_reason="tool_calls"),
    )  # fmt: skip
    assert events[0]["message"]["usage"] == {
        "input_tokens": 40, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 60, "output_tokens": 0,
    }  # fmt: skip
    message = assemble(events)
    assert message["id"].startswith("msg_")
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": SIGNATURE}, {"type": "text", "text": "Look!"},
        {"type": "tool_use", "id": "toolu_a_1", "name": "get_weather", "input": {}, "json": '{"city": 1}'},
        {"type": "text", "text": "\n"}, {"type": "tool_use", "id": "toolu_c", "name": "b", "input": {}, "json": "{}"},
    ]  # fmt: skip
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {
        "input_tokens": 40, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 60, "output_tokens": 7,
    }  # fmt: skip


TEXTS = st.text("ab", max_size=3)


@st.composite
def replies(draw: st.DrawFn) -> list[Delta]:
    """Draw the deltas of a reply. The calls of a reply begin and grow one after another."""
    deltas: list[Delta] = []
    n_calls = 0
    for _ in range(draw(st.integers(0, 12))):
        calls = []
        for _ in range(draw(st.integers(0, 2))):
            if n_calls and draw(st.booleans()):
                calls.append(ToolCallDelta(n_calls - 1, "", f"id{n_calls - 1}", draw(TEXTS)))
            else:
                calls.append(ToolCallDelta(n_calls, f"tool{n_calls}", f"id{n_calls}", draw(TEXTS)))
                n_calls += 1
        deltas.append(draw(st.sampled_from([None, PROGRESS, ChoiceDelta(0, draw(TEXTS), draw(TEXTS), calls)])))
        if not isinstance(deltas[-1], ChoiceDelta):
            n_calls -= sum(bool(call.name) for call in calls)
    return [*deltas, ChoiceDelta(0, draw(TEXTS), finish_reason=draw(st.sampled_from(["stop", "length"])))]


@given(replies())
def test_every_sequence_of_deltas_becomes_a_valid_stream(deltas: list[Delta]) -> None:
    output = [delta for delta in deltas if isinstance(delta, ChoiceDelta)]
    content = assemble(stream(*deltas))["content"]

    def join(block_type: str, name: str) -> str:
        return "".join(block[name] for block in content if block["type"] == block_type)

    assert join("text", "text") == "".join(delta.content for delta in output)
    assert join("thinking", "thinking") == "".join(delta.reasoning for delta in output)
    assert all(block["signature"] == SIGNATURE for block in content if block["type"] == "thinking")
    calls = [call for delta in output for call in delta.calls]
    arguments = {call.name: "" for call in calls if call.name}
    for call in calls:
        arguments[f"tool{call.call_index}"] += call.arguments
    assert {block["name"]: block["json"] for block in content if block["type"] == "tool_use"} == arguments
    assert all(a["type"] != b["type"] or a["type"] == "tool_use" for a, b in itertools.pairwise(content))


def test_stream_that_begins_with_silence_or_ends_with_an_error() -> None:
    dialect = make_dialect()
    start, ping = map(decode, dialect.encode_ping())
    assert start["type"] == "message_start"
    assert ping == {"type": "ping"}
    assert [decode(part)["type"] for part in dialect.encode_ping()] == ["ping"]
    assert dialect.encode_delta(PROGRESS) == []
    (error,) = map(decode, dialect.encode_error(ApiError(500, "The engine died.")))
    assert error == {"type": "error", "error": {"type": "api_error", "message": "The engine died."}}
    assert [event["type"] for event in stream()] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("finish_reason", "stop_string", "stop_reason"),
    [
        ("stop", "", "end_turn"), ("length", "", "max_tokens"), ("tool_calls", "", "tool_use"),
        ("stop", "END", "stop_sequence"), ("length", "END", "stop_sequence"), ("stop", "<|end|>", "end_turn"),
        ("tool_calls", "END", "tool_use"),
    ],
)  # fmt: skip
def test_stop_reason(finish_reason: FinishReason, stop_string: str, stop_reason: str) -> None:
    choice = Choice(0)
    choice.content, choice.finish_reason, choice.stop_string = "x", finish_reason, stop_string
    body = make_dialect().make_body([choice], make_totals())
    delta = ChoiceDelta(0, "x", finish_reason=finish_reason, stop_string=stop_string)
    for message in (body, assemble(stream(delta))):
        assert message["stop_reason"] == stop_reason
        assert message["stop_sequence"] == ("END" if stop_reason == "stop_sequence" else None)
        assert message["content"] == [{"type": "text", "text": "x"}]


def test_complete_message() -> None:
    choice = Choice(0)
    choice.reasoning, choice.finish_reason = "Hm", "tool_calls"
    choice.calls = [
        ParsedToolCall("get_weather", '{"city": "Paris"}', "call_1"), ParsedToolCall("a", "", "call_2"),
        ParsedToolCall("b", '{"cut', "call_3"),
    ]  # fmt: skip
    body = make_dialect().make_body([choice], make_totals())
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "model")
    thinking, *calls = body["content"]
    assert thinking == {"type": "thinking", "thinking": "Hm", "signature": SIGNATURE}
    assert [call["input"] for call in calls] == [{"city": "Paris"}, {}, {"arguments": '{"cut'}]
    assert calls[0] == {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/unknown"])
@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
        (404, "not_found_error"), (405, "invalid_request_error"), (413, "request_too_large"),
        (503, "overloaded_error"), (500, "api_error"),
    ],
)  # fmt: skip
def test_error_bodies(path: str, status: int, error_type: str) -> None:
    body = make_error_body(ApiError(status, "No."), path)
    assert body == {"type": "error", "error": {"type": error_type, "message": "No."}}


def test_overflow_error_has_the_words_by_which_agents_recognise_it() -> None:
    error = ApiError(400, "The prompt has 5 tokens.", code="context_length_exceeded")
    message = make_error_body(error, "/v1/messages")["error"]["message"]
    assert message == "prompt is too long: The prompt has 5 tokens."


def test_model_list() -> None:
    models = make_model_list(["a", "b"], 0)
    assert (models["first_id"], models["last_id"], models["has_more"]) == ("a", "b", False)
    assert models["data"][0] == {
        "type": "model", "id": "a", "display_name": "a", "created_at": "1970-01-01T00:00:00Z"
    }  # fmt: skip
