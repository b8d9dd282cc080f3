"""Translation of requests of the Responses API to chat requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.serve import errors
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.dialects.openai_responses_items import Item, read_items
from edgechat.serve.dialects.openai_responses_requests import (
    ResponsesBuilder,
    check_supported_fields,
    find_custom_tools,
    find_namespaces,
    find_summary_option,
    make_chat_request,
    make_echo_fields,
    stores_response,
)
from edgechat.serve.dialects.openai_responses_schemas import ResponsesRequest
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import SystemMessage, UserMessage
from edgechat.serve.reasoning import find_effort
from edgechat.serve.schemas import ChatRequest, JsonFormat, SchemaFormat, TextFormat
from edgechat.serve.tool_choice import select_tools
from tests.unit.serve.examples import FakeQueue, chat_request

WEATHER = {"type": "function", "name": "get_weather", "description": "The weather", "parameters": {"type": "object"}}
RUN = {"type": "custom", "name": "run"}


def decode(**fields: Any) -> ResponsesRequest:
    return errors.decode_body(json.dumps({"input": "Hi"} | fields).encode(), ResponsesRequest)


def find_no_item(item_id: str, path: str) -> Item:
    raise ApiError(400, f"{path}: {item_id} not found.", param=path)


def convert(**fields: Any) -> ChatRequest:
    body = decode(**fields)
    check_supported_fields(body)
    make_echo_fields(body)
    return make_chat_request(body, read_items(body.input, find_no_item))


def test_parameters() -> None:
    request = convert(
        instructions="Be brief.", max_output_tokens=100.0, temperature=0.5, top_p=0.9, seed=7, top_k=5, min_p=0.1,
        stream=True, model="m", user="x", prompt_cache_key="y", service_tier="auto", safety_identifier=5,
        stream_options={"include_obfuscation": False}, truncation="auto", max_tool_calls=5, background=False,
        unknown={"a": 1},
    )  # fmt: skip
    assert request.messages == [SystemMessage("Be brief."), UserMessage("Hi")]
    assert (request.max_tokens, request.temperature, request.top_p) == (100, 0.5, 0.9)
    assert (request.seed, request.top_k, request.min_p) == (7, 5, 0.1)
    assert (request.stream, request.model, request.logprobs) == (True, "m", False)


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        (None, ["get_weather", "run"], False), ("auto", ["get_weather", "run"], False), ("none", [], False),
        ("required", ["get_weather", "run"], True), ({"type": "function", "name": "get_weather"}, None, True),
        ({"type": "custom", "name": "run"}, None, True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "run"}]}, ["run"], False),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
         ["get_weather"], True),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, names: list[str] | None, *, must_call: bool) -> None:
    request = convert(tools=[WEATHER, RUN], tool_choice=choice, parallel_tool_calls=False)
    assert request.parallel_tool_calls is False
    tools, is_required = select_tools(request)
    assert is_required == must_call
    assert [tool.function.name for tool in tools] == (names if names is not None else [choice["name"]])


def test_tools() -> None:
    body = decode(tools=[WEATHER | {"strict": True}, RUN | {"format": {"type": "text"}}])
    assert find_custom_tools(body) == {"run"}
    weather, run = make_chat_request(body, read_items(body.input, find_no_item)).tools or []
    assert (weather.function.strict, weather.function.parameters) == (True, {"type": "object"})
    assert run.function.parameters is not None
    assert run.function.parameters["required"] == ["input"]


def test_namespaces_and_searches_without_access_to_the_web() -> None:
    namespace = {"type": "namespace", "name": "files", "tools": [WEATHER | {"name": "read"}]}
    search = {"type": "web_search", "external_web_access": False}
    body = decode(tools=[namespace, search, RUN])
    assert find_namespaces(body) == {"files.read": ("files", "read")}
    tools = make_chat_request(body, read_items(body.input, find_no_item)).tools or []
    assert [tool.function.name for tool in tools] == ["files.read", "run"]
    assert convert(tools=[search]).tools is None


def test_text_format() -> None:
    assert convert().response_format is None
    assert isinstance(convert(text={"format": {"type": "text"}, "verbosity": "low"}).response_format, TextFormat)
    assert isinstance(convert(text={"format": {"type": "json_object"}}).response_format, JsonFormat)
    schema = {"type": "object", "properties": {}}
    text_format = convert(text={"format": {"type": "json_schema", "name": "x", "schema": schema}}).response_format
    assert isinstance(text_format, SchemaFormat)
    assert text_format.json_schema is not None
    assert text_format.json_schema.schema == schema


def test_reasoning() -> None:
    assert find_effort(convert(reasoning={"effort": "low", "summary": "auto"})) == "low"
    assert find_effort(convert(reasoning={"effort": None})) is None
    assert find_effort(convert()) is None
    assert find_summary_option(decode(reasoning={"summary": "auto"})) == "auto"
    assert find_summary_option(decode(reasoning={"generate_summary": "concise"})) == "concise"
    assert find_summary_option(decode()) is None


def test_logprobs() -> None:
    assert convert(include=["message.output_text.logprobs"]).logprobs is True
    request = convert(top_logprobs=3.0)
    assert (request.logprobs, request.top_logprobs) == (True, 3)


@pytest.mark.parametrize(("value", "is_stored"), [(None, True), (True, True), (False, False), (0, False)])
def test_store(value: Any, *, is_stored: bool) -> None:
    assert stores_response(decode(store=value)) == is_stored
    assert msgspec.json.decode(make_echo_fields(decode(store=value))["store"]) is is_stored


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"), ({"input": []}, "input"), ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"), ({"prompt": {"id": "x"}}, "prompt"),
        ({"messages": []}, "messages"), ({"max_tokens": 5}, "max_tokens"), ({"response_format": {}}, "response_format"),
        ({"grammar": "root ::= x"}, "grammar"), ({"guided_json": {}}, "guided_json"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search", "external_web_access": True}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": [WEATHER, RUN]}]}, "tools[0].tools[1].type"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [RUN | {"format": {"type": "grammar", "syntax": "lark"}}]}, "tools[0].format"),
        ({"temperature": 3}, "temperature"), ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "middle"}, "truncation"), ({"metadata": {"a": 5}}, "metadata[...]"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"), ({"top_logprobs": 21}, "top_logprobs"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused_with_the_path_of_the_field(fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        convert(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("chat_param", "param"),
    [
        ("response_format.json_schema.schema", "text.format.schema"), ("response_format", "text.format"),
        ("messages[3].tool_calls[0].function.arguments", "input"), ("messages", "input"),
        ("tools[2].function.parameters.type", "tools[2].parameters.type"), ("max_tokens", "max_output_tokens"),
        ("tool_choice", "tool_choice"),
    ],
)  # fmt: skip
def test_errors_name_the_fields_of_this_api(monkeypatch: pytest.MonkeyPatch, chat_param: str, param: str) -> None:
    async def build_requests(self: ChatResponseBuilder) -> Any:
        raise ApiError(400, f"{chat_param}: wrong.", param=chat_param, code="x")

    monkeypatch.setattr(ChatResponseBuilder, "build_requests", build_requests)

    builder = ResponsesBuilder(FakeQueue(), chat_request())  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        asyncio.run(builder.build_requests())
    assert (str(caught.value), caught.value.param, caught.value.code) == (f"{param}: wrong.", param, "x")


TEXTS = st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4,
)  # fmt: skip
ITEM_TYPES = st.sampled_from([
    "message", "function_call", "function_call_output", "reasoning", "item_reference", "custom_tool_call",
    "custom_tool_call_output", "computer_call",
])  # fmt: skip
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image"])})
ITEMS = st.fixed_dictionaries({}, optional={
    "type": ITEM_TYPES | JSON, "role": st.sampled_from(["user", "assistant", "developer"]) | JSON,
    "content": TEXTS | st.lists(PARTS | JSON, max_size=2) | JSON, "id": TEXTS | JSON, "call_id": TEXTS | JSON,
    "name": TEXTS | JSON, "arguments": TEXTS | JSON, "output": TEXTS | JSON, "input": TEXTS | JSON,
    "summary": JSON, "encrypted_content": JSON, "status": JSON,
})  # fmt: skip
NAMES = st.sampled_from([*ResponsesRequest.__struct_fields__])
BODIES = st.builds(
    lambda fields, body_input: fields | {"input": body_input},
    st.dictionaries(NAMES, JSON, max_size=4), TEXTS | st.lists(ITEMS, max_size=3) | JSON,
)  # fmt: skip


@given(BODIES)
def test_random_bodies_become_a_chat_request_or_an_error(fields: dict[str, Any]) -> None:
    try:
        request = convert(**fields)
    except ApiError as error:
        msgspec.json.encode(error.body())
        status = error.status
    else:
        assert request.messages
        status = 200
    assert status in {200, 400}
