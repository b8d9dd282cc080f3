"""Vectors, from a tiny model of BERT's kind that is served beside one that chats."""

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
from tests.serve.driving import Server

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, served_home: Path) -> Iterator[Server]:
    model = write_tiny_bert(tmp_path_factory.mktemp("model") / "tiny-bert.gguf")
    server = Server(served_home, "-m", "starter", "-m", str(model))
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(both: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=both.url, api_key="none", max_retries=0) as client:
        yield client


def vectors(both: Server, body: dict[str, Any]) -> list[list[float]]:
    status, answer, _ = both.ask("/v1/embeddings", {"model": "tiny-bert"} | body)
    assert status == 200, answer
    return [each["embedding"] for each in answer["data"]]


def test_vectors(client: OpenAI, both: Server) -> None:
    answer = client.embeddings.create(model="tiny-bert", input=["hello world", "hello", "hello world"])
    first, other, same = (each.embedding for each in answer.data)
    assert first == same != other
    assert math.isclose(math.fsum(x * x for x in first), 1.0, abs_tol=1e-5)
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4 + 3 + 4  # with [CLS] and [SEP]
    (plain,) = vectors(both, {"input": "hello world"})
    assert plain == pytest.approx(first, abs=1e-6)
    (coded,) = vectors(both, {"input": "hello world", "encoding_format": "base64"})
    assert array("f", base64.b64decode(coded)).tolist() == pytest.approx(first, abs=1e-6)  # type: ignore[arg-type]


def test_shorter_ones_have_length_one_too(both: Server) -> None:
    (whole,) = vectors(both, {"input": "the world"})
    (short,) = vectors(both, {"input": "the world", "dimensions": 8})
    assert len(short) == 8
    assert math.isclose(math.fsum(x * x for x in short), 1.0, abs_tol=1e-5)
    assert short[0] / short[1] == pytest.approx(whole[0] / whole[1], rel=1e-4)


def test_tokens_are_taken_as_they_are(both: Server) -> None:
    text, tokens = vectors(both, {"input": "hello"}), vectors(both, {"input": [2, 57, 3]})
    assert text[0] == pytest.approx(tokens[0], abs=1e-6)
    assert len(vectors(both, {"input": [[2, 57, 3], [2, 58, 3]]})) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": "hello " * 200}, "this model embeds 1 to 128"), ({"input": []}, "input"), ({"input": ["a", 1]}, "input"),
        ({"input": [999]}, "vocabulary"), ({"input": "a", "dimensions": 1000}, "dimensions"), ({"input": ["a"] * 65}, "65 texts"),
        ({"input": "a", "model": "starter"}, "not vectors"), ({"input": [[]]}, "input"), ({"input": "a", "encoding_format": "hex"}, "hex"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(both: Server, body: dict[str, Any], words: str) -> None:
    status, answer, _ = both.ask("/v1/embeddings", {"model": "tiny-bert"} | body)
    assert status == 400, answer
    assert words in answer["error"]["message"]


def test_both_models_are_asked_at_once(both: Server) -> None:
    results: list[int] = []

    def ask(model: str, path: str, body: dict[str, Any]) -> None:
        results.extend(both.ask(path, body | {"model": model})[0] for _ in range(3))

    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    threads = [
        threading.Thread(target=ask, args=each)
        for each in (("starter", "/v1/chat/completions", chat), ("tiny-bert", "/v1/embeddings", {"input": "a"}))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 6


def test_a_model_for_vectors_does_not_chat(client: OpenAI, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="makes vectors, not texts"):
        client.chat.completions.create(model="tiny-bert", messages=[{"role": "user", "content": "hi"}])
    assert [m.id for m in client.models.list()] == ["starter", "tiny-bert"]
    model = write_tiny_bert(tmp_path / "tiny-bert.gguf")
    done = cli("ask", "-m", str(model), "hello")
    assert done.returncode == 3
    assert "makes vectors of texts" in done.stderr
    assert cli("plan", str(model)).returncode == 0


@pytest.mark.skipif(not (NODE / "node_modules").exists() or not shutil.which("node"), reason="there is no npm here")
def test_the_official_client_for_javascript(both: Server) -> None:
    done = subprocess.run(
        ["node", NODE / "client.mjs", both.url, "none", "tiny-bert"], capture_output=True, text=True, timeout=100, check=False,
        env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chat"] == found["stream"]
    assert found["chat"].startswith("Gravity is")
    assert found["usage"]["completion_tokens"] == 16
    assert found["call"]["name"] == "get_weather"
    assert json.loads(found["call"]["arguments"]).keys() == {"city"}
    assert 0 <= found["json"]["age"] <= 150
    assert found["vectors"] == [64, 64]
    assert found["models"] == ["starter", "tiny-bert"]
    assert found["error"] == {"status": 404, "code": "model_not_found", "name": "NotFoundError"}
