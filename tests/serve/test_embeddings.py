"""Embeddings from a tiny BERT model, served together with a chat model."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import subprocess
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.conftest import Cli
from tests.models import write_tiny_bert
from tests.serve.client import ServerProcess

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def client(embedding_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=embedding_server.url, api_key="none", max_retries=0) as client:
        yield client


def embed(embedding_server: ServerProcess, body: dict[str, Any]) -> list[list[float]]:
    status, answer, _ = embedding_server.request("/v1/embeddings", {"model": "tiny-bert"} | body)
    assert status == 200, answer
    return [item["embedding"] for item in answer["data"]]


def test_embeddings_are_normalised_and_independent_of_the_batch(
    client: OpenAI, embedding_server: ServerProcess
) -> None:
    answer = client.embeddings.create(model="tiny-bert", input=["hello world", "hello", "hello world"])
    first, other, same = (item.embedding for item in answer.data)
    assert first == pytest.approx(same, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(first, other, strict=True)) > 0.01
    assert math.isclose(math.fsum(x * x for x in first), 1.0, abs_tol=1e-5)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4 + 3 + 4  # with [CLS] and [SEP]
    (single,) = embed(embedding_server, {"input": "hello world"})
    assert single == pytest.approx(first, abs=1e-3)
    (encoded,) = embed(embedding_server, {"input": "hello world", "encoding_format": "base64"})
    assert array("f", base64.b64decode(encoded)).tolist() == pytest.approx(first, abs=1e-3)  # type: ignore[arg-type]


def test_truncated_embeddings_are_normalised(embedding_server: ServerProcess) -> None:
    (whole,) = embed(embedding_server, {"input": "the world"})
    (truncated,) = embed(embedding_server, {"input": "the world", "dimensions": 8})
    assert len(truncated) == 8
    assert math.isclose(math.fsum(x * x for x in truncated), 1.0, abs_tol=1e-5)
    assert truncated[0] / truncated[1] == pytest.approx(whole[0] / whole[1], rel=1e-4)


def test_token_ids_are_embedded_unchanged(embedding_server: ServerProcess) -> None:
    text, tokens = embed(embedding_server, {"input": "hello"}), embed(embedding_server, {"input": [2, 57, 3]})
    assert text[0] == pytest.approx(tokens[0], abs=1e-6)
    assert len(embed(embedding_server, {"input": [[2, 57, 3], [2, 58, 3]]})) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": "hello " * 200}, "this model embeds at most 128"), ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [999]}, "vocabulary"), ({"input": "a", "dimensions": 1000}, "dimensions"),
        ({"input": ["a"] * 65}, "65 inputs"),
        ({"input": "a", "model": "starter"}, "is not an embedding model"), ({"input": [[]]}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "hex"),
    ],
)  # fmt: skip
def test_invalid_request_is_reported(embedding_server: ServerProcess, body: dict[str, Any], message: str) -> None:
    status, answer, _ = embedding_server.request("/v1/embeddings", {"model": "tiny-bert"} | body)
    assert status == 400, answer
    assert message in answer["error"]["message"]


def test_concurrent_requests_to_both_models_succeed(embedding_server: ServerProcess) -> None:
    statuses: list[int] = []

    def send(model: str, path: str, body: dict[str, Any]) -> None:
        statuses.extend(embedding_server.request(path, body | {"model": model})[0] for _ in range(3))

    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    threads = [
        threading.Thread(target=send, args=arguments)
        for arguments in (("starter", "/v1/chat/completions", chat), ("tiny-bert", "/v1/embeddings", {"input": "a"}))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6


def test_embedding_model_does_not_chat(client: OpenAI, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        client.chat.completions.create(model="tiny-bert", messages=[{"role": "user", "content": "hi"}])
    assert [m.id for m in client.models.list()] == ["starter", "tiny-bert"]
    model = write_tiny_bert(tmp_path / "tiny-bert.gguf")
    done = cli("ask", "-m", str(model), "hello")
    assert done.returncode == 3
    assert "is an embedding model and cannot chat" in done.stderr
    assert cli("plan", str(model), "--no-measure").returncode == 0


@pytest.mark.skipif(
    not (NODE / "node_modules").exists() or not shutil.which("node"),
    reason="needs Node.js and the packages of tests/serve/node",
)
def test_official_javascript_client(embedding_server: ServerProcess) -> None:
    done = subprocess.run(
        ["node", NODE / "client.mjs", embedding_server.url, "none", "tiny-bert"], capture_output=True, text=True,
        timeout=600, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["chat"] == result["stream"]
    assert result["chat"].startswith("1. 1")
    assert result["pinged"]
    assert result["progress"]["processed"] == result["progress"]["total"] > 1000
    assert result["usage"]["completion_tokens"] == 16
    assert result["call"]["name"] == "get_weather"
    assert json.loads(result["call"]["arguments"]).keys() == {"city"}
    assert 0 <= result["json"]["age"] <= 150
    assert result["vectors"] == [64, 64]
    assert result["models"] == ["starter", "tiny-bert"]
    assert result["error"] == {"status": 404, "code": "model_not_found", "name": "NotFoundError"}
