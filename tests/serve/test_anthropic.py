"""The official Python client of the Anthropic API against a running server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.serve.client import CERTAIN_PROMPT, ServerProcess, user
from tests.serve.conftest import Start
from tests.waiting import until

WEATHER: Any = {
    "name": "get_weather", "description": "The weather in a city",
    "input_schema": {
        "type": "object", "additionalProperties": False, "required": ["city", "unit"],
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    },
}  # fmt: skip


def make_client(server: ServerProcess, api_key: str = "none") -> Anthropic:
    return Anthropic(base_url=server.url.removesuffix("/v1"), api_key=api_key, max_retries=0)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Anthropic]:
    with make_client(server) as client:
        yield client


def make_options(text: str = CERTAIN_PROMPT, **options: Any) -> Any:
    # The client has no parameter for the temperature.
    defaults = {"model": "starter", "messages": user(text), "max_tokens": 24, "extra_body": {"temperature": 0}}
    return defaults | options


def test_message_with_usage(client: Anthropic) -> None:
    options = make_options(system="Reply with numbers only.")
    message = client.messages.create(**options)
    (block,) = message.content
    assert (message.type, message.role, message.model) == ("message", "assistant", "starter")
    assert message.id.startswith("msg_")
    assert block.type == "text"
    assert (message.stop_reason, message.stop_sequence, message.usage.output_tokens) == ("max_tokens", None, 24)
    repeated = client.messages.create(**options)
    assert repeated.content[0] == block
    usage = repeated.usage
    assert (usage.input_tokens, usage.cache_creation_input_tokens) == (1, 0)
    count_options = {name: options[name] for name in ("model", "messages", "system")}
    assert usage.cache_read_input_tokens is not None
    assert client.messages.count_tokens(**count_options).input_tokens == 1 + usage.cache_read_input_tokens


def test_stream_has_the_same_text_as_a_complete_message(client: Anthropic) -> None:
    message = client.messages.create(**make_options())
    with client.messages.stream(**make_options()) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert streamed.content[0].type == message.content[0].type == "text"
    assert text == streamed.content[0].text == message.content[0].text
    assert (streamed.stop_reason, streamed.usage.output_tokens) == ("max_tokens", 24)
    assert streamed.usage.cache_read_input_tokens


def test_stop_sequence_is_reported(client: Anthropic) -> None:
    options = make_options(stop_sequences=["never", "2"])
    message = client.messages.create(**options)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "2")
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "2")
    assert streamed.to_dict()["content"] == message.to_dict()["content"]


def test_begun_reply_is_continued(client: Anthropic) -> None:
    messages = [*user(CERTAIN_PROMPT), {"role": "assistant", "content": "1. 1\n2. 2\n"}]
    (block,) = client.messages.create(**make_options(messages=messages)).content
    assert block.type == "text"
    assert block.text.startswith("3. 3\n")


def test_tool_loop(client: Anthropic) -> None:
    tools = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 80}
    message = client.messages.create(**make_options("Weather in Paris?", **tools))
    call = message.content[-1]
    assert message.stop_reason == call.type == "tool_use"
    assert call.id.startswith("toolu_")
    assert set(call.input) == {"city", "unit"}
    with client.messages.stream(**make_options("Weather in Paris?", **tools)) as stream:
        streamed_call = stream.get_final_message().content[-1]
    assert streamed_call.type == "tool_use"
    assert (streamed_call.name, set(streamed_call.input)) == ("get_weather", {"city", "unit"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    conversation = [
        *user("Weather in Paris?"), {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    reply = client.messages.create(**make_options(messages=conversation, tools=[WEATHER], tool_choice={"type": "none"}))
    assert [block.type for block in reply.content] == ["text"]


def test_errors_have_the_types_of_the_api(client: Anthropic, server: ServerProcess) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.post("/v1/messages/unknown", cast_to=object)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\]: only text is supported"):
        client.messages.create(**make_options(messages=[{"role": "user", "content": [image]}]))
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: The prompt has"):
        client.messages.create(**make_options("word " * 5000))
    for body in (b"{", {"messages": user("Hi")}, b"[]"):
        status, answer, _ = server.request("/v1/messages", body)
        assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    status, answer, _ = server.request("/v1/messages/batches", {})
    assert (status, answer["type"], answer["error"]["type"]) == (404, "error", "not_found_error")
    assert [model.id for model in client.models.list()] == ["starter"]


def test_thinking_is_limited_and_can_be_off(thinking_server: ServerProcess) -> None:
    with make_client(thinking_server) as client:
        options = make_options("Hi", model="", max_tokens=60, thinking={"type": "enabled", "budget_tokens": 8})
        message = client.messages.create(**options)
        thinking = message.content[0]
        assert thinking.type == "thinking"
        assert thinking.thinking
        assert thinking.signature
        with client.messages.stream(**options) as stream:
            streamed = stream.get_final_message()
        assert streamed.to_dict()["content"] == message.to_dict()["content"]
        for off in ({"thinking": {"type": "disabled"}}, {}):
            options = make_options("Hi", model="", **off)
            assert "thinking" not in [block.type for block in client.messages.create(**options).content]


def test_api_key_is_sent_as_the_client_does(start: Start, tiny_model: Path) -> None:
    server = start("-m", str(tiny_model), EDGECHAT_API_KEY="s3cret")
    with make_client(server, "wrong") as client, pytest.raises(anthropic.AuthenticationError) as wrong:
        client.messages.create(**make_options())
    assert wrong.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    with make_client(server, "s3cret") as client:
        assert client.messages.create(**make_options(max_tokens=1)).usage.output_tokens == 1


def test_closed_stream_ends_the_request(client: Anthropic, server: ServerProcess) -> None:
    def count_running() -> float:
        text = server.request("/metrics")[1]
        return float(re.findall(r'edgechat_requests_running\{model="starter"\} (\S+)', text)[0])

    with client.messages.stream(**make_options("Write a long story.", max_tokens=1500)) as stream:
        next(iter(stream.text_stream))
        until(lambda: count_running() == 1)
    until(lambda: count_running() == 0)


TEXTS = st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4,
)  # fmt: skip
BLOCK_TYPES = st.sampled_from([
    *["text", "thinking", "redacted_thinking", "tool_use", "tool_result"] * 3,
    "image", "document", "search_result", "x",
])  # fmt: skip


def vary(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return `valid` values, and sometimes any JSON value."""
    return st.integers(0, 39).flatmap(lambda n: valid if n else JSON)


