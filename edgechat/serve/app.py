"""HTTP application: routes, endpoints and error responses."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgechat import __version__
from edgechat.errors import EdgechatError, GrammarError
from edgechat.serve import errors, metrics, openapi
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.completions import CompletionResponseBuilder
from edgechat.serve.embeddings import embed
from edgechat.serve.errors import ApiError
from edgechat.serve.middleware import AccessRules, RequestGuard, error_response
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responses import respond
from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest

Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """Endpoints of the server. A request without a model name is sent to the first model."""

    def __init__(self, models: Mapping[str, ModelQueue]) -> None:
        self._models = models
        self._metrics = metrics.Metrics(models)
        self._started_s = int(time.time())

    def app(self, rules: AccessRules) -> ASGIApp:
        """Return the ASGI application inside a `RequestGuard` that enforces `rules`."""
        routes = [
            Route("/v1/chat/completions", _with_error_handling(self.chat, "messages"), methods=["POST"]),
            Route("/v1/completions", _with_error_handling(self.completions, "prompt"), methods=["POST"]),
            Route("/v1/embeddings", _with_error_handling(self.embeddings, "input"), methods=["POST"]),
            Route("/v1/models", _with_error_handling(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", _with_error_handling(self.model), methods=["GET"]),
            Route("/health", _with_error_handling(self.health), methods=["GET"]),
            Route("/metrics", _with_error_handling(self.metrics), methods=["GET"]),
            Route("/openapi.json", _with_error_handling(self.openapi), methods=["GET"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
        return RequestGuard(app, rules, self._metrics.count_request)

    def _find_queue(self, name: str | None) -> ModelQueue:
        if not name:
            return next(iter(self._models.values()))
        if name not in self._models:
            message = f"Model {name!r} is not served. Available models: {', '.join(self._models)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._models[name]

    def _find_text_queue(self, name: str | None) -> ModelQueue:
        queue = self._find_queue(name)
        if queue.loaded.is_embedding:
            message = f"{queue.name} is an embedding model and generates no text. Use /v1/embeddings."
            raise ApiError(400, message, param="model")
        return queue

    async def chat(self, request: Request) -> Response:
        body = errors.decode_body(await request.body(), ChatRequest)
        try:
            return await respond(request, ChatResponseBuilder(self._find_text_queue(body.model), body), self._metrics)
        except GrammarError as error:
            raise errors.to_api_error(error, "tools" if body.tools else "response_format") from error

    async def completions(self, request: Request) -> Response:
        body = errors.decode_body(await request.body(), CompletionRequest)
        builder = CompletionResponseBuilder(self._find_text_queue(body.model), body)
        return await respond(request, builder, self._metrics)

    async def embeddings(self, request: Request) -> Response:
        body = errors.decode_body(await request.body(), EmbeddingsRequest)
        return await embed(request, self._find_queue(body.model), body)

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        return _json({"object": "list", "data": [self._model_object(queue) for queue in self._models.values()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return _json(self._model_object(self._find_queue(name))) if name else await self.models(request)

    def _model_object(self, queue: ModelQueue) -> dict[str, object]:
        loaded = queue.loaded
        return {
            "id": queue.name, "object": "model", "created": self._started_s, "owned_by": "edgechat",
            "meta": {"n_ctx": loaded.n_ctx, "n_ctx_train": loaded.n_ctx_train, "n_params": loaded.n_params,
                     "size": loaded.size_bytes, "is_embedding": loaded.is_embedding},
        }  # fmt: skip

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        errors.check_accepting(is_open=not any(queue.is_draining for queue in self._models.values()))
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(self._metrics.render(), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        return _json(openapi.document(__version__))


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _with_error_handling(endpoint: Endpoint, param: str | None = None) -> Endpoint:
    """Wrap an endpoint so that exceptions become error responses.

    `param` is the request field with the input text, which error responses name.
    """

    async def handle(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ApiError as error:
            return error_response(error)
        except EdgechatError as error:
            return error_response(errors.to_api_error(error, param))
        except RecursionError:
            return error_response(ApiError(400, "The request is nested too deeply.", code="invalid_value"))
        except Exception as error:  # noqa: BLE001  (one failed request must not stop the server)
            return error_response(errors.internal_error(error))

    return handle


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    is_wrong_method = status == 405  # noqa: PLR2004
    path = request.url.path
    message = f"{request.method} is not allowed for {path}." if is_wrong_method else f"{path} is not an endpoint."
    response = error_response(ApiError(status, message))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response
