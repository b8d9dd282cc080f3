"""The official Python client against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.resident_engines import PROMPT
from tests.serve.client import CERTAIN_PROMPT, ServerProcess, user

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather in a city",
        "parameters": {
            "type": "object", "additionalProperties": False, "required": ["city", "unit"],
            "properties": {
                "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}
            },
        },
    },
}  # fmt: skip
PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0,
    "maximum": 150}},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: OpenAI, text: str = "What is gravity?", **options: Any) -> Any:
    defaults: dict[str, Any] = {"model": "starter", "messages": user(text), "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**(defaults | options))


def test_chat_completion_with_usage_and_timings(client: OpenAI) -> None:
    answer = chat(client, CERTAIN_PROMPT)
    choice = answer.choices[0]
    assert choice.message.content.startswith("1. 1\n2. 2\n")
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens + 24 == answer.usage.total_tokens
    repeated = chat(client, CERTAIN_PROMPT)
    assert repeated.choices[0].message.content == choice.message.content
    assert repeated.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1
    assert repeated.timings["predicted_n"] == 24
    assert repeated.timings["cache_n"] + repeated.timings["prompt_n"] == repeated.usage.prompt_tokens


def test_stream_has_the_same_text_and_a_usage_chunk(client: OpenAI) -> None:
    whole = chat(client, CERTAIN_PROMPT).choices[0].message.content
    chunks = list(chat(client, CERTAIN_PROMPT, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 24
    assert not chunks[-1].choices
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_alternatives_stop_strings_logprobs_biases_and_penalties(client: OpenAI) -> None:
    alternatives = chat(client, n=3, temperature=1.5, seed=1)
    assert len({c.message.content for c in alternatives.choices}) == 3
    assert [c.index for c in alternatives.choices] == [0, 1, 2]
    stopped = chat(client, stop=["fundamental", "never"])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == "Gravity is a "
    token = chat(client, max_tokens=1, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0]
    assert token.token == "Gra"
    assert bytes(token.bytes).decode() == "Gra"
    assert token.top_logprobs[0].token == "Gra"
    assert len(token.top_logprobs) == 2
    assert token.logprob == token.top_logprobs[0].logprob <= 0
    forced = chat(client, logit_bias={"504": 100, "1": 0}, max_tokens=3, logprobs=True).choices[0].logprobs.content
    assert len({token.token for token in forced}) == 1
    assert forced[0].token != "Gra"
    penalised = chat(client, frequency_penalty=2.0, presence_penalty=2.0, max_tokens=60).choices[0].message.content
    assert penalised != chat(client, max_tokens=60).choices[0].message.content


def test_arguments_of_a_tool_call_are_sent_as_they_grow(client: OpenAI) -> None:
    parameters = {
        "type": "object", "properties": {"digits": {"type": "string", "pattern": "^[0-9]{100}$"}},
        "required": ["digits"], "additionalProperties": False,
    }  # fmt: skip
    tool: Any = {"type": "function", "function": {"name": "count", "parameters": parameters}}
    options: Any = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    chunks = list(chat(client, "Count.", stream=True, **options))
    deltas = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert len(deltas) > 1
    assert len(json.loads("".join(call.function.arguments or "" for call in deltas))["digits"]) == 100


@pytest.mark.parametrize("stream", [False, True])
def test_required_tool_call_matches_its_schema(client: OpenAI, stream: bool) -> None:
    options = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "parallel_tool_calls": False}
    response = chat(client, "What is the weather in Paris?", stream=stream, **options)
    if stream:
        chunks = list(response)
        deltas = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
        assert {call.index for call in deltas} == {0}
        name, text = deltas[0].function.name, "".join(call.function.arguments or "" for call in deltas)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        (call,) = response.choices[0].message.tool_calls
        name, text = call.function.name, call.function.arguments
        assert response.choices[0].finish_reason == "tool_calls"
        assert response.choices[0].message.content is None
    assert name == "get_weather"
    arguments = json.loads(text)
    assert arguments.keys() == {"city", "unit"}
    assert arguments["unit"] in {"celsius", "fahrenheit"}


def test_tool_results_are_read_and_tool_choice_is_respected(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *user("What is the weather in Paris?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees and rain"},
    ]
    for choice in ("none", "auto"):
        answer = chat(client, messages=messages, tools=[WEATHER], tool_choice=choice)
        assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
    assert not answer.choices[0].message.tool_calls or choice == "auto"
    tool_choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = chat(client, tools=[WEATHER], tool_choice=tool_choice, max_tokens=200)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


@pytest.mark.parametrize("stream", [False, True])
def test_reply_matches_a_json_schema(client: OpenAI, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    response = chat(client, "Describe a person.", response_format=form, max_tokens=100, stream=stream)
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in response if c.choices)
    else:
        text = response.choices[0].message.content
        assert response.choices[0].finish_reason == "stop"
    person = json.loads(text)
    assert 0 <= person["age"] <= 150
    assert len(person["name"]) <= 20


def test_parse_into_a_pydantic_model(client: OpenAI) -> None:
    from pydantic import BaseModel, Field

    class Point(BaseModel):
        x: int = Field(ge=0, le=99)
        y: int = Field(ge=0, le=99)

    answer = client.chat.completions.parse(
        model="starter",
        messages=user("A point, please."),  # type: ignore[arg-type]
        response_format=Point,
        max_tokens=60,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Point)


def test_json_object_format(client: OpenAI) -> None:
    answer = chat(client, "An object.", response_format={"type": "json_object"}, max_tokens=120)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_completions_of_texts_and_tokens(client: OpenAI) -> None:
    texts = client.completions.create(
        model="starter", prompt=["The capital of France is", "One, two, three,"], max_tokens=4, temperature=0,
        echo=True, logprobs=1, extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert [c.index for c in texts.choices] == [0, 1]
    assert texts.choices[0].text.startswith("The capital of France is")
    logprobs: Any = texts.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5 + 4
    assert logprobs.text_offset[5] == len("The capital of France is")
    assert logprobs.token_logprobs[0] is None
    whole = client.completions.create(model="starter", prompt=PROMPT, max_tokens=8, temperature=0)
    stream = client.completions.create(model="starter", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream if c.choices) == whole.choices[0].text
    tokens = client.completions.create(model="starter", prompt=[[504, 3575], [504]], max_tokens=2, n=2)
    assert len(tokens.choices) == 4


def test_models_are_listed(client: OpenAI) -> None:
    [model] = client.models.list()
    assert model.id == "starter"
    assert (model.model_extra or {})["meta"]["has_native_tools"] is False
    assert client.models.retrieve("starter").id == "starter"
    with pytest.raises(openai.NotFoundError, match="Model 'gpt-9' is not served"):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("options", "error_type", "message"),
    [
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "king"),
        ({"messages": user("long " * 3000)}, openai.BadRequestError, "the context holds 2,048"),
        ({"n": 1000}, openai.BadRequestError, "at most 8"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"tools": [WEATHER, WEATHER]}, openai.BadRequestError, "several functions have the name 'get_weather'"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "vocabulary"),
    ],
)
def test_errors_have_the_client_types(
    client: OpenAI, options: Any, error_type: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(error_type) as caught:
        chat(client, **options)
    assert message in caught.value.message
    assert caught.value.body is not None
    assert chat(client, max_tokens=1).usage.completion_tokens == 1


def test_chat_model_has_no_embeddings(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is not an embedding model"):
        client.embeddings.create(model="starter", input="hello")
