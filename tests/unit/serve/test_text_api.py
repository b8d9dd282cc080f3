"""Limits of the endpoints for tokens, with a model that tokenises each character to its code."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from edgechat.errors import ContextOverflowError
from edgechat.serve.endpoints import BodyReader
from edgechat.serve.errors import ApiError
from edgechat.serve.served_models import ServedModels
from edgechat.serve.text_api import MAX_TEXT_PARTS, TextApi

N_CTX = 100


class Queue:
    """Model queue that counts its calls of the engine."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.model_properties = SimpleNamespace(n_ctx=N_CTX, n_ctx_train=N_CTX)
        self.prompt_builder = SimpleNamespace(max_text_tokens=4 * N_CTX)

    async def tokenize_text(self, text: str, **_flags: bool) -> list[int]:
        self.n_calls += 1
        return list(map(ord, text))

    async def detokenize(self, tokens: list[int]) -> list[bytes]:
        self.n_calls += 1
        return [chr(token).encode() for token in tokens]

    def validate_tokens(self, tokens: list[int], _param: str) -> list[int]:
        return tokens

    @contextlib.contextmanager
    def admit(self, _client: str) -> Iterator[None]:
        yield


async def send(queue: Queue, endpoint: str, **fields: Any) -> Any:
    """Send a request with these fields to an endpoint, and return the decoded response."""

    async def read_body(_request: Request, body_type: type[Any], _memory: object) -> Any:
        return body_type(**fields)

    async def wait_for_disconnect() -> Any:
        await asyncio.Event().wait()

    models = cast("ServedModels", SimpleNamespace(get=lambda _name, _kind: queue))
    request = Request({"type": "http", "client": None}, wait_for_disconnect)
    response = await getattr(TextApi(models, cast("BodyReader", read_body)), endpoint)(request)
    return json.loads(bytes(response.body))


async def test_tokens_of_more_than_four_contexts_are_refused() -> None:
    queue = Queue()
    assert (await send(queue, "detokenize", tokens=[97] * 4 * N_CTX))["content"] == "a" * 4 * N_CTX
    queue.n_calls = 0
    with pytest.raises(ContextOverflowError, match="more than 400 tokens"):
        await send(queue, "detokenize", tokens=[97] * (4 * N_CTX + 1))
    assert queue.n_calls == 0


@pytest.mark.parametrize("parts", [["a" * 30] * 100, [97] * 1000, ["a" * 399, 97, 97]])
async def test_parts_of_more_than_four_contexts_are_refused(parts: list[str | int]) -> None:
    queue = Queue()
    with pytest.raises(ContextOverflowError, match="more than 400 tokens"):
        await send(queue, "tokenize", content=parts)
    assert queue.n_calls < 15


async def test_number_of_texts_is_limited() -> None:
    queue = Queue()
    assert (await send(queue, "tokenize", content=[""] * MAX_TEXT_PARTS))["count"] == 0
    queue.n_calls = 0
    with pytest.raises(ApiError, match="content: 1025 texts; at most 1024 are allowed") as caught:
        await send(queue, "tokenize", content=[""] * (MAX_TEXT_PARTS + 1))
    assert (caught.value.status, caught.value.param, queue.n_calls) == (400, "content", 0)
