"""HTTP application: routes, endpoints and error responses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgechat import __version__
from edgechat.errors import EdgechatError
from edgechat.humanize import shorten
from edgechat.serve import errors, metrics, openapi
from edgechat.serve.bodies import BodyBudget
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.completions import CompletionResponseBuilder
from edgechat.serve.dialects.anthropic import AnthropicDialect, make_model_list
from edgechat.serve.dialects.anthropic_requests import CountingBuilder, MessageResponseBuilder, make_chat_request
from edgechat.serve.dialects.anthropic_schemas import CountTokensRequest, MessagesRequest
from edgechat.serve.dialects.openai import OpenAiDialect
from edgechat.serve.embeddings import embed
from edgechat.serve.endpoints import Endpoint, make_json_response
from edgechat.serve.errors import ApiError
from edgechat.serve.infill_api import InfillApi
from edgechat.serve.middleware import AccessRules, RequestGuard, make_error_response
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.ollama_api import OllamaApi
from edgechat.serve.paths import PathTable
from edgechat.serve.reasoning import find_server_default
from edgechat.serve.rerank import RerankApi
from edgechat.serve.responding import count_prompt_tokens, find_client_address, respond
from edgechat.serve.responses_api import ResponsesApi
from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest
from edgechat.serve.served_models import ServedModels
from edgechat.serve.text_api import TextApi

T = TypeVar("T")
_MAX_PATH_CHARS: Final = 200


class Api:
    """HTTP endpoints of the OpenAI API and Anthropic's."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._metrics = metrics.Metrics(models.queues)
        self._body_budget = BodyBudget()
        self._started_at = int(time.time())

    def build_app(self, rules: AccessRules) -> ASGIApp:
        """Build the ASGI application, wrapped in a `RequestGuard` that enforces `rules`."""
        routes = [
            Route("/v1/chat/completions", _with_error_handling(self.chat, "messages"), methods=["POST"]),
            Route("/v1/chat/completions/{id}/end_thinking", _with_error_handling(self.end_thinking), methods=["POST"]),
            Route("/v1/completions", _with_error_handling(self.completions, "prompt"), methods=["POST"]),
            Route("/v1/embeddings", _with_error_handling(self.embeddings, "input"), methods=["POST"]),
            Route("/v1/messages", _with_error_handling(self.messages, "messages"), methods=["POST"]),
            Route("/v1/messages/count_tokens", _with_error_handling(self.count_tokens, "messages"), methods=["POST"]),
            Route("/v1/models", _with_error_handling(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", _with_error_handling(self.model), methods=["GET"]),
            Route("/health", _with_error_handling(self.health), methods=["GET"]),
            Route("/metrics", _with_error_handling(self.metrics), methods=["GET"]),
            Route("/openapi.json", _with_error_handling(self.openapi), methods=["GET"]),
            *InfillApi(self._find_text_queue, self._metrics, self._read_body).make_routes(_with_error_handling),
            *RerankApi(self._models, self._read_body).make_routes(_with_error_handling),
            *TextApi(self._models, self._read_body).make_routes(_with_error_handling),
            *ResponsesApi(self._find_text_queue, self._metrics, self._read_body, self._body_budget).make_routes(
                _with_error_handling
            ),
            *OllamaApi(self._models, self._metrics, self._read_body).make_routes(_with_error_handling),
        ]
        paths = PathTable(routes)
        app = Starlette(routes=routes, exception_handlers={HTTPException: _HttpErrorHandler(paths)})
        return RequestGuard(app, rules, self._metrics.count_request, paths)

    def _find_text_queue(self, name: str | None) -> ModelQueue:
        queue = self._models.get(name, "text")
        queue.check_generates_text("/v1/embeddings")
        return queue

    async def chat(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, ChatRequest, memory)
            builder = ChatResponseBuilder(self._find_text_queue(body.model), body)
            del body
            return await respond(request, OpenAiDialect(builder), self._metrics, memory.pop_all())

    async def end_thinking(self, request: Request) -> Response:
        """End the reasoning of a chat completion that is being generated, so that the model answers now."""
        response_id = request.path_params["id"]
        if not any(queue.end_thinking(response_id) for queue in self._models.queues):
            raise ApiError(404, f"No chat completion with the id {response_id[:60]!r} is being generated.", param="id")
        return make_json_response({"id": response_id, "object": "chat.completion.end_thinking"})

    async def completions(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, CompletionRequest, memory)
            builder = CompletionResponseBuilder(self._find_text_queue(body.model), body)
            del body
            return await respond(request, OpenAiDialect(builder), self._metrics, memory.pop_all())

    async def embeddings(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, EmbeddingsRequest, memory)
            return await embed(request, self._models.get(body.model, "embedding"), body)

    async def messages(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, MessagesRequest, memory)
            builder = self._make_message_builder(body)
            dialect = AnthropicDialect(builder, body.stop_sequences or ())
            del body
            return await respond(request, dialect, self._metrics, memory.pop_all())

    async def count_tokens(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, CountTokensRequest, memory)
            builder = self._make_message_builder(body, CountingBuilder)
            del body
            return make_json_response({"input_tokens": await count_prompt_tokens(request, builder)})

    def _make_message_builder(
        self, body: CountTokensRequest, builder_type: type[MessageResponseBuilder] = MessageResponseBuilder
    ) -> MessageResponseBuilder:
        queue = self._find_text_queue(body.model)
        thinks_by_default = bool(find_server_default(queue.settings))
        return builder_type(queue, make_chat_request(body, thinks_by_default=thinks_by_default))

    async def _read_body(self, request: Request, body_type: type[T], memory: contextlib.AsyncExitStack) -> T:
        """Receive and decode a request body. Raises ApiError.

        The body counts in the memory budget until the caller closes `memory`. If all queues are full, the body is not
        received.
        """
        client = find_client_address(request)
        obstacles = [obstacle for queue in self._models.queues if (obstacle := queue.find_obstacle(client))]
        if obstacles and len(obstacles) == len(self._models.queues):
            raise obstacles[0]
        data = await memory.enter_async_context(self._body_budget.read(request.receive, request.headers))
        try:
            return errors.decode_body(data, body_type)
        finally:
            data.clear()  # the budget now counts the decoded values instead

    async def models(self, request: Request) -> Response:
        if "anthropic-version" in request.headers:
            return make_json_response(make_model_list(self._models.names, self._started_at))
        objects = [await self._make_model_object(name, queue) for name, queue in self._models.items()]
        return make_json_response({"object": "list", "data": objects})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name:
            return await self.models(request)
        queue = self._models.find_exact(name)
        if queue is None:
            raise self._models.make_unknown_error(name)
        return make_json_response(await self._make_model_object(queue.choose_response_name(name), queue))

    async def _make_model_object(self, name: str, queue: ModelQueue) -> dict[str, object]:
        model_properties = queue.model_properties
        # The template is rendered for this once, in another process.
        has_native_tools = queue.kind == "text" and await asyncio.to_thread(
            lambda: queue.prompt_builder.formats.has_native_tools
        )
        return {
            "id": name, "object": "model", "created": self._started_at, "owned_by": "edgechat",
            # The model list of vLLM calls the model behind an alias `root`.
            "root": queue.name,
            # The model list of vLLM calls the context length `max_model_len`, that of OpenRouter `context_length`.
            "max_model_len": model_properties.n_ctx, "context_length": model_properties.n_ctx,
            "meta": {"n_ctx": model_properties.n_ctx, "n_ctx_train": model_properties.n_ctx_train,
                     "n_params": model_properties.n_params, "size": model_properties.size_bytes,
                     "is_embedding": queue.kind == "embedding", "is_reranker": queue.kind == "reranker",
                     "has_native_tools": has_native_tools},
        }  # fmt: skip

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        errors.check_accepts_requests(is_accepting=not any(queue.is_draining for queue in self._models.queues))
        return make_json_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(self._metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        return make_json_response(openapi.build_openapi_document(__version__))


def _with_error_handling(endpoint: Endpoint, param: str | None = None) -> Endpoint:
    """Wrap an endpoint so that exceptions become error responses.

    `param` is the name of the request field that holds the input text. Error responses report it in `param`.
    """

    async def handle(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            api_error = error
        except EdgechatError as error:
            api_error = errors.to_api_error(error, param)
        except RecursionError:
            api_error = ApiError(400, "The request is nested too deeply.", code="invalid_value")
        except Exception as error:  # noqa: BLE001  (one failed request must not stop the server)
            api_error = errors.make_internal_error(error)
        return make_error_response(api_error, request.url.path)

    return handle


class _HttpErrorHandler:
    """Builds the responses to requests for unknown paths, and with methods that an endpoint does not allow."""

    def __init__(self, paths: PathTable) -> None:
        self._paths = paths

    async def __call__(self, request: Request, error: Exception) -> Response:
        status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
        path = request.url.path
        if status == 405:  # noqa: PLR2004
            message = f"{request.method} is not allowed for {path}."
        else:
            shown_path = shorten(path, _MAX_PATH_CHARS)
            message = f"{shown_path} is not an endpoint. {self._paths.describe(path)}"
        response = make_error_response(ApiError(status, message), path)
        response.headers.update(headers or {})
        return response
