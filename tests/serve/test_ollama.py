"""The official Python client of Ollama against a running server, and raw requests to the Ollama API."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ollama import Client, ResponseError

from edgechat.serve import server as http_server
from tests.serve.client import ServerProcess, user
from tests.serve.conftest import Start
from tests.waiting import until

GREEDY = {"temperature": 0, "num_predict": 12}
PERSON = {
    "type": "object", "required": ["name"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 9}},
}  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Return the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                       "required": ["city"], "additionalProperties": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def client(embedding_server: ServerProcess) -> Iterator[Client]:
    with Client(host=f"http://{embedding_server.host}:{embedding_server.port}") as client:
        yield client


def post(server: ServerProcess, path: str, **body: Any) -> tuple[int, Any]:
    status, answer, _ = server.request(path, {"model": "starter", "stream": False} | body)
    return status, answer


def read_stream(server: ServerProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the decoded lines of a stream."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=600)
    connection.request("POST", path, json.dumps({"model": "starter"} | body).encode())
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    return lines


def test_chat_and_its_stream_have_the_same_text(client: Client) -> None:
    answer = client.chat("starter:latest", user("What is 2+2?"), options=GREEDY)
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert (answer.model, answer.done) == ("starter:latest", True)
    assert answer.done_reason in ("stop", "length")
    assert (answer.prompt_eval_count or 0) > 10
    assert 1 <= (answer.eval_count or 0) <= 12
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 0
    *chunks, end = client.chat("starter", user("What is 2+2?"), options=GREEDY, stream=True)
    assert "".join(chunk.message.content or "" for chunk in chunks)
    assert not any(chunk.done for chunk in chunks)
    assert end.done
    assert end.eval_count


def test_generate_replies_to_or_continues_a_prompt(client: Client) -> None:
    answer = client.generate("starter", "Say hi.", system="You are polite.", options=GREEDY)
    assert answer.response
    raw = client.generate("starter", "One, two, three,", raw=True, options=GREEDY | {"num_predict": 5})
    assert raw.response
    assert (raw.eval_count, raw.done_reason) == (5, "length")
    assert (raw.prompt_eval_count or 99) < (answer.prompt_eval_count or 0)
    *chunks, end = client.generate("starter", "Say hi.", options=GREEDY, stream=True)
    assert "".join(chunk.response or "" for chunk in chunks)
    assert end.done
    logprobs = client.generate("starter", "One,", raw=True, options=GREEDY, logprobs=True, top_logprobs=2).logprobs
    assert logprobs
    assert len(logprobs[0].top_logprobs or ()) == 2


def test_request_without_a_prompt_loads_or_unloads(client: Client) -> None:
    assert client.generate("starter").done_reason == "load"
    assert client.chat("starter").done_reason == "load"
    assert client.chat("starter", keep_alive=0).done_reason == "unload"
    assert client.generate("starter", keep_alive="0s").done_reason == "unload"


def test_format_is_enforced(client: Client) -> None:
    for answer in (
        client.chat("starter", user("Describe a person."), format=PERSON, options={"temperature": 0}).message.content,
        client.generate("starter", "Describe a person.", format=PERSON, options={"temperature": 0}).response,
        client.generate("starter", "A person:", raw=True, format=PERSON, options={"temperature": 0}).response,
    ):
        jsonschema.validate(json.loads(answer or ""), PERSON)
    text = client.chat("starter", user("Describe a person."), format="json", options={"num_predict": 100}).message
    assert (text.content or "").startswith("{")
    with pytest.raises(ResponseError) as error:
        client.chat("starter", user("Hi"), format={"type": "object", "not": {}})
    assert error.value.status_code == 400


def test_tool_call_has_arguments_as_an_object_and_comes_in_one_line(embedding_server: ServerProcess) -> None:
    body = {
        "messages": user("What is the weather in Paris?"), "tools": [WEATHER],
        "tool_choice": {"function": {"name": "get_weather"}}, "options": {"temperature": 0, "num_predict": 100},
    }  # fmt: skip
    status, answer = post(embedding_server, "/api/chat", **body)
    assert status == 200, answer
    (call,) = answer["message"]["tool_calls"]
    jsonschema.validate(call["function"]["arguments"], WEATHER["function"]["parameters"])  # type: ignore[index]
    assert answer["done_reason"] == "stop"
    lines = read_stream(embedding_server, "/api/chat", body)
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert [call["function"]["name"] for call in calls] == ["get_weather"]
    assert isinstance(calls[0]["function"]["arguments"], dict)
    result = {"role": "tool", "tool_name": "get_weather", "content": "Sunny"}
    messages = [*user("What is the weather in Paris?"), answer["message"], result]
    status, answer = post(embedding_server, "/api/chat", messages=messages, tools=[WEATHER], options=GREEDY)
    assert status == 200, answer


def test_models_are_listed_and_described(client: Client) -> None:
    starter, bert = client.list().models
    assert (starter.model, bert.model) == ("starter:latest", "tiny-bert:latest")
    assert starter.details is not None
    assert starter.details.format == "gguf"
    assert starter.details.parameter_size == "134.52M"
    assert [model.name for model in client.ps().models] == ["starter:latest", "tiny-bert:latest"]
    assert client.ps().models[0].context_length == 2048
    description = client.show("starter")
    assert description.capabilities == ["completion", "tools"]
    assert (description.modelinfo or {})["llama.context_length"] == 2048
    assert description.template
    assert client.show("tiny-bert").capabilities == ["embedding"]


def test_embeddings_are_truncated_unless_the_client_refuses_it(client: Client) -> None:
    answer = client.embed("tiny-bert", ["hello world", "hello"])
    assert [len(embedding) for embedding in answer.embeddings] == [64, 64]
    assert client.embeddings("tiny-bert", "hello").embedding == pytest.approx(answer.embeddings[1], abs=1e-3)
    assert len(client.embed("tiny-bert", "hello", dimensions=4).embeddings[0]) == 4
    for n_words in (500, 20_000):
        assert client.embed("tiny-bert", "hello " * n_words).prompt_eval_count == 128
    assert len(client.embed("tiny-bert", ["hello"] * 70).embeddings) == 70
    assert client.embed("tiny-bert", "").embeddings == []
    with pytest.raises(ResponseError, match="502 tokens") as error:
        client.embed("tiny-bert", "hello " * 500, truncate=False)
    assert error.value.status_code == 400


def test_errors_have_ollamas_status_and_form(embedding_server: ServerProcess, client: Client) -> None:
    status, answer = post(embedding_server, "/api/show", model="x")
    assert (status, answer) == (404, {"error": "model 'x' not found. Available models: starter, tiny-bert."})
    for path, body, message in (
        ("/api/chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "images are not supported"),
        ("/api/chat", {"messages": user("Hi"), "options": {"top_p": 2}}, "options.top_p: must be at most 1"),
        ("/api/chat", {"messages": user("Hi"), "think": "much"}, "think: must be"),
        ("/api/chat", {"model": "tiny-bert", "messages": user("Hi")}, "is an embedding model"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix: starter has no tokens for infilling"),
        ("/api/embed", {"input": "a"}, "is not an embedding model"),
        ("/api/copy", {"source": "a", "destination": "b"}, "changes no models"),
    ):
        status, answer = post(embedding_server, path, **body)
        assert (status, list(answer)) == (400, ["error"])
        assert message in answer["error"]
    with pytest.raises(ResponseError, match=r"5,0\d\d tokens"):
        list(client.chat("starter", user("word " * 5000), stream=True))
    with pytest.raises(ResponseError, match="edgechat models pull") as error:
        client.pull("x")
    assert error.value.status_code == 404
    assert client.pull("starter").status == "success"
    assert [line.status for line in client.pull("starter:latest", stream=True)] == ["success"]
    status, answer, _ = embedding_server.request("/api/unknown")
    assert (status, answer["error"].startswith("/api/unknown is not an endpoint.")) == (404, True)


def test_server_says_that_it_speaks_the_api(embedding_server: ServerProcess) -> None:
    assert embedding_server.request("/")[:2] == (200, "Ollama is running")
    assert embedding_server.request("/api/version")[1]["version"]
    for path in ("/", "/api/version", "/api/tags"):
        assert embedding_server.request(path, method="HEAD")[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_closed_connection_cancels_the_request(embedding_server: ServerProcess, stream: bool) -> None:
    # A reply that fills the context: it neither ends nor repeats itself.
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 3000}
    options = {"num_predict": -1, "temperature": 2, "seed": 1}
    body = {"model": "starter", "prompt": "Numbers:", "format": schema, "options": options, "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    running = 'requests_running{model="starter"} '
    with embedding_server.connect() as connection:
        connection.sendall(head.encode() + data)
        until(lambda: f"{running}1.0" in embedding_server.request("/metrics")[1])
    until(lambda: f"{running}0.0" in embedding_server.request("/metrics")[1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(("json", "tiny", "user", "tool", "0s", "high")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(("system", "user", "assistant", "tool")) | JSON},
    optional={
        "content": st.text(max_size=9) | JSON, "thinking": st.text(max_size=5), "tool_name": JSON, "images": JSON,
        "tool_calls": st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({
            "name": st.text(max_size=3), "arguments": JSON
        })})),
    },
)  # fmt: skip
BODY = st.fixed_dictionaries({}, optional={
    "model": st.sampled_from(("tiny", "tiny-bert", "tiny:latest")) | JSON,
    "messages": st.lists(MESSAGE, max_size=3) | JSON, "prompt": st.text(max_size=9) | JSON, "input": JSON,
    "stream": st.booleans() | JSON, "format": st.sampled_from(("json", "", PERSON)) | JSON, "think": JSON,
    "options": st.dictionaries(st.sampled_from((
        "num_predict", "temperature", "top_k", "top_p", "seed", "stop", "mirostat", "num_ctx", "repeat_last_n"
    )), JSON),
    "tools": st.just([WEATHER]) | JSON, "keep_alive": JSON, "raw": st.booleans() | JSON, "system": JSON,
    "logprobs": st.booleans(), "top_logprobs": st.integers(-1, 21), "dimensions": JSON, "truncate": JSON,
})  # fmt: skip
PATHS = ("chat", "chat", "generate", "generate", "embed", "embeddings", "show", "pull")


def test_random_bodies_cause_no_server_error(tiny_server: ServerProcess) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(PATHS), BODY)
    def send(path: str, body: dict[str, Any]) -> None:
        options = body.get("options")
        if isinstance(options, dict):
            n_predict = options.get("num_predict")
            body = body | {"options": options | {"num_predict": 2} if isinstance(n_predict, int | None) else options}
        elif options is None:
            body = body | {"options": {"num_predict": 2}}
        status, answer, _ = tiny_server.request(f"/api/{path}", body)
        assert status < 500, answer
        if status != 200:
            assert list(answer) == ["error"]

    send()
    assert "Internal error" not in "".join(tiny_server.errors)


def test_port_of_ollama_is_used_if_it_is_free(start: Start, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    try:
        other = socket.create_server(("127.0.0.1", http_server.OLLAMA_PORT))
    except OSError:
        pytest.skip("Another program uses the port of Ollama.")
    with other:
        server = start("-m", str(tiny_model), "--ollama")
        assert server.request("/api/version")[0] == 200
        until(lambda: server.has_printed("Port 11434 is in use"))
        assert server.close() == 0
    server = start("-m", str(tiny_model), "--ollama")
    with Client() as client:  # its default is the port of Ollama
        assert client.list().models[0].model == "tiny:latest"
    assert server.request("/api/version")[0] == 200
