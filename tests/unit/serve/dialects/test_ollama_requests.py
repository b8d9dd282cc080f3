"""Requests of the Ollama API, converted to requests of the OpenAI API."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.serve import errors
from edgechat.serve.dialects.ollama_requests import (
    is_load_request,
    is_unload_request,
    make_chat_request,
    make_generate_request,
    make_messages,
)
from edgechat.serve.dialects.ollama_schemas import (
    OllamaChatRequest,
    OllamaFunctionCall,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaToolCall,
)
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from edgechat.serve.schemas import ChatRequest, CompletionRequest

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> ChatRequest:
    body = errors.decode_body(json.dumps({"model": "m", "messages": HELLO} | fields).encode(), OllamaChatRequest)
    return make_chat_request(body)


def generate(**fields: Any) -> ChatRequest | CompletionRequest:
    body = {"model": "m", "prompt": "Hello"} | fields
    return make_generate_request(errors.decode_body(json.dumps(body).encode(), OllamaGenerateRequest))


def test_responses_are_streams_unless_the_client_turns_them_off() -> None:
    assert chat().stream
    assert not chat(stream=False).stream
    assert generate().stream
    assert not generate(stream=False).stream


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_predict": 7}, {"max_tokens": 7}), ({"num_predict": -1}, {"max_tokens": -1}),
        ({"num_predict": -2}, {"max_tokens": -1}), ({"num_predict": 0}, {"max_tokens": -1}),
        ({"num_predict": 5.0}, {"max_tokens": 5}), ({"num_predict": 10**30}, {"max_tokens": 1 << 53}),
        ({"temperature": 0, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0, "top_p": 0.5, "min_p": 0.1}),
        ({"top_k": 20}, {"top_k": 20}), ({"top_k": -5}, {"top_k": -1}), ({"typical_p": 0.7}, {"typical_p": 0.7}),
        ({"seed": 42, "stop": ["a", "b"]}, {"seed": 42, "stop": ["a", "b"]}), ({"stop": "a"}, {"stop": "a"}),
        ({"repeat_penalty": 1.1, "repeat_last_n": 64}, {"repeat_penalty": 1.1}),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, {"repeat_penalty": 1.0, "presence_penalty": 0.0}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2}, {"mirostat": 2, "mirostat_tau": 4}),
        ({"num_ctx": 4096, "num_gpu": 1, "num_keep": 4, "num_batch": 512, "unknown": "x"}, {"max_tokens": None}),
        ({"temperature": None, "stop": None}, {"temperature": None, "stop": None}),
    ],
)  # fmt: skip
def test_options_become_fields_of_the_request(options: dict[str, Any], expected: dict[str, Any]) -> None:
    for request in (chat(options=options), generate(options=options), generate(options=options, raw=True)):
        assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "path"),
    [({"num_predict": "7"}, "options.num_predict"), ({"top_p": 2}, "options.top_p"), ({"stop": [1]}, "options.stop"),
     ({"seed": 1.5}, "options.seed"), ({"temperature": -1}, "options.temperature")],
)  # fmt: skip
def test_invalid_option_is_refused_by_its_name(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ApiError, match=path):
        chat(options=options)


NUMBERS = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3), st.booleans()
)
NAMES = ("num_predict", "top_k", "top_p", "temperature", "seed", "stop", "repeat_last_n", "mirostat", "num_ctx", "x")


@given(st.dictionaries(st.sampled_from(NAMES), NUMBERS))
@example({"top_k": (1 << 53) + 1})
@example({"num_predict": (1 << 53) + 1})
@example({"seed": 1 << 63})
def test_accepted_options_are_valid_for_the_internal_request(options: dict[str, Any]) -> None:
    try:
        request = chat(options=options)
    except ApiError:  # the values of some options have bounds
        return
    fields = {name: getattr(request, name) for name in ("max_tokens", "top_k", "top_p", "seed", "stop", "mirostat")}
    msgspec.convert(fields | {"messages": HELLO}, ChatRequest)


def test_reasoning_is_switched_or_limited() -> None:
    assert chat().enable_thinking is None
    assert chat(think=False).enable_thinking is False
    assert (chat(think=True).enable_thinking, chat(think=True).reasoning_effort) == (True, None)
    for level in ("low", "medium", "high", "max"):
        assert (chat(think=level).enable_thinking, chat(think=level).reasoning_effort) == (True, level)
    with pytest.raises(ApiError, match="think: must be"):
        chat(think="much")


def test_format_is_json_or_a_schema() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    for make_request in (chat, generate, lambda **fields: generate(raw=True, **fields)):
        assert make_request(format="json").json_schema == {"type": "object"}
        assert make_request(format=schema).json_schema == schema
        assert make_request(format=json.dumps(schema)).json_schema == schema
        assert make_request(format="").json_schema is None
        assert make_request(format=None).json_schema is None
        for invalid in ("xml", "[1]"):
            with pytest.raises(ApiError, match="format"):
                make_request(format=invalid)


def test_tool_results_belong_to_the_calls_by_name_or_order() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Paris"}}} for name in ("weather", "time", "weather")]
    request = chat(messages=[
        {"role": "System", "content": "Be brief."}, *HELLO,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "content": "12:00", "tool_name": "time"}, {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "sun", "name": "weather"},
    ])  # fmt: skip
    system, user, reply, *results = request.messages
    assert isinstance(system, SystemMessage)
    assert isinstance(user, UserMessage)
    assert isinstance(reply, AssistantMessage)
    assert reply.reasoning_content == "Hm."
    ids = [call.id for call in reply.tool_calls or ()]
    assert len(set(ids)) == 3
    assert [(m.tool_call_id, m.content) for m in results if isinstance(m, ToolMessage)] == [
        (ids[1], "12:00"), (ids[0], "rain"), (ids[2], "sun"),
    ]  # fmt: skip


MESSAGES = st.builds(
    OllamaMessage, st.sampled_from(("user", "assistant", "tool", "system", "TOOL")), st.just("text"),
    tool_calls=st.lists(st.builds(OllamaToolCall, st.builds(OllamaFunctionCall, st.sampled_from("abc"))), max_size=3),
    tool_name=st.sampled_from(("a", "b", None)),
)  # fmt: skip


@given(st.lists(MESSAGES, max_size=12))
def test_no_call_has_two_results(messages: list[OllamaMessage]) -> None:
    converted_messages = make_messages(messages)
    assert len(converted_messages) == len(messages)
    call_ids = [c.id for m in converted_messages if isinstance(m, AssistantMessage) for c in m.tool_calls or ()]
    result_ids = [m.tool_call_id for m in converted_messages if isinstance(m, ToolMessage) and m.tool_call_id]
    assert len(set(call_ids)) == len(call_ids)
    assert len(set(result_ids)) == len(result_ids)
    assert set(result_ids) <= set(call_ids)


def test_images_template_and_unknown_roles_are_refused() -> None:
    for fields, path in (
        ({"images": ["aGk="]}, "images"), ({"template": "{{ .Prompt }}"}, "template"),
    ):  # fmt: skip
        with pytest.raises(ApiError, match=path):
            generate(**fields)
    with pytest.raises(ApiError, match=r"messages\[0\].images"):
        chat(messages=[{"role": "user", "content": "x", "images": ["aGk="]}])
    with pytest.raises(ApiError, match=r"messages\[0\].role"):
        chat(messages=[{"role": "poet", "content": "x"}])
    assert generate(images=[], suffix="", template="", context=[1, 2])


def test_prompt_is_a_user_message_or_raw_text() -> None:
    request = generate(system="Be brief.", logprobs=True, top_logprobs=2)
    assert isinstance(request, ChatRequest)
    assert request.messages == [SystemMessage("Be brief."), UserMessage("Hello")]
    assert (request.logprobs, request.top_logprobs) == (True, 2)
    raw_request = generate(raw=True, system="ignored", logprobs=True, top_logprobs=2)
    assert isinstance(raw_request, CompletionRequest)
    assert (raw_request.prompt, raw_request.logprobs) == ("Hello", 2)


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m", "0.0s"])
def test_request_without_a_prompt_loads_or_unloads(keep_alive: float | str) -> None:
    assert is_load_request(OllamaChatRequest(messages=[]))
    assert is_load_request(OllamaGenerateRequest(prompt=""))
    assert not is_unload_request(OllamaGenerateRequest(keep_alive="5m"))
    assert not is_unload_request(OllamaChatRequest())
    assert is_unload_request(OllamaChatRequest(keep_alive=keep_alive))
    assert not is_unload_request(OllamaGenerateRequest(prompt="x", keep_alive=keep_alive))
