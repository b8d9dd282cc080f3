"""Random requests in each API, while another client sends a secret: no server error, no leak."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing import shorten
from tests.models import write_tiny_bert, write_tiny_llama
from tests.serve import test_anthropic, test_infill, test_ollama, test_rerank, test_text_api
from tests.serve.client import ServerProcess

pytestmark = pytest.mark.long

SECRET = "zanzibar-quokka-7731"
"""Text in the prompts of another client, which no response to a random request may contain."""
OPTIONS = ("--ctx", "1024", "--max-tokens", "8")
N_REQUESTS = shorten(2000, 250)
N_MIXED_REQUESTS = shorten(150, 40)  # the models compute in turn, so a request takes longer
JSON, vary, TEXTS = test_anthropic.JSON, test_anthropic.vary, test_anthropic.TEXTS
CALLS = st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({
    "name": vary(st.just("get_weather")), "arguments": vary(TEXTS | st.just("{}")),
})}), max_size=2)  # fmt: skip
OPENAI_MESSAGE = vary(st.fixed_dictionaries(
    {"role": vary(st.sampled_from(["system", "user", "assistant", "tool", "developer"])), "content": vary(TEXTS)},
    optional={"reasoning_content": vary(TEXTS), "name": JSON, "tool_call_id": vary(TEXTS), "tool_calls": vary(CALLS)},
))  # fmt: skip
OPENAI_BODY = st.fixed_dictionaries(
    {"max_tokens": vary(st.just(2)), "messages": vary(st.lists(OPENAI_MESSAGE, min_size=1, max_size=3)),
     "prompt": vary(TEXTS), "content": vary(TEXTS), "input": vary(TEXTS)},
    optional={
        "model": vary(st.just("starter")), "stream": vary(st.booleans()), "n": vary(st.integers(0, 3)),
        "temperature": vary(st.floats(0, 2)), "seed": vary(st.integers()), "stop": vary(TEXTS),
        "logprobs": st.booleans() | st.integers(0, 3), "top_logprobs": vary(st.integers(0, 3)),
        "tools": vary(st.just([test_ollama.WEATHER])), "tool_choice": vary(st.sampled_from(["auto", "required"])),
        "response_format": vary(st.sampled_from([{"type": "json_object"}, {"type": "text"}])),
        "logit_bias": vary(st.just({"5": 1})), "echo": vary(st.booleans()), "thinking": JSON, "user": JSON,
    },
)  # fmt: skip
OPENAI_PATHS = ("/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize")


INFILL_PATHS = ("/infill", "/completion", "/v1/fim/completions", "/v1/completions")
TEXT_PATHS = ("/tokenize", "/detokenize", "/apply-template", "/v1/chat/completions/input_tokens")


def add_valid(bodies: st.SearchStrategy[dict[str, Any]], **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return random bodies; half of them have these valid fields, and at most one random field."""
    return st.tuples(bodies, st.booleans()).map(
        lambda example: dict(list(example[0].items())[:1]) | fields if example[1] else example[0]
    )


INFILL_BODY = add_valid(
    test_infill.BODY, model="coder", input_prefix="a", input_suffix="b", prompt="a", max_tokens=2
)  # fmt: skip
RERANK_BODY = add_valid(test_rerank.BODY, model="reranker", query="a", documents=["a", "b"])
TEXT_BODY = add_valid(
    test_text_api.BODY, model="starter", content="a", tokens=[1], messages=[{"role": "user", "content": "a"}]
)  # fmt: skip


@pytest.fixture(scope="module")
def starter_server(server_home: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(server_home, "-m", "starter", *OPTIONS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def several_models_server(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server that also has a tiny model for infilling and a tiny reranker."""
    directory = tmp_path_factory.mktemp("models")
    coder = write_tiny_llama(directory / "coder.gguf", can_infill=True)
    reranker = write_tiny_bert(directory / "reranker.gguf", is_reranker=True)
    server = ServerProcess(server_home, "-m", "starter", "-m", str(coder), "-m", str(reranker), *OPTIONS)
    yield server
    server.close()


@pytest.fixture
def server(starter_server: ServerProcess) -> Iterator[ServerProcess]:
    with send_secret_to(starter_server) as server:
        yield server


@pytest.fixture
def mixed_server(several_models_server: ServerProcess) -> Iterator[ServerProcess]:
    with send_secret_to(several_models_server) as server:
        yield server


@contextlib.contextmanager
def send_secret_to(server: ServerProcess) -> Iterator[ServerProcess]:
    """Send the secret to a server as another client all the time, and check the server at the end."""
    ended = threading.Event()

    def send_secret() -> None:
        while not ended.is_set():
            body = {"messages": f"Repeat: {SECRET}. Again: {SECRET}.", "max_tokens": 8}
            assert server.chat(body)[0] in {200, 503}

    client = threading.Thread(target=send_secret)
    client.start()
    try:
        yield server
    finally:
        ended.set()
        client.join()
        assert "Internal error" not in "".join(server.errors)
        assert server.chat({"messages": "Hi", "max_tokens": 2})[0] == 200


def send_many(
    server: ServerProcess, paths: tuple[str, ...], bodies: st.SearchStrategy[Any], n_requests: int
) -> Counter[int]:  # fmt: skip
    """Send random requests, and count the statuses of the responses."""
    statuses: Counter[int] = Counter()

    @settings(max_examples=n_requests, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(paths), bodies)
    def send(path: str, body: Any) -> None:
        status, answer, _ = server.request(path, body)
        assert status in {200, 400, 404, 503}, answer
        assert SECRET not in str(answer)
        statuses[status] += 1

    send()
    return statuses


def limit_ollama(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("options")
    return body | {"options": options | {"num_predict": 2} if isinstance(options, dict) else {"num_predict": 2}}


@pytest.mark.parametrize(
    ("paths", "bodies"),
    [
        (OPENAI_PATHS, OPENAI_BODY),
        (("/v1/messages", "/v1/messages", "/v1/messages/count_tokens"), test_anthropic.BODIES),
        (tuple(f"/api/{path}" for path in test_ollama.PATHS), test_ollama.BODY.map(limit_ollama)),
    ],
    ids=["openai", "anthropic", "ollama"],
)
def test_random_requests_cause_no_server_error_and_no_leak(
    server: ServerProcess, paths: tuple[str, ...], bodies: st.SearchStrategy[Any]
) -> None:
    statuses = send_many(server, paths, bodies, N_REQUESTS)
    assert statuses[200] > N_REQUESTS // 10, statuses
    assert statuses[400] > N_REQUESTS // 10, statuses


@pytest.mark.parametrize(
    ("paths", "bodies"),
    [(INFILL_PATHS, INFILL_BODY), (("/v1/rerank", "/v2/rerank"), RERANK_BODY), (TEXT_PATHS, TEXT_BODY)],
    ids=["infill", "rerank", "text"],
)
def test_random_requests_to_several_models_cause_no_server_error_and_no_leak(
    mixed_server: ServerProcess, paths: tuple[str, ...], bodies: st.SearchStrategy[Any]
) -> None:
    statuses = send_many(mixed_server, paths, bodies, N_MIXED_REQUESTS)
    assert statuses[200] > N_MIXED_REQUESTS // 10, statuses
    assert statuses[400] > N_MIXED_REQUESTS // 10, statuses
