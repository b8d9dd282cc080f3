"""Infilling and llama-server's completions over HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.development_model import require_model
from tests.models import write_tiny_llama
from tests.resident_engines import PROMPT
from tests.serve.client import ServerProcess

GAP = {"input_prefix": "def f(", "input_suffix": ")", "n_predict": 4}


@pytest.fixture(scope="module")
def coder(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server with a tiny model whose vocabulary has tokens for infilling, and a start token."""
    model = write_tiny_llama(tmp_path_factory.mktemp("model") / "coder.gguf", can_infill=True)
    server = ServerProcess(server_home, "-m", str(model), "--ctx", "256")
    yield server
    server.close()


def post(server: ServerProcess, path: str, body: dict[str, Any]) -> Any:
    status, answer, _ = server.request(path, body)
    assert status == 200, answer
    return answer


def read_events(server: ServerProcess, path: str, body: dict[str, Any]) -> list[Any]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=600)
    connection.request("POST", path, json.dumps(body | {"stream": True}).encode())
    lines = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def count(server: ServerProcess, text: str) -> int:
    return int(post(server, "/tokenize", {"content": text, "parse_special": False})["count"])


def test_infill_has_the_form_of_llama_server(coder: ServerProcess) -> None:
    answer = post(coder, "/infill", GAP)
    assert (
        answer["tokens_evaluated"] == count(coder, "def f(") + count(coder, ")") + 4
    )  # 3 tokens for infilling, and BOS
    assert (answer["stop"], answer["tokens_predicted"], answer["stop_type"]) == (True, 4, "limit")
    assert answer["timings"]["predicted_n"] == 4
    *chunks, end = read_events(coder, "/infill", GAP | {"temperature": 0})
    whole = post(coder, "/infill", GAP | {"temperature": 0})
    assert "".join(chunk["content"] for chunk in chunks) == whole["content"]
    assert [chunk["stop"] for chunk in chunks] == [False] * len(chunks)
    assert (end["stop"], end["content"], end["tokens_predicted"]) == (True, "", 4)
    fields = {"response_fields": ["content", "timings/predicted_n"]}
    assert post(coder, "/infill", GAP | fields).keys() == {"content", "timings/predicted_n"}


def test_texts_of_control_tokens_are_plain_text(coder: ServerProcess) -> None:
    text = "<|user|><|assistant|>"
    answer = post(coder, "/infill", {"input_prefix": text, "input_suffix": text, "prompt": text, "n_predict": 0})
    assert answer["tokens_evaluated"] == 3 * count(coder, text) + 4
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)


def test_all_forms_give_the_same_prompt(coder: ServerProcess) -> None:
    n_tokens = post(coder, "/infill", GAP)["tokens_evaluated"]
    body = {"prompt": "def f(", "suffix": ")", "max_tokens": 4, "temperature": 0}
    answer = post(coder, "/v1/completions", body)
    assert answer["usage"]["prompt_tokens"] == n_tokens
    for path in ("/v1/fim/completions", "/fim/completions"):
        chat = post(coder, path, body)
        assert chat["usage"]["prompt_tokens"] == n_tokens
        assert chat["choices"][0]["message"]["content"] == answer["choices"][0]["text"]
    events = read_events(coder, "/fim/completions", body)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == answer["choices"][0]["text"]
    ollama = {"prompt": "def f(", "suffix": ")", "options": {"num_predict": 4, "temperature": 0}, "stream": False}
    generated = post(coder, "/api/generate", ollama)
    assert generated["prompt_eval_count"] == n_tokens
    assert generated["response"] == answer["choices"][0]["text"]
    assert "insert" in post(coder, "/api/show", {"model": "coder"})["capabilities"]
    tokens = post(coder, "/tokenize", {"content": "def f("})["tokens"]
    assert post(coder, "/v1/completions", body | {"prompt": tokens})["usage"]["prompt_tokens"] == n_tokens
    assert post(coder, "/v1/completions", body | {"suffix": ""})["usage"]["prompt_tokens"] == n_tokens - 3 - 2


