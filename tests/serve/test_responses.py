"""The Responses API of the official OpenAI client against a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from tests.fuzzing import shorten
from tests.models import THINKING_TEMPLATE, write_tiny_llama
from tests.serve.client import CERTAIN_PROMPT, ServerProcess
from tests.serve.conftest import Start
from tests.waiting import until

WEATHER: Any = {
    "type": "function", "name": "get_weather", "description": "The weather in a city", "strict": True,
    "parameters": {
        "type": "object", "additionalProperties": False, "required": ["city", "unit"],
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    },
}  # fmt: skip


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=99)


def make_client(server: ServerProcess, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=server.url, api_key=api_key, max_retries=0)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with make_client(server) as client:
        yield client


def make_options(text: Any = CERTAIN_PROMPT, **options: Any) -> Any:
    return {"model": "starter", "input": text, "max_output_tokens": 24, "temperature": 0} | options


def test_response_with_usage(client: OpenAI) -> None:
    response = client.responses.create(**make_options(metadata={"a": "b"}))
    assert (response.object, response.model, response.status) == ("response", "starter", "incomplete")
    assert response.id.startswith("resp_")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert response.usage.output_tokens == 24
    repeated = client.responses.create(**make_options())
    assert repeated.output_text == response.output_text
    assert repeated.usage is not None
    assert repeated.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1


def test_instructions_are_part_of_the_prompt(client: OpenAI) -> None:
    instructions = "Reply with numbers only."
    response = client.responses.create(**make_options(instructions=instructions, max_output_tokens=2))
    assert response.instructions == instructions
    assert response.usage is not None
    counts = [
        client.responses.input_tokens.count(model="starter", input=CERTAIN_PROMPT, instructions=text).input_tokens
        for text in (None, instructions)
    ]
    assert response.usage.input_tokens == counts[1] != counts[0]


def test_stream_has_the_same_text_as_a_complete_response(client: OpenAI) -> None:
    response = client.responses.create(**make_options())
    with client.responses.stream(**make_options()) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.response.output_text == response.output_text
    assert (last.response.status, response.status) == ("incomplete", "incomplete")
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == response.usage.output_tokens == 24
    assert client.responses.retrieve(last.response.id).output_text == text


def test_complete_response(client: OpenAI) -> None:
    # "help" and "assist" are nearly as probable after "Hello! How can I": the two responses may differ.
    response = client.responses.create(**make_options("Hi", max_output_tokens=64))
    with client.responses.stream(**make_options("Hi", max_output_tokens=64)) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        streamed = stream.get_final_response()
    assert (response.status, streamed.status) == ("completed", "completed")
    assert text == streamed.output_text


def test_tool_loop_with_stored_responses(client: OpenAI) -> None:
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 80}
    response = client.responses.create(**make_options("Weather in Paris?", **options))
    call = response.output[-1]
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city", "unit"}
    with client.responses.stream(**make_options("Weather in Paris?", **options)) as stream:
        streamed_call = stream.get_final_response().output[-1]
    assert streamed_call.type == "function_call"
    assert set(json.loads(streamed_call.arguments)) == {"city", "unit"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    continued = client.responses.create(**make_options(
        [result], previous_response_id=response.id, tools=[WEATHER], tool_choice="none"
    ))  # fmt: skip
    assert [item.type for item in continued.output] == ["message"]
    # The same conversation as input, as a list of items and by references, has the same prompt.
    question = {"role": "user", "content": "Weather in Paris?"}
    for reply in (
        [item.model_dump(exclude_none=True) for item in response.output],
        [{"type": "item_reference", "id": item.id} for item in response.output],
    ):
        whole = client.responses.create(**make_options(
            [question, *reply, result], store=False, tools=[WEATHER], tool_choice="none"
        ))  # fmt: skip
        assert whole.usage is not None
        assert continued.usage is not None
        assert whole.usage.input_tokens == continued.usage.input_tokens
    items = client.responses.input_items.list(continued.id, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    assert [item.id for item in client.responses.input_items.list(continued.id, limit=2)] == [
        item.id for item in reversed(items)
    ]  # fmt: skip


def test_structured_output_also_with_tools(client: OpenAI) -> None:
    options = make_options("Describe a person.", max_output_tokens=100)
    parsed = client.responses.parse(**options, text_format=Person).output_parsed
    assert isinstance(parsed, Person)
    with client.responses.stream(**options, text_format=Person) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)
    response = client.responses.parse(**options, text_format=Person, tools=[WEATHER])
    has_call = response.output[0].type == "function_call"
    assert has_call or isinstance(response.output_parsed, Person)
    response = client.responses.create(**options, text={"format": {"type": "json_object"}})
    assert response.output_text.lstrip().startswith("{")
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)


def test_custom_tool(client: OpenAI) -> None:
    options = make_options("Print 1.", tools=[{"type": "custom", "name": "run_python"}], tool_choice="required")
    (call,) = client.responses.create(**options, parallel_tool_calls=False).output
    assert call.type == "custom_tool_call"
    assert call.name == "run_python"


def test_conversation_continues_until_its_response_is_deleted(client: OpenAI) -> None:
    first = client.responses.create(**make_options("My name is Ada.", instructions="Be brief."))
    second = client.responses.create(**make_options("What is my name?", previous_response_id=first.id))
    assert second.previous_response_id == first.id
    assert second.usage is not None
    counted = client.responses.input_tokens.count(model="starter", input=[
        {"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ])  # fmt: skip
    assert counted.input_tokens == second.usage.input_tokens
    client.responses.delete(first.id)
    third = client.responses.create(**make_options("And now?", previous_response_id=second.id))
    assert len(client.responses.input_items.list(third.id).data) == 5
    with pytest.raises(openai.NotFoundError, match="kept in memory only"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not found") as missing:
        client.responses.create(**make_options(previous_response_id=first.id))
    assert (missing.value.code, missing.value.param) == ("previous_response_not_found", "previous_response_id")


def test_response_is_not_stored_if_the_request_says_so(client: OpenAI) -> None:
    response = client.responses.create(**make_options(store=False))
    assert response.model_extra == {"store": False}
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(response.id)


def test_errors(client: OpenAI, server: ServerProcess) -> None:
    stored = client.responses.create(**make_options(max_output_tokens=1))
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(stored.id)
    with pytest.raises(openai.BadRequestError) as overflow:
        client.responses.create(**make_options("word " * 5000, truncation="auto"))
    assert (overflow.value.code, overflow.value.param) == ("context_length_exceeded", "input")
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]}
    for fields, param in (
        ({"input": [image]}, "input[0].content[0]"), ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"background": True}, "background"), ({"conversation": "conv_1"}, "conversation"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#/x"}}}}, "text.format"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"), ({"reasoning": {"effort": "x"}}, "reasoning"),
        ({"tools": [WEATHER | {"parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
    ):  # fmt: skip
        status, answer, _ = server.request("/v1/responses", make_options() | fields)
        assert (status, answer["error"]["param"]) == (400, param), answer
    for path in (f"/v1/responses/{stored.id}?stream=true", f"/v1/responses/{stored.id}/input_items?limit=0"):
        assert server.request(path)[0] == 400
    assert server.request(f"/v1/responses/{stored.id}/input_items?after=x")[0] == 400
    assert server.request("/v1/responses", method="GET")[0] == 405


def test_reasoning_is_an_item_and_can_be_continued(start: Start, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "thinker.gguf", template=THINKING_TEMPLATE, seed=3)
    with make_client(start("-m", str(model), "--ctx", "512")) as client:
        options = make_options("Hi", model="", max_output_tokens=60, include=["reasoning.encrypted_content"])
        options["reasoning"] = {"summary": "auto", "max_tokens": 8}
        response = client.responses.create(**options)
        reasoning = response.output[0]
        assert reasoning.type == "reasoning"
        assert reasoning.content is not None
        assert reasoning.content[0].text == reasoning.summary[0].text != ""
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens > 0
        with client.responses.stream(**options) as stream:
            events = list(stream)
        deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        last = events[-1]
        assert last.type in {"response.completed", "response.incomplete"}
        streamed = last.response.output[0]
        assert streamed.type == "reasoning"
        assert streamed.content is not None
        assert "".join(deltas) == streamed.content[0].text != ""
        client.responses.create(**make_options(
            [{"role": "user", "content": "Hi"}, *[item.to_dict() for item in response.output],
             {"role": "user", "content": "Go on."}], model="", max_output_tokens=4,
        ))  # fmt: skip
        off = client.responses.create(**make_options("Hi", model="", reasoning={"effort": "none"}))
        assert "reasoning" not in [item.type for item in off.output]


def test_closed_stream_ends_the_request_and_stores_nothing(client: OpenAI, server: ServerProcess) -> None:
    def count_running() -> float:
        text = server.request("/metrics")[1]
        return float(re.findall(r'edgechat_requests_running\{model="starter"\} (\S+)', text)[0])

    stream = client.responses.create(**make_options("Write a long story.", max_output_tokens=1500), stream=True)
    with stream:
        created = next(iter(stream))
        assert created.type == "response.created"
        next(event for event in stream if event.type == "response.output_text.delta")
        assert count_running() == 1
    until(lambda: count_running() == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.response.id)


TEXTS = st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4,
)  # fmt: skip
MARKS = st.sampled_from(["KIWI", "MANGO"])


def vary(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return `valid` values, and sometimes any JSON value."""
    return st.integers(0, 39).flatmap(lambda n: valid if n else JSON)


