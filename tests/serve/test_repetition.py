"""Replies that repeat themselves, through the official Python client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.models import write_parrot
from tests.serve.client import ServerProcess, user

PASSAGE = "abcdefghijklmnopqrst"
LOOP = PASSAGE * 10
LIMIT = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parrot(tmp_path_factory.mktemp("models") / "parrot.gguf", PASSAGE, is_endless=True)


@pytest.fixture(scope="module")
def server(server_home: Path, model: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(server_home, "-m", str(model), "--ctx", "2048")
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: OpenAI, **options: Any) -> Any:
    fields = {"model": "parrot", "messages": user("Hi"), "max_tokens": LIMIT, "temperature": 0} | options
    return client.chat.completions.create(**fields)  # type: ignore[call-overload]


def test_chat_reply_that_repeats_itself_ends_early(client: OpenAI) -> None:
    answer = chat(client, n=2)
    for choice in answer.choices:
        assert choice.message.content == LOOP
        assert choice.finish_reason == "length"
        assert choice.stop_reason == "repetition_detected"
    chunks = list(chat(client, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == LOOP
    assert chunks[-1].choices[0].finish_reason == "length"
    assert [getattr(c.choices[0], "stop_reason", None) for c in chunks] == [
        *[None] * (len(chunks) - 1),
        "repetition_detected",
    ]


def test_client_can_turn_the_stop_off(client: OpenAI) -> None:
    for options in ({"stop_repetition": False}, {"ignore_eos": True}):
        [choice] = chat(client, extra_body=options).choices
        assert len(choice.message.content) == LIMIT
        assert choice.finish_reason == "length"
        assert not hasattr(choice, "stop_reason")


def test_text_completion_repeats_itself_unless_the_client_asks_for_the_stop(client: OpenAI) -> None:
    fields: Any = {"model": "parrot", "prompt": "<|assistant|>", "max_tokens": LIMIT, "temperature": 0}
    [choice] = client.completions.create(**fields).choices
    assert len(choice.text) == LIMIT
    assert not hasattr(choice, "stop_reason")
    stop: Any = {"stop_repetition": True}
    [choice] = client.completions.create(**fields, extra_body=stop).choices
    assert choice.text == LOOP
    assert (choice.finish_reason, choice.stop_reason) == ("length", "repetition_detected")
    *_, last = client.completions.create(**fields, extra_body=stop, stream=True)
    assert last.choices[0].stop_reason == "repetition_detected"


def test_flag_turns_the_stop_off_for_all_requests(model: Path, start: Any) -> None:
    server: ServerProcess = start("-m", str(model), "--ctx", "2048", "--no-stop-repetition")
    body = {"messages": user("Hi"), "max_tokens": LIMIT, "temperature": 0}
    status, answer, _ = server.request("/v1/chat/completions", body)
    assert status == 200
    assert len(answer["choices"][0]["message"]["content"]) == LIMIT
    _, answer, _ = server.request("/v1/chat/completions", body | {"stop_repetition": True})
    assert answer["choices"][0]["stop_reason"] == "repetition_detected"
