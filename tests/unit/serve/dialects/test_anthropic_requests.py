"""Translation of requests of the Anthropic Messages API to chat requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgechat.prompt.renderer import PromptMessage
from edgechat.serve import errors
from edgechat.serve.chat_prompt import make_template_messages
from edgechat.serve.dialects.anthropic_requests import make_chat_request
from edgechat.serve.dialects.anthropic_schemas import CountTokensRequest, MessagesRequest
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest, ThinkingOptions, ToolChoice
from edgechat.serve.tool_choice import select_tools

WEATHER = {"name": "get_weather", "description": "The weather", "input_schema": {"type": "object"}}


def convert(*, thinks_by_default: bool = False, **fields: Any) -> ChatRequest:
    body = {"max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]} | fields
    request = errors.decode_body(json.dumps(body).encode(), MessagesRequest)
    return make_chat_request(request, thinks_by_default=thinks_by_default)


def convert_messages(*messages: Any, **fields: Any) -> list[PromptMessage]:
    return make_template_messages(convert(messages=messages, **fields).messages, [], has_native_tools=True)


def test_tool_loop_becomes_template_messages() -> None:
    system, question, reply, *results, last = convert_messages(
        {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "I need it.", "signature": "x"},
            {"type": "redacted_thinking", "data": "secret"}, {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
            {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no city", "is_error": True},
            {"type": "text", "text": "Thanks."},
        ]},
        system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief.", "cache_control": None}],
    )  # fmt: skip
    assert (system.role, system.content) == ("system", "Be brief.")
    assert (question.role, question.content) == ("user", "Weather?")
    assert (reply.role, reply.content, reply.reasoning) == ("assistant", "Let me see.", "I need it.")
    calls = reply.extra_fields["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [{"city": "Paris"}, {}]
    assert [(result.role, result.content) for result in results] == [("tool", "rain"), ("tool", "Error: no city")]
    assert [result.extra_fields["tool_call_id"] for result in results] == [call["id"] for call in calls]
    assert (last.role, last.content) == ("user", "Thanks.")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "Error: "), ("Error: no", "Error: no"), ("no", "Error: no"),
        ([{"type": "text", "text": "no"}], "Error: no"),
    ],
)  # fmt: skip
def test_failed_tool_calls_are_marked(content: Any, text: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "1", "content": content, "is_error": True}
    (result,) = convert_messages({"role": "user", "content": [block]})
    assert result.content == text


def test_last_reply_is_continued_and_text_documents_are_read() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    question, reply = convert_messages(
        {"role": "user", "content": [document]}, {"role": "assistant", "content": "Once"}
    )
    assert question.content == "T\nD"
    assert (reply.role, reply.content) == ("assistant", "Once")


def test_parameters() -> None:
    request = convert(
        max_tokens=100.0, temperature=0.5, top_k=5, top_p=0.9, stop_sequences=["END"], stream=True, model="m",
        metadata={"user_id": "x"}, service_tier="auto",
    )  # fmt: skip
    assert (request.max_tokens, request.temperature, request.top_k, request.top_p) == (100, 0.5, 5, 0.9)
    assert (request.stop, request.stream, request.model) == (["END"], True, "m")


@pytest.mark.parametrize(
    ("choice", "expected", "must_call"),
    [
        (None, None, False), ({"type": "auto"}, "auto", False), ({"type": "any"}, "any", True),
        ({"type": "none"}, "none", False),
        ({"type": "tool", "name": "get_weather"}, ToolChoice("tool", name="get_weather"), True),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, expected: Any, *, must_call: bool) -> None:
    request = convert(tools=[WEATHER], tool_choice=choice)
    assert request.tool_choice == expected
    assert request.parallel_tool_calls is True
    tools, is_required = select_tools(request)
    assert is_required == must_call
    assert [tool.function.name for tool in tools] == ([] if expected == "none" else ["get_weather"])


def test_parallel_calls_can_be_disabled() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert convert(tools=[WEATHER], tool_choice=choice).parallel_tool_calls is False


@pytest.mark.parametrize("thinks_by_default", [False, True])
def test_thinking(*, thinks_by_default: bool) -> None:
    def thinking(**fields: Any) -> Any:
        return convert(thinks_by_default=thinks_by_default, **fields).thinking

    assert thinking() is thinks_by_default
    assert thinking(thinking={"type": "disabled"}) == ThinkingOptions("disabled")
    assert thinking(thinking={"type": "enabled", "budget_tokens": 1024}) == ThinkingOptions("enabled", 1024)
    assert thinking(thinking={"type": "adaptive"}) == ThinkingOptions("enabled")


def test_output_config() -> None:
    schema = {"type": "object"}
    request = convert(output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}})
    assert (request.reasoning_effort, request.json_schema) == ("low", schema)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"), ({"messages": [{"role": "tool", "content": ""}]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]"),
        ({"system": "x", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
          {"type": "image", "source": {"type": "base64", "data": ""}}]}]}, r"messages\[0\]\.content\[1\]: only text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [
          {"type": "image", "source": {}}]}]}]}, r"messages\[0\]\.content\[0\]: only text"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\]\.type"),
        ({"tools": [{"name": "x"}]}, r"tools\[0\]\.input_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, r"tool_choice\.name"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"), ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused_with_the_path_of_the_field(fields: Any, path: str) -> None:
    with pytest.raises(ApiError, match=path) as caught:
        convert(**fields)
    assert caught.value.status == 400


def test_count_of_tokens_needs_no_length_limit() -> None:
    body = errors.decode_body(b'{"messages": [{"role": "user", "content": "Hi"}]}', CountTokensRequest)
    assert make_chat_request(body, thinks_by_default=False).max_tokens is None


def test_texts_of_one_message_are_separate_lines() -> None:
    [message] = convert_messages({"role": "user", "content": [
        {"type": "text", "text": "<system-reminder>x</system-reminder>"}, {"type": "text", "text": "Question"},
        {"type": "text", "text": "\nEnd"},
    ]})  # fmt: skip
    assert message.content == "<system-reminder>x</system-reminder>\nQuestion\nEnd"


@pytest.mark.parametrize("is_error", [False, True])
def test_text_documents_in_tool_results_are_read(*, is_error: bool) -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "The text."}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [document], "is_error": is_error}
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    *_, message = convert_messages(
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    )  # fmt: skip
    assert message.content == ("Error: The text." if is_error else "The text.")


def test_earlier_form_of_the_output_format() -> None:
    schema = {"type": "object", "properties": {}}
    assert convert(output_format={"type": "json_schema", "schema": schema}).json_schema == schema
