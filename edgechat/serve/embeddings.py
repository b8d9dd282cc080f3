"""Embeddings endpoint (POST /v1/embeddings) for embedding models."""

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
from edgechat.serve.responses import cancel_on_disconnect, find_client_address
from edgechat.serve.schemas import EmbeddingsRequest


async def embed(request: Request, queue: ModelQueue, body: EmbeddingsRequest) -> Response:
    """Compute the embeddings of all inputs of a request, and build the response. Raises ApiError and EdgechatError."""
    model_properties = queue.model_properties
    if not model_properties.is_embedding:
        message = f"{queue.name} is not an embedding model. Start the server with an embedding model."
        raise ApiError(400, message, param="model")
    if body.dimensions is not None and body.dimensions > model_properties.n_embd:
        raise ApiError(
            400, f"dimensions: must be at most {model_properties.n_embd} with this model.", param="dimensions"
        )
    with queue.admit(find_client_address(request)):
        task = asyncio.ensure_future(_compute_embeddings(queue, body))
        embeddings, n_tokens = await cancel_on_disconnect(request, task)
    n_dimensions = body.dimensions or model_properties.n_embd
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(_truncate(e, n_dimensions), body.encoding_format)}
        for i, e in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    response = {"object": "list", "data": data, "model": queue.name, "usage": usage}
    return Response(msgspec.json.encode(response), media_type="application/json")


async def _compute_embeddings(queue: ModelQueue, body: EmbeddingsRequest) -> tuple[list[array[float]], int]:
    """Return one embedding per input, and the total number of input tokens."""
    inputs = [
        await queue.tokenize(item) if isinstance(item, str) else queue.validate_tokens(item, "input")
        for item in split_inputs(body.input, "input")
    ]
    with contextlib.closing(await queue.submit([queue.build_embed_request(inputs)])) as events:
        while (request_event := await events.next()) is not None:
            if isinstance(request_event.event, protocol.EmbeddingsComputed):
                return [array("f", v) for v in request_event.event.embeddings], sum(map(len, inputs))
    raise ApiError(500, "The engine ended a request without a final event. Send the request again.")


def _truncate(embedding: array[float], n_dimensions: int) -> array[float]:
    """Return the first `n_dimensions` values of an embedding, normalised to length 1."""
    if n_dimensions == len(embedding):
        return embedding
    prefix = embedding[:n_dimensions]
    norm = math.sqrt(sum(x * x for x in prefix)) or 1.0
    return array("f", [x / norm for x in prefix])


def _encode(embedding: array[float], encoding_format: str | None) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(embedding.tobytes()).decode()
    return embedding.tolist()
