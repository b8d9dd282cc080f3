"""Prompts of any length up to that of the model's training, on a server without a set context length."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_tiny
from tests.serve.conftest import Start

N_CTX_TRAIN = 32768


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "long.gguf", "llama", n_ctx=N_CTX_TRAIN)


def complete(server: Any, n_tokens: int, **fields: Any) -> tuple[int, dict[str, Any]]:
    tokens = [1, *(10 + i % 200 for i in range(n_tokens - 1))]
    status, body, _ = server.request(
        "/v1/completions", {"model": "long", "prompt": tokens, "max_tokens": 5, "ignore_eos": True} | fields
    )
    return status, body


def test_prompt_of_20_000_tokens_is_accepted(start: Start, model: Path) -> None:
    server = start("-m", str(model))
    status, models, _ = server.request("/v1/models")
    assert models["data"][0]["max_model_len"] == N_CTX_TRAIN
    for n_tokens in (100, 20_000):
        status, body = complete(server, n_tokens)
        assert (status, body.get("usage", {}).get("prompt_tokens")) == (200, n_tokens), body
    status, body = complete(server, N_CTX_TRAIN)
    assert status == 400
    assert "32,768 tokens" in body["error"]["message"]


def test_none_of_four_parallel_requests_fails_while_the_context_grows(start: Start, model: Path) -> None:
    server = start("-m", str(model))
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