def test_completion_has_the_form_of_llama_server(server: ServerProcess) -> None:
    body = {"prompt": PROMPT, "n_predict": 5, "temperature": 0}
    answer = post(server, "/completion", body)
    text = post(server, "/v1/completions", {"prompt": body["prompt"], "max_tokens": 5, "temperature": 0})
    assert answer["content"] == text["choices"][0]["text"]
    assert answer["tokens_evaluated"] == text["usage"]["prompt_tokens"]
    stopped = post(server, "/completion", body | {"stop": [answer["content"][1:4]]})
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", answer["content"][1:4])
    events = read_events(server, "/completion", body | {"return_progress": True})
    assert any("prompt_progress" in event for event in events)
    assert "".join(event["content"] for event in events) == answer["content"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/infill", {}, "input_prefix"), ("/infill", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", GAP | {"prompt": 5}, "prompt"), ("/infill", GAP | {"input_extra": {}}, "input_extra"),
        ("/infill", GAP | {"input_extra": [{"filename": "a"}]}, "text"),
        ("/infill", GAP | {"input_extra": [{"filename": 5, "text": "a"}]}, "filename"),
        ("/infill", GAP | {"n": 2}, "n: must be 1"), ("/infill", GAP | {"input_prefix": "a " * 400}, "context"),
        ("/completion", {"prompt": ["a", "b"]}, "must be one text"), ("/completion", {}, "prompt"),
        ("/completion", {"prompt": "a", "n_probs": 3}, "n_probs"),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "echo": True}, "echo"),
        ("/v1/fim/completions", {"suffix": "b"}, "prompt"),
    ],
)  # fmt: skip
def test_invalid_request_is_reported(coder: ServerProcess, path: str, body: dict[str, Any], message: str) -> None:
    status, answer, _ = coder.request(path, body)
    assert status == 400, answer
    assert message in answer["error"]["message"]


def test_model_without_tokens_for_infilling_is_reported(server: ServerProcess) -> None:
    for path, body in (
        ("/infill", GAP), ("/v1/completions", {"prompt": "a", "suffix": "b"}), ("/fim/completions", {"prompt": "a"}),
    ):  # fmt: skip
        status, answer, _ = server.request(path, body)
        assert (status, "starter has no tokens for infilling" in answer["error"]["message"]) == (400, True)


@pytest.mark.long
def test_a_model_for_code_fills_the_gap(start: Any) -> None:
    server = start("-m", str(require_model()), "--ctx", "1024")
    body = {"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n\nprint(add(1, 2))\n", "temperature": 0}
    extra = [{"filename": "a.py", "text": "def sub(a, b):\n    return a - b\n"}]
    for fields, n_tokens in (({}, 19), ({"input_extra": extra}, 42)):  # 42 tokens are those of llama-server
        answer = post(server, "/infill", body | fields | {"stop": ["\n"], "n_predict": 16})
        assert (answer["content"], answer["tokens_evaluated"]) == ("return a + b", n_tokens)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
FILE = st.fixed_dictionaries({}, optional={"text": st.text() | JSON, "filename": st.text(max_size=5) | JSON})
BODY = st.fixed_dictionaries({"max_tokens": st.integers(0, 2)}, optional={
    "input_prefix": st.text() | JSON, "input_suffix": st.text() | JSON, "prompt": st.text() | JSON,
    "input_extra": st.lists(FILE, max_size=3) | JSON, "suffix": st.text() | JSON, "stream": st.booleans() | JSON,
    "response_fields": st.lists(st.text(max_size=5), max_size=2) | JSON, "model": JSON, "stop": JSON, "echo": JSON,
    "temperature": st.floats(0, 2) | JSON,
})  # fmt: skip


def test_random_bodies_cause_no_server_error(coder: ServerProcess) -> None:
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(("/infill", "/completion", "/v1/fim/completions", "/v1/completions")), BODY)
    def send(path: str, body: dict[str, Any]) -> None:
        status, answer, _ = coder.request(path, body)
        assert status < 500, answer

    send()
    assert "Internal error" not in "".join(coder.errors)