BLOCKS = st.fixed_dictionaries({"type": vary(BLOCK_TYPES)}, optional={
    "text": vary(TEXTS), "thinking": vary(TEXTS), "id": vary(TEXTS), "name": vary(st.just("f")), "input": JSON,
    "tool_use_id": vary(TEXTS), "is_error": JSON, "source": JSON, "cache_control": JSON,
    "content": vary(st.lists(st.fixed_dictionaries({"type": BLOCK_TYPES, "text": vary(TEXTS)}), max_size=2)),
})  # fmt: skip
CONTENT = vary(TEXTS | st.lists(BLOCKS, max_size=3))
MESSAGES = st.fixed_dictionaries({
    "role": vary(st.sampled_from(["user", "assistant", "system"])), "content": CONTENT
})  # fmt: skip
TOOLS = st.fixed_dictionaries({"name": vary(st.sampled_from(["f", "g"]))}, optional={
    "description": vary(TEXTS), "type": vary(st.just("custom")), "strict": vary(st.booleans()),
    "input_schema": vary(st.just({"type": "object", "properties": {"a": {"type": "integer"}}}) | JSON),
})  # fmt: skip
BODIES = st.fixed_dictionaries(
    {"max_tokens": vary(st.just(2)), "messages": vary(st.lists(MESSAGES, min_size=1, max_size=3))},
    optional={
        "model": vary(st.just("tiny")), "system": CONTENT, "tools": vary(st.lists(TOOLS, max_size=2)),
        "tool_choice": vary(st.fixed_dictionaries(
            {"type": st.sampled_from(["auto", "any", "tool", "none"])}, optional={"name": vary(st.just("f"))}
        )),
        "thinking": vary(st.fixed_dictionaries(
            {"type": st.sampled_from(["enabled", "disabled", "adaptive"])}, optional={"budget_tokens": vary(st.just(5))}
        )),
        "stop_sequences": vary(st.lists(TEXTS, max_size=2)), "temperature": vary(st.floats(0, 1)),
        "top_k": vary(st.integers(-1, 9)), "top_p": vary(st.floats(0, 1)), "stream": vary(st.booleans()),
        "output_config": vary(st.fixed_dictionaries({}, optional={"effort": st.sampled_from(["low", "max"])})),
        "metadata": JSON,
    },
)  # fmt: skip


# No shrinking: an example needs a whole reply.
@settings(
    max_examples=200, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(body=BODIES, counts_tokens=st.booleans())
def test_random_bodies_cause_no_server_error(tiny_server: ServerProcess, body: Any, *, counts_tokens: bool) -> None:
    path = "/v1/messages/count_tokens" if counts_tokens else "/v1/messages"
    status, answer, _ = tiny_server.request(path, body)
    event(f"status {status}")
    assert status in {200, 400, 404}, answer
    if status != 200:
        assert answer["type"] == "error"
    elif isinstance(answer, str):
        assert answer.startswith("event: message_start\n")
        assert answer.count("event: message_stop\n") == 1, answer
    else:
        assert counts_tokens or answer["type"] == "message"
