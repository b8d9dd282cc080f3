"""Complete responses and event streams of the Responses dialect, checked with the types of the official client."""

from __future__ import annotations

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from edgechat.engine.generation import GenerationStats, TokenLogprobs
from edgechat.prompt.reply_parser import ParsedToolCall, ToolCallDelta
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, FinishReason, PromptProgress, UsageTotals
from edgechat.serve.dialects.openai import PING
from edgechat.serve.dialects.openai_responses import ResponsesDialect
from edgechat.serve.dialects.openai_responses_items import (
    Item,
    MessageItem,
    ReasoningItem,
    find_reasoning,
    read_items,
    split_item_id,
)
from edgechat.serve.dialects.openai_responses_output import OutputWriter
from edgechat.serve.dialects.openai_responses_requests import ResponsesBuilder, make_echo_fields
from edgechat.serve.dialects.openai_responses_schemas import ResponsesRequest
from edgechat.serve.errors import ApiError, decode_body
from tests.unit.serve.examples import FakeQueue, chat_request

PROGRESS = PromptProgress(0, 100, 60, 80, 0.5)
EVENT_TYPES: dict[str, Any] = {
    typing.get_args(model.model_fields["type"].annotation)[0]: model
    for model in typing.get_args(typing.get_args(ResponseStreamEvent)[0])
}
BODY: dict[str, Any] = {
    "input": "Weather?", "instructions": "Be brief.", "metadata": {"a": "b"}, "max_output_tokens": 100.0,
    "tools": [
        {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": 1},
        {"type": "custom", "name": "run", "description": "Runs code"},
        {"type": "namespace", "name": "files", "description": "Files", "tools": [{"type": "function", "name": "read"}]},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": {
        "type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}],
    },
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
    "reasoning": {"effort": "low"}, "top_logprobs": 2,
}  # fmt: skip


def make_dialect(saved: list[bytes] | None = None, **options: bool) -> ResponsesDialect:
    builder = ResponsesBuilder(FakeQueue(), chat_request(stream=True))  # type: ignore[arg-type]
    body = decode_body(json.dumps(BODY).encode(), ResponsesRequest)
    writer = OutputWriter(builder.id, {"run"}, {"files.read": ("files", "read")}, **options)
    return ResponsesDialect(builder, writer, make_echo_fields(body), None if saved is None else saved.append)


def make_totals() -> UsageTotals:
    totals = UsageTotals()
    totals.add(GenerationStats(
        prompt_tokens=100, cached_tokens=60, completion_tokens=7, reasoning_tokens=3, ttft_s=0.0, prefill_tps=1.0,
        decode_tps=1.0,
    ))  # fmt: skip
    return totals


def decode(part: bytes) -> dict[str, Any]:
    """Decode an event, and check its name and its fields."""
    name, data, *rest = part.decode().split("\n")
    assert rest == ["", ""]
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    EVENT_TYPES[event["type"]].model_validate(event)
    return event


def decode_all(parts: list[bytes]) -> list[dict[str, Any]]:
    events = [decode(part) for part in parts]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def stream(*deltas: Delta, **options: bool) -> list[dict[str, Any]]:
    saved: list[bytes] = []
    dialect = make_dialect(saved, **options)
    parts = [part for delta in deltas for part in dialect.encode_delta(delta)]
    events = decode_all([*parts, *dialect.encode_end(make_totals())])
    assert json.loads(saved[0]) == events[-1]["response"]
    return events


def assemble(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Assemble the output of a stream, check the order of its events, and return its final response."""
    created, in_progress, *events, final = events
    assert [created["type"], in_progress["type"]] == ["response.created", "response.in_progress"]
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert final["type"] == f"response.{final['response']['status']}"
    items: list[dict[str, Any]] = []
    open_parts: dict[str, str] = {}
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            is_open, open_parts = True, {}
            continue
        assert is_open
        assert event["output_index"] == len(items) - 1
        if kind == "output_item.done":
            assert not open_parts
            assert event["item"]["id"] == items[-1]["id"]
            items[-1], is_open = event["item"], False
            continue
        assert event["item_id"] == items[-1]["id"]
        part, action = kind.rsplit(".", 1)
        if action == "added":
            continue
        if action == "delta":
            open_parts[part] = open_parts.get(part, "") + event["delta"]
        elif part not in {"content_part", "reasoning_summary_part"}:
            text = next(event[name] for name in ("text", "arguments", "input") if name in event)
            assert open_parts.pop(part, "") == text
    assert not is_open
    response: dict[str, Any] = final["response"]
    assert response["output"] == items
    Response.model_validate(response)
    return response


def test_stream_of_a_reply_with_all_kinds_of_items() -> None:
    events = stream(
        PROGRESS, None, ChoiceDelta(0, reasoning="Hm"), ChoiceDelta(0, reasoning="m."), ChoiceDelta(0, "Look"),
        ChoiceDelta(0, "!", calls=[ToolCallDelta(0, "get_weather", "call_a", '{"ci')]),
        ChoiceDelta(0, "\n", calls=[ToolCallDelta(0, "", "call_a", 'ty": 1}')]),
        ChoiceDelta(0, calls=[ToolCallDelta(1, "run", "call_b", '{"input": "ls\\n"}')]),
        ChoiceDelta(0, "And", calls=[ToolCallDelta(2, "b", "call_c", "{}")]),
        ChoiceDelta(0, finish_reason="tool_calls"), with_summary=True,
    )  # fmt: skip
    assert [event["type"].removeprefix("response.") for event in events[:13]] == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_summary_part.added",
        "reasoning_text.delta", "reasoning_summary_text.delta", "reasoning_text.delta", "reasoning_summary_text.delta",
        "reasoning_text.done", "content_part.done", "reasoning_summary_text.done", "reasoning_summary_part.done",
    ]  # fmt: skip
    response = assemble(events)
    reasoning, message, call, custom_call, text, last_call = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Hmm."}]
    assert message["content"] == [{"type": "output_text", "text": "Look!", "annotations": [], "logprobs": []}]
    assert (call["type"], call["name"], call["call_id"]) == ("function_call", "get_weather", "call_a")
    assert call["arguments"] == '{"city": 1}'
    assert (custom_call["type"], custom_call["input"]) == ("custom_tool_call", "ls\n")
    assert text["content"][0]["text"] == "And"
    assert last_call["arguments"] == "{}"
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["usage"] == {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 0},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 107,
    }  # fmt: skip


def test_response_repeats_the_fields_of_the_request() -> None:
    response = assemble(stream(ChoiceDelta(0, "x", finish_reason="stop")))
    assert {name: response[name] for name in ("instructions", "metadata", "max_output_tokens", "tool_choice")} == {
        name: BODY[name] for name in ("instructions", "metadata", "max_output_tokens", "tool_choice")
    }  # fmt: skip
    assert response["text"]["format"]["schema"] == {"type": "object"}
    assert response["tools"][0]["strict"] is True
    assert response["tools"][1]["format"] == {"type": "text"}
    assert [tool["type"] for tool in response["tools"]] == ["function", "custom", "namespace"]
    assert [tool["name"] for tool in response["tools"][2]["tools"]] == ["read"]
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert (response["store"], response["parallel_tool_calls"], response["truncation"]) == (True, True, "disabled")


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
                name = draw(st.sampled_from(["run", "tool"]))
                calls.append(ToolCallDelta(n_calls, name, f"id{n_calls}", draw(TEXTS)))
                n_calls += 1
        deltas.append(ChoiceDelta(0, draw(TEXTS), draw(TEXTS), calls))
        deltas.append(draw(st.sampled_from([None, PROGRESS])))
    return [*deltas, ChoiceDelta(0, draw(TEXTS), finish_reason=draw(st.sampled_from(["stop", "length"])))]


@given(replies(), st.booleans(), st.booleans())
def test_every_sequence_of_deltas_becomes_a_valid_stream(
    deltas: list[Delta], with_summary: bool, with_encoded_reasoning: bool
) -> None:  # fmt: skip
    events = stream(*deltas, with_summary=with_summary, with_encoded_reasoning=with_encoded_reasoning)
    response = assemble(events)
    output = [delta for delta in deltas if isinstance(delta, ChoiceDelta)]
    items = response["output"]

    def join(item_type: str) -> str:
        return "".join(item["content"][0]["text"] for item in items if item["type"] == item_type)

    assert join("message") == "".join(delta.content for delta in output)
    assert join("reasoning") == "".join(delta.reasoning for delta in output)
    arguments: dict[int, str] = {}
    for call in [call for delta in output for call in delta.calls]:
        arguments[call.call_index] = arguments.get(call.call_index, "") + call.arguments
    calls = [item for item in items if item["type"] in {"function_call", "custom_tool_call"}]
    assert len(calls) == len(arguments)
    for i, item in enumerate(calls):
        assert item["call_id"] == f"id{i}"
        assert item.get("arguments", item.get("input")) == arguments[i]
    is_cut = output[-1].finish_reason == "length"
    assert response["status"] == ("incomplete" if is_cut else "completed")
    assert (response["completed_at"] is None) == is_cut
    assert [item["status"] for item in items[:-1]] == ["completed"] * (len(items) - 1)
    assert items
    ids = [item["id"] for item in items]
    assert [split_item_id(item_id) for item_id in ids] == [(response["id"], i) for i in range(len(ids))]
    # The items of a response are valid input of the next request, with the same meaning.
    decoded = msgspec.json.decode(json.dumps(items), type=list[Item])
    read = read_items(items, lambda item_id, path: pytest.fail(f"{item_id} {path}"))
    for item, read_item in zip(decoded, read, strict=True):
        if isinstance(item, ReasoningItem):
            assert isinstance(read_item, ReasoningItem)
            assert find_reasoning(read_item) == find_reasoning(item)
        elif not isinstance(item, MessageItem):
            assert read_item == item


def test_stream_that_begins_with_silence_or_ends_with_an_error() -> None:
    saved: list[bytes] = []
    dialect = make_dialect(saved)
    *start, ping = dialect.encode_ping()
    assert ping == PING
    assert dialect.encode_ping() == [PING]
    text = dialect.encode_delta(ChoiceDelta(0, "A"))
    error = dialect.encode_error(ApiError(500, "The engine died.", code="engine_died"))
    events = decode_all_failed([*start, *text, *error])
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert (events[-2]["message"], events[-2]["code"]) == ("The engine died.", "engine_died")
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"] == {"code": "engine_died", "message": "The engine died."}
    assert not saved
    created, in_progress, error_event, failed = decode_all(list(make_dialect().encode_error(ApiError(500, "No."))))
    assert [created["type"], in_progress["type"]] == ["response.created", "response.in_progress"]
    assert (error_event["type"], failed["response"]["error"]["code"]) == ("error", "server_error")


def test_silent_stream_has_an_event_after_ten_comments() -> None:
    dialect = make_dialect()
    parts = [part for _ in range(25) for part in dialect.encode_ping()]
    assert [i for i, part in enumerate(parts) if part != PING] == [0, 1, 12, 23]
    events = decode_all([part for part in parts if part != PING])
    assert {event["type"] for event in events[1:]} == {"response.in_progress"}
    dialect.encode_delta(ChoiceDelta(0, "A"))
    assert all(dialect.encode_ping() == [PING] for _ in range(10))


def decode_all_failed(parts: list[bytes]) -> list[dict[str, Any]]:
    """Decode events, of which the last has an error code of edgechat that the types of the client do not list."""
    return [*decode_all(parts[:-1]), json.loads(parts[-1].split(b"data: ")[1])]


@pytest.mark.parametrize(
    ("finish_reason", "status", "details"),
    [
        ("stop", "completed", None), ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
    ],
)  # fmt: skip
def test_status(finish_reason: FinishReason, status: str, details: Any) -> None:
    choice = Choice(0)
    choice.content, choice.finish_reason, choice.stop_reason = "x", finish_reason, "repetition_detected"
    saved: list[bytes] = []
    body = json.loads(msgspec.json.encode(make_dialect(saved).make_body([choice], make_totals())))
    Response.model_validate(body)
    assert json.loads(saved[0]) == body
    delta = ChoiceDelta(0, "x", finish_reason=finish_reason, stop_reason="repetition_detected")
    for response in (body, assemble(stream(delta))):
        assert (response["status"], response["incomplete_details"]) == (status, details)
        assert response["output"][0]["status"] == status
        assert response["stop_reason"] == "repetition_detected"


def test_complete_response() -> None:
    choice = Choice(0)
    choice.reasoning, choice.finish_reason = "Hm", "tool_calls"
    choice.calls = [
        ParsedToolCall("get_weather", '{"city": "Paris"}', "call_1"), ParsedToolCall("run", '{"input": 5}', "call_2"),
        ParsedToolCall("run", '{"input": "cu', "call_3"),
    ]  # fmt: skip
    body = json.loads(msgspec.json.encode(make_dialect().make_body([choice], make_totals())))
    Response.model_validate(body)
    assert (body["object"], body["model"], body["error"]) == ("response", "model", None)
    reasoning, call, *custom_calls = body["output"]
    assert (reasoning["summary"], reasoning["content"][0]["text"]) == ([], "Hm")
    assert call == {
        "type": "function_call", "id": call["id"], "call_id": "call_1", "name": "get_weather",
        "arguments": '{"city": "Paris"}', "namespace": None, "status": "completed",
    }  # fmt: skip
    assert [call["input"] for call in custom_calls] == ['{"input": 5}', '{"input": "cu']


def test_empty_replies() -> None:
    (message,) = assemble(stream(ChoiceDelta(0, finish_reason="stop")))["output"]
    assert message["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    cut = assemble(stream(ChoiceDelta(0, reasoning="Hm", finish_reason="length")))
    assert [(item["type"], item["status"]) for item in cut["output"]] == [("reasoning", "incomplete")]
    thought = assemble(stream(ChoiceDelta(0, reasoning="Hm", finish_reason="stop")))
    assert [item["type"] for item in thought["output"]] == ["reasoning", "message"]


def test_call_of_a_function_in_a_namespace() -> None:
    calls = [ToolCallDelta(0, "files.read", "call_a", "{}")]
    (call,) = assemble(stream(ChoiceDelta(0, calls=calls, finish_reason="tool_calls")))["output"]
    assert (call["type"], call["namespace"], call["name"]) == ("function_call", "files", "read")


def test_logprobs_belong_to_the_text() -> None:
    tokens = [TokenLogprobs(text, -0.5, [(text, -0.5)]) for text in (b"a", b"b", b"c")]
    deltas = [
        ChoiceDelta(0, logprobs=tokens[:1]), ChoiceDelta(0, "ab", logprobs=tokens[1:2]),
        ChoiceDelta(0, "c", logprobs=tokens[2:]), ChoiceDelta(0, finish_reason="stop"),
    ]  # fmt: skip
    events = stream(*deltas)
    sent = [[entry["token"] for entry in e["logprobs"]] for e in events if e["type"] == "response.output_text.delta"]
    assert sent == [["a", "b"], ["c"]]
    (part,) = assemble(events)["output"][0]["content"]
    assert [entry["token"] for entry in part["logprobs"]] == ["a", "b", "c"]
