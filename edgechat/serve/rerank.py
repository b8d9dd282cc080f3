"""Reranking (POST /v1/rerank), in the forms of Jina, Cohere and Text Embeddings Inference (TEI)."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgechat.engine import protocol
from edgechat.serve.endpoints import BodyReader, ErrorHandler, make_json_response
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responding import cancel_on_disconnect, find_client_address
from edgechat.serve.schemas import Flag
from edgechat.serve.served_models import ServedModels

MAX_DOCUMENTS: Final = 1024
_PATHS: Final = ("/v1/rerank", "/v1/reranking", "/v2/rerank")
"""Paths of the endpoint; the second is that of llama-server, the third that of Cohere's current client."""


class TextDocument(Struct, frozen=True):
    """Document as an object."""

    text: str


class RerankRequest(Struct, frozen=True, kw_only=True):
    """Request body of /v1/rerank."""

    query: str
    documents: list[str | TextDocument] | None = None
    texts: list[str] | None = None
    """The documents in the API of TEI, which selects its form of the response."""
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """Maximum number of results; None for all."""
    return_documents: Flag | None = None
    """True to return the text of each document with its score."""
    return_text: Flag | None = None
    """The same field in the API of TEI."""
    raw_scores: Flag | None = None
    """True to return the model's output unchanged, as llama-server does, instead of a value from 0 to 1."""


class RerankApi:
    """Endpoint that sorts documents by their relevance to a query."""

    def __init__(self, models: ServedModels, read_body: BodyReader) -> None:
        self._models = models
        self._read_body = read_body

    def make_routes(self, handle_errors: ErrorHandler) -> list[Route]:
        """Build the routes."""
        endpoint = handle_errors(self.rerank, "documents")
        return [Route(path, endpoint, methods=["POST"], include_in_schema=path == _PATHS[0]) for path in _PATHS]

    async def rerank(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, RerankRequest, memory)
            queue = self._find_queue(body.model)
            documents = _read_documents(body)
            with queue.admit(find_client_address(request)):
                task = asyncio.ensure_future(_submit(queue, body.query, documents))
                reranked: protocol.Reranked = await cancel_on_disconnect(request, task)
            results = make_results(body, documents, reranked.scores, are_probabilities=reranked.are_probabilities)
        if body.texts is not None:
            return make_json_response(results)
        usage = {"prompt_tokens": reranked.n_tokens, "total_tokens": reranked.n_tokens}
        return make_json_response({
            "model": queue.choose_response_name(body.model), "object": "list", "usage": usage, "results": results
        })  # fmt: skip

    def _find_queue(self, name: str | None) -> ModelQueue:
        if any(queue.kind == "reranker" for queue in self._models.queues):
            queue = self._models.get(name, "reranker")
            if queue.kind == "reranker":
                return queue
            message = f"{queue.name} is not a reranker. Send the name of a reranker as model."
        else:
            message = "No reranker is served. Start the server with one, such as `-m bge-reranker-v2-m3.gguf`."
        raise ApiError(400, message, param="model")


def _read_documents(body: RerankRequest) -> list[str]:
    documents: Sequence[str | TextDocument] = (body.documents if body.texts is None else body.texts) or ()
    if not documents:
        raise ApiError(400, "documents: must be a list of at least one text.", param="documents")
    if len(documents) > MAX_DOCUMENTS:
        message = f"documents: {len(documents)} documents; at most {MAX_DOCUMENTS} are allowed."
        raise ApiError(400, message, param="documents")
    return [document if isinstance(document, str) else document.text for document in documents]


async def _submit(queue: ModelQueue, query: str, documents: list[str]) -> protocol.Reranked:
    with contextlib.closing(await queue.submit([queue.build_rerank_request(query, documents)])) as events:
        return await events.wait_for(protocol.Reranked)


def make_results(
    body: RerankRequest, documents: Sequence[str], scores: Sequence[float], *, are_probabilities: bool
) -> list[dict[str, Any]]:
    """Build the results, best first. Documents with the same score keep their order.

    A score is a value from 0 to 1: the sigmoid function converts logits. The form is that of TEI if the request is.
    """
    has_texts = bool(body.return_documents if body.texts is None else body.return_text)
    is_unchanged = bool(body.raw_scores) or are_probabilities
    results: list[dict[str, Any]] = []
    for i in sorted(range(len(documents)), key=lambda i: -scores[i])[: body.top_n]:
        score = scores[i] if is_unchanged else _compute_sigmoid(scores[i])
        if body.texts is not None:
            results.append({"index": i, "score": score} | ({"text": documents[i]} if has_texts else {}))
        else:
            document = {"document": {"text": documents[i]}} if has_texts else {}
            results.append({"index": i, "relevance_score": score} | document)
    return results


def _compute_sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
