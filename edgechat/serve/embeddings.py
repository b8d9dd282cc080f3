"""Embeddings endpoint (POST /v1/embeddings) for embedding models."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import math
from array import array
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgechat.engine import protocol
from edgechat.errors import ContextOverflowError
from edgechat.serve.completions import split_inputs
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responding import cancel_on_disconnect, find_client_address
from edgechat.serve.schemas import EmbeddingsRequest


async def embed(request: Request, queue: ModelQueue, body: EmbeddingsRequest) -> Response:
    """Compute the embeddings of all inputs of a request, and build the response. Raises ApiError and EdgechatError."""
    embeddings, n_tokens = await compute_embeddings(request, queue, body)
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(embedding, body.encoding_format)}
        for i, embedding in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    response = {"object": "list", "data": data, "model": queue.choose_response_name(body.model), "usage": usage}
    return Response(msgspec.json.encode(response), media_type="application/json")


async def compute_embeddings(
    request: Request, queue: ModelQueue, body: EmbeddingsRequest, *, truncate: bool = False
) -> tuple[list[array[float]], int]:
    """Return one embedding per input, and the total number of input tokens.

    With `truncate`, texts that are longer than the context are cut off at its end. Raises ApiError and EdgechatError.
    """
    model_properties = queue.model_properties
    if queue.kind != "embedding":
        message = f"{queue.name} is not an embedding model. Start the server with an embedding model."
        raise ApiError(400, message, param="model")
    if body.dimensions is not None and body.dimensions > model_properties.n_embd:
        raise ApiError(
            400, f"dimensions: must be at most {model_properties.n_embd} with this model.", param="dimensions"
        )
    with queue.admit(find_client_address(request)):
        task = asyncio.ensure_future(_submit_inputs(queue, body, truncate=truncate))
        embeddings, n_tokens = await cancel_on_disconnect(request, task)
    n_dimensions = body.dimensions or model_properties.n_embd
    return [_truncate(embedding, n_dimensions) for embedding in embeddings], n_tokens


async def _submit_inputs(
    queue: ModelQueue, body: EmbeddingsRequest, *, truncate: bool
) -> tuple[list[array[float]], int]:  # fmt: skip
    """Return the embeddings with all dimensions, and the total number of input tokens."""
    tokenize = functools.partial(_tokenize_start, queue) if truncate else queue.tokenize
    inputs = [
        await tokenize(item) if isinstance(item, str) else queue.validate_tokens(item, "input")
        for item in split_inputs(body.input, "input")
    ]
    if truncate:
        inputs = truncate_inputs(inputs, queue.model_properties.n_ctx, await queue.tokenize(""))
    with contextlib.closing(await queue.submit([queue.build_embed_request(inputs)])) as events:
        computed = await events.wait_for(protocol.EmbeddingsComputed)
    return [array("f", values) for values in computed.embeddings], sum(map(len, inputs))


async def _tokenize_start(queue: ModelQueue, text: str) -> list[int]:
    """Tokenise `text`, or a beginning of it that fills the context if it is several times longer than the context."""
    with contextlib.suppress(ContextOverflowError):
        return await queue.tokenize(text)
    tokens: list[int] = []
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            tokens = await queue.tokenize(text[:middle])
        except ContextOverflowError:
            high = middle
            continue
        if len(tokens) >= queue.model_properties.n_ctx:
            break
        low = middle
    return tokens


def truncate_inputs(inputs: Sequence[list[int]], n_ctx: int, empty_text: Sequence[int]) -> list[list[int]]:
    """Truncate tokenised inputs to `n_ctx` tokens, but keep the end token.

    `empty_text` has the tokens of an empty text, which are the start and end tokens that the tokeniser adds.
    """
    return [
        tokens if len(tokens) <= n_ctx
        else [*tokens[: n_ctx - 1], tokens[-1]] if empty_text and tokens[-1] == empty_text[-1]
        else tokens[:n_ctx]
        for tokens in inputs
    ]  # fmt: skip


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
