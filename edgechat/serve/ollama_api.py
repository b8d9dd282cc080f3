"""Endpoints of the Ollama API (/api/...), on the same models and queues as the OpenAI API."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgechat import __version__
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.completions import MAX_INPUTS, CompletionResponseBuilder
from edgechat.serve.dialects.ollama import OllamaDialect, make_load_object
from edgechat.serve.dialects.ollama_models import API_VERSION, ModelDescriber
from edgechat.serve.dialects.ollama_requests import (
    is_load_request,
    is_unload_request,
    make_chat_request,
    make_generate_request,
)
from edgechat.serve.dialects.ollama_schemas import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaModelRequest,
)
from edgechat.serve.embeddings import compute_embeddings
from edgechat.serve.endpoints import BodyReader, Endpoint, ErrorHandler, make_json_response
from edgechat.serve.errors import ApiError
from edgechat.serve.metrics import Metrics
from edgechat.serve.model_queue import ModelKind, ModelQueue
from edgechat.serve.responding import respond
from edgechat.serve.schemas import ChatRequest, EmbeddingsRequest
from edgechat.serve.served_models import ServedModels

_NS_PER_S: Final = 1_000_000_000
_MAX_EMBED_INPUTS: Final = 2048
_REFUSED_ENDPOINTS: Final = {
    "/api/create": ("POST",), "/api/copy": ("POST",), "/api/delete": ("DELETE",), "/api/push": ("POST",),
    "/api/blobs/{digest}": ("HEAD", "POST"),
}  # fmt: skip
"""Endpoints of Ollama that change or upload models."""


class OllamaApi:
    """Endpoints of the Ollama API."""

    def __init__(self, models: ServedModels, metrics: Metrics, read_body: BodyReader) -> None:
        self._models = models
        self._metrics = metrics
        self._read_body = read_body
        self._describer = ModelDescriber()

    def make_routes(self, handle_errors: ErrorHandler) -> list[Route]:
        """Build the routes."""
        endpoints: list[tuple[str, Endpoint, str | None, tuple[str, ...]]] = [
            ("/", self.greet, None, ("GET",)),
            ("/api/version", self.version, None, ("GET",)),
            ("/api/chat", self.chat, "messages", ("POST",)),
            ("/api/generate", self.generate, "prompt", ("POST",)),
            ("/api/embed", self.embed, "input", ("POST",)),
            ("/api/embeddings", self.embed_prompt, "prompt", ("POST",)),
            ("/api/tags", self.list_models, None, ("GET",)),
            ("/api/ps", self.list_running_models, None, ("GET",)),
            ("/api/show", self.show, "model", ("POST",)),
            ("/api/pull", self.pull, "model", ("POST",)),
        ]
        refuse = handle_errors(self.refuse, None)
        return [
            *(Route(path, handle_errors(endpoint, param), methods=list(m)) for path, endpoint, param, m in endpoints),
            *(Route(path, refuse, methods=m, include_in_schema=False) for path, m in _REFUSED_ENDPOINTS.items()),
        ]

    def _find_queue(self, name: str | None, kind: ModelKind) -> ModelQueue:
        queue = self._models.find(name, kind)
        if queue is None:
            raise self._make_unknown_error(name)
        return queue

    def _make_unknown_error(self, name: str | None) -> ApiError:
        # Clients recognise the error by the first words.
        message = f"model '{name}' not found. Available models: {', '.join(self._models.names)}."
        return ApiError(404, message, param="model", code="model_not_found")

    def _choose_response_name(self, name: str | None, queue: ModelQueue) -> str:
        """Return the name in the request if the model has it, otherwise the model's own name."""
        return name if name and self._models.find_exact(name) is queue else queue.name

    def _find_text_queue(self, name: str | None) -> ModelQueue:
        queue = self._find_queue(name, "text")
        queue.check_generates_text("/api/embed")
        return queue

    async def greet(self, request: Request) -> Response:  # noqa: ARG002
        return PlainTextResponse("Ollama is running")  # the text by which clients recognise the API

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        return make_json_response({"version": API_VERSION, "edgechat": __version__})

    async def chat(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, OllamaChatRequest, memory)
            queue = self._find_text_queue(body.model)
            name = self._choose_response_name(body.model, queue)
            if is_load_request(body):
                return make_json_response(make_load_object(name, is_chat=True, is_unload=is_unload_request(body)))
            builder = ChatResponseBuilder(queue, make_chat_request(body))
            del body
            return await respond(
                request, OllamaDialect(builder, name, is_chat=True), self._metrics, memory.pop_all()
            )  # fmt: skip

    async def generate(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, OllamaGenerateRequest, memory)
            queue = self._find_text_queue(body.model)
            name = self._choose_response_name(body.model, queue)
            if is_load_request(body):
                return make_json_response(make_load_object(name, is_chat=False, is_unload=is_unload_request(body)))
            converted_body = make_generate_request(body)
            builder: ChatResponseBuilder | CompletionResponseBuilder
            if isinstance(converted_body, ChatRequest):
                builder = ChatResponseBuilder(queue, converted_body)
            else:
                builder = CompletionResponseBuilder(queue, converted_body)
            del body, converted_body
            return await respond(
                request, OllamaDialect(builder, name, is_chat=False), self._metrics, memory.pop_all()
            )  # fmt: skip

    async def embed(self, request: Request) -> Response:
        started_at = time.monotonic()
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, OllamaEmbedRequest, memory)
            inputs = [body.input] if isinstance(body.input, str) else body.input or []
            truncate = body.truncate is None or bool(body.truncate)
            queue = self._find_queue(body.model, "embedding")
            embeddings, n_tokens = await self._compute(
                request, queue, [text for text in inputs if text or len(inputs) > 1], body.dimensions or None,
                truncate=truncate,
            )  # fmt: skip
        return make_json_response({
            "model": self._choose_response_name(body.model, queue), "embeddings": embeddings,
            "total_duration": round((time.monotonic() - started_at) * _NS_PER_S), "load_duration": 0,
            "prompt_eval_count": n_tokens,
        })  # fmt: skip

    async def embed_prompt(self, request: Request) -> Response:
        """Compute the embedding of one text, in the form of an older version of the API."""
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, OllamaEmbeddingsRequest, memory)
            queue = self._find_queue(body.model, "embedding")
            embeddings, _ = await self._compute(request, queue, [body.prompt] if body.prompt else [], truncate=True)
        return make_json_response({"embedding": embeddings[0] if embeddings else []})

    async def _compute(
        self, request: Request, queue: ModelQueue, inputs: list[str], n_dimensions: int | None = None, *,
        truncate: bool,
    ) -> tuple[list[list[float]], int]:  # fmt: skip
        """Return one embedding per input, and the total number of tokens. `n_dimensions` shortens the embeddings."""
        embeddings: list[list[float]] = []
        n_tokens = 0
        if queue.kind != "embedding":
            raise ApiError(400, f"{queue.name} is not an embedding model.", param="model")
        if len(inputs) > _MAX_EMBED_INPUTS:
            raise ApiError(400, f"input: {len(inputs)} inputs; at most {_MAX_EMBED_INPUTS} are allowed.", param="input")
        if n_dimensions is not None:
            n_dimensions = min(n_dimensions, queue.model_properties.n_embd) or None
        for start in range(0, len(inputs), MAX_INPUTS):
            body = EmbeddingsRequest(input=list(inputs[start : start + MAX_INPUTS]), dimensions=n_dimensions)
            batch, n_batch_tokens = await compute_embeddings(request, queue, body, truncate=truncate)
            embeddings += [embedding.tolist() for embedding in batch]
            n_tokens += n_batch_tokens
        return embeddings, n_tokens

    async def list_models(self, request: Request) -> Response:  # noqa: ARG002
        entries = [await self._describer.make_list_entry(queue, name) for name, queue in self._models.items()]
        return make_json_response({"models": entries})

    async def list_running_models(self, request: Request) -> Response:  # noqa: ARG002
        return make_json_response(
            {"models": [await self._describer.make_running_entry(q) for q in self._models.queues]}
        )

    async def show(self, request: Request) -> Response:
        body = await self._read_model_request(request)
        name = body.model_name
        queue = self._models.find_exact(name) if name else self._models.queues[0]
        if queue is None:
            raise self._make_unknown_error(name)
        return make_json_response(await self._describer.make_description(queue))

    async def pull(self, request: Request) -> Response:
        """Report success for a served model, so that scripts that pull a model before they use it continue."""
        body = await self._read_model_request(request)
        if self._models.find_exact(body.model_name or "") is None:
            message = (
                f"model '{body.model_name}' not found: edgechat downloads no models over HTTP. "
                "Run `edgechat models pull` on the server, and start it with this model."
            )
            raise ApiError(404, message, param="model", code="model_not_found")
        is_stream = body.stream is None or bool(body.stream)
        media_type = OllamaDialect.STREAM_MEDIA_TYPE if is_stream else "application/json"
        return Response(msgspec.json.encode({"status": "success"}) + b"\n", media_type=media_type)

    async def _read_model_request(self, request: Request) -> OllamaModelRequest:
        async with contextlib.AsyncExitStack() as memory:
            return await self._read_body(request, OllamaModelRequest, memory)

    async def refuse(self, request: Request) -> Response:
        message = f"{request.url.path} is not supported: edgechat changes no models over HTTP. Use `edgechat models`."
        raise ApiError(400, message)
