"""Prompts of any length up to that of the model's training, on a server without a set context length."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_tiny
from tests.serve.client import ServerProcess

N_CTX_TRAIN = 16384


@pytest.fixture(scope="module")
def server(server_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    model = write_tiny(tmp_path_factory.mktemp("model") / "long.gguf", "llama", n_ctx=N_CTX_TRAIN)
    server = ServerProcess(server_home, "-m", str(model))
    yield server
    server.close()


def complete(server: ServerProcess, n_tokens: int, **fields: Any) -> tuple[int, dict[str, Any]]:
    tokens = [1, *(10 + i % 200 for i in range(n_tokens - 1))]
    status, body, _ = server.request(
        "/v1/completions", {"model": "long", "prompt": tokens, "max_tokens": 5, "ignore_eos": True} | fields
    )
    return status, body


def test_none_of_four_parallel_requests_fails_while_the_context_grows(server: ServerProcess) -> None:
    results: dict[int, tuple[int, dict[str, Any]]] = {}

    def run(seed: int) -> None:
        results[seed] = complete(server, 3000 + 500 * seed, max_tokens=40)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[seed][0] for seed in range(4)] == [200] * 4, results
    assert [results[seed][1]["usage"]["completion_tokens"] for seed in range(4)] == [40] * 4


def test_prompt_of_12_000_tokens_is_accepted(server: ServerProcess) -> None:
    status, models, _ = server.request("/v1/models")
    assert models["data"][0]["max_model_len"] == N_CTX_TRAIN
    for n_tokens in (100, 12_000):
        status, body = complete(server, n_tokens)
        assert (status, body.get("usage", {}).get("prompt_tokens")) == (200, n_tokens), body
    status, body = complete(server, N_CTX_TRAIN)
    assert status == 400
    assert "16,384 tokens" in body["error"]["message"]
