"""POST /v1/embeddings: vectors for texts, of models that are made for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
from array import array

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgechat.engine import protocol
from edgechat.serve.completions import split_inputs
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responses import cancel_on_disconnect
from edgechat.serve.schemas import EmbeddingsRequest


async def embed(request: Request, served: ModelQueue, wanted: EmbeddingsRequest) -> Response:
    """Answer. Raises ApiError and EdgechatError."""
    loaded = served.loaded
    if not loaded.is_embedding:
        raise ApiError(400, f"{served.name} makes texts, not vectors: serve an embedding model", param="model")
    if wanted.dimensions is not None and wanted.dimensions > loaded.n_embd:
        raise ApiError(400, f"dimensions: this model has {loaded.n_embd}", param="dimensions")
    with served.admit():
        vectors, n_tokens = await cancel_on_disconnect(request, asyncio.ensure_future(_compute(served, wanted)))
    n = wanted.dimensions or loaded.n_embd
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(_truncate(vector, n), wanted.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    body = {"object": "list", "data": data, "model": served.name, "usage": usage}
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _compute(served: ModelQueue, wanted: EmbeddingsRequest) -> tuple[list[array[float]], int]:
    texts = split_inputs(wanted.input, "input")
    given = [
        await served.tokenize(text) if isinstance(text, str) else served.validate_tokens(text, "input")
        for text in texts
    ]
    with contextlib.closing(await served.submit([served.embed_request(given)])) as answer:
        while (heard := await answer.next()) is not None:
            if isinstance(heard.event, protocol.Embedded):
                return [array("f", v) for v in heard.event.embeddings], sum(map(len, given))
    raise ApiError(500, "the engine ended a request without a last word")


def _truncate(vector: array[float], n: int) -> array[float]:
    """The first `n` numbers, of length one again."""
    if n == len(vector):
        return vector
    short = vector[:n]
    length = math.sqrt(sum(x * x for x in short)) or 1.0
    return array("f", [x / length for x in short])


def _encode(vector: array[float], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return vector.tolist()