PARTS = st.fixed_dictionaries(
    {"type": vary(st.sampled_from(["input_text", "output_text", "refusal", "input_image"])), "text": vary(TEXTS)}
)  # fmt: skip
CONTENT = vary(TEXTS | st.lists(PARTS, max_size=2))
ITEM_IDS = TEXTS | st.just("msg_ax" + "9" * 5000)
ITEMS = st.one_of(
    st.fixed_dictionaries({"role": vary(st.sampled_from(["user", "assistant", "developer"])), "content": CONTENT}),
    st.fixed_dictionaries({
        "type": vary(st.just("function_call")), "name": vary(st.just("f")), "call_id": vary(st.just("1")),
        "arguments": vary(st.just("{}") | TEXTS),
    }),
    st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": vary(st.just("1")), "output": CONTENT}),
    st.fixed_dictionaries({"type": st.just("reasoning"), "summary": vary(st.lists(PARTS, max_size=1))}),
    st.fixed_dictionaries({"type": st.sampled_from(["item_reference", "computer_call", "x"]), "id": vary(ITEM_IDS)}),
)  # fmt: skip
TOOLS = st.fixed_dictionaries(
    {"type": vary(st.sampled_from(["function", "custom"])), "name": vary(st.sampled_from(["f", "g"]))},
    optional={
        "description": vary(TEXTS), "strict": vary(st.booleans()),
        "parameters": vary(st.just({"type": "object", "properties": {"a": {"type": "integer"}}}) | JSON),
    },
)  # fmt: skip
FORMATS = st.sampled_from([
    {"type": "text"}, {"type": "json_object"},
    {"type": "json_schema", "name": "x", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
])  # fmt: skip
BODIES = st.fixed_dictionaries(
    {"max_output_tokens": vary(st.just(2)), "input": vary(TEXTS | st.lists(ITEMS, min_size=1, max_size=4))},
    optional={
        "model": vary(st.just("starter")), "instructions": vary(TEXTS), "tools": vary(st.lists(TOOLS, max_size=2)),
        "tool_choice": vary(st.sampled_from(["auto", "none", "required", {"type": "function", "name": "f"}])),
        "parallel_tool_calls": vary(st.booleans()), "text": vary(st.fixed_dictionaries({"format": vary(FORMATS)})),
        "reasoning": vary(st.fixed_dictionaries({"effort": st.sampled_from([None, "low", "none"])})),
        "temperature": vary(st.floats(0, 2)), "top_p": vary(st.floats(0, 1)), "stream": vary(st.booleans()),
        "store": vary(st.booleans()), "metadata": vary(st.just({"a": "b"})), "include": vary(st.just([])),
        "top_logprobs": vary(st.integers(0, 3)), "truncation": vary(st.just("auto")),
        "background": vary(st.just(False)),
    },
)  # fmt: skip


def check_random_request(server: ServerProcess, body: Any, previous_ids: list[str], *, counts_tokens: bool) -> None:
    """Send a request that continues the last one of the same conversation, and check the answer."""
    path = "/v1/responses/input_tokens" if counts_tokens else "/v1/responses"
    if previous_ids:
        body = body | {"previous_response_id": previous_ids[-1]}
    status, answer, _ = server.request(path, body)
    event(f"status {status}")
    assert status in {200, 400, 404}, answer
    if status != 200:
        assert answer["error"]["type"] in {"invalid_request_error", "not_found_error"}
        return
    if counts_tokens:
        assert answer["input_tokens"] > 0
        return
    if isinstance(answer, str):
        lines = [line for line in answer.split("\n") if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
        answer = events[-1]["response"]
    assert answer["status"] in {"completed", "incomplete"}
    if answer["store"]:
        previous_ids.append(answer["id"])
        assert server.request(f"/v1/responses/{answer['id']}")[:2] == (200, answer)


# No shrinking: an example needs a whole reply.
@settings(
    max_examples=150, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(body=BODIES, counts_tokens=st.booleans())
def test_random_bodies_cause_no_server_error(server: ServerProcess, body: Any, *, counts_tokens: bool) -> None:
    check_random_request(server, body, [], counts_tokens=counts_tokens)


@pytest.mark.long
def test_two_clients_with_many_random_requests_see_only_their_own_texts(start: Start) -> None:
    server = start("-m", "starter", "--ctx", "1024", "--max-tokens", "8")
    conversations: dict[str, list[str]] = {"KIWI": [], "MANGO": []}
    for name, ids in conversations.items():
        first = server.request("/v1/responses", {"input": f"{name} is my fruit.", "max_output_tokens": 2})[1]
        ids.append(first["id"])

    @settings(
        max_examples=shorten(2000, 200), deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(body=BODIES, name=MARKS, counts_tokens=st.booleans(), continues=st.booleans())
    def send(body: Any, name: str, *, counts_tokens: bool, continues: bool) -> None:
        ids = conversations[name]
        # The first response stays the root of most conversations, so that they do not outgrow the context.
        previous_ids = ids[:1] if continues else []
        check_random_request(server, body, previous_ids, counts_tokens=counts_tokens)
        for response_id in previous_ids[1:]:
            text = json.dumps(server.request(f"/v1/responses/{response_id}/input_items")[1])
            (other,) = conversations.keys() - {name}
            assert name in text
            assert other not in text
        if continues and len(previous_ids) > 1:
            ids[1:] = previous_ids[1:]

    send()
    assert "Internal error" not in "".join(server.errors)
