"""Endpoints for completions in the forms of llama-server (/completion, /infill) and Mistral (/v1/fim/completions)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgechat.engine import protocol
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.choices import Choice
from edgechat.serve.completions import CompletionResponseBuilder
from edgechat.serve.dialects.llama_server import LlamaServerDialect
from edgechat.serve.dialects.openai import OpenAiDialect
from edgechat.serve.endpoints import BodyReader, ErrorHandler
from edgechat.serve.errors import ApiError
from edgechat.serve.infill import InfillParts, make_infill_prompt
from edgechat.serve.infill_schemas import FimRequest, InfillRequest, NativeCompletionRequest, NativeParams
from edgechat.serve.metrics import Metrics
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responding import respond
from edgechat.serve.schemas import ChatRequest, CompletionRequest, GenerationParams


class InfillApi:
    """Endpoints that complete a text, or fill a gap in it. `find_queue` returns the queue of the model with a name."""

    def __init__(
        self, find_queue: Callable[[str | None], ModelQueue], metrics: Metrics, read_body: BodyReader
    ) -> None:  # fmt: skip
        self._find_queue = find_queue
        self._metrics = metrics
        self._read_body = read_body

    def make_routes(self, handle_errors: ErrorHandler) -> list[Route]:
        """Build the routes."""
        return [
            Route("/completion", handle_errors(self.complete, "prompt"), methods=["POST"]),
            Route("/infill", handle_errors(self.infill, "input_prefix"), methods=["POST"]),
            Route("/v1/fim/completions", handle_errors(self.fim, "prompt"), methods=["POST"]),
        ]

    async def complete(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, NativeCompletionRequest, memory)
            _check_native(body)
            queue, fields = self._find_queue(body.model), tuple(body.response_fields or ())
            builder = CompletionResponseBuilder(queue, _make_completion_request(body, body.prompt))
            if builder.has_several_prompts:
                raise ApiError(400, "prompt: must be one text. /v1/completions accepts several.", param="prompt")
            del body
            return await respond(request, LlamaServerDialect(builder, fields), self._metrics, memory.pop_all())

    async def infill(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, InfillRequest, memory)
            _check_native(body)
            queue, fields = self._find_queue(body.model), tuple(body.response_fields or ())
            parts = InfillParts(body.input_prefix, body.input_suffix, body.prompt or "", body.input_extra or ())
            builder = InfillResponseBuilder(queue, _make_completion_request(body, ""), parts, "input_suffix")
            del body, parts
            return await respond(request, LlamaServerDialect(builder, fields), self._metrics, memory.pop_all())

    async def fim(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, FimRequest, memory)
            builder = FimResponseBuilder(self._find_queue(body.model), body)
            del body
            return await respond(request, OpenAiDialect(builder), self._metrics, memory.pop_all())


def _check_native(body: NativeParams) -> None:
    if body.n_probs:
        raise ApiError(400, "n_probs: not supported. /v1/completions has logprobs.", param="n_probs")
    if (body.n or 1) > 1 or body.best_of is not None:
        raise ApiError(400, "n: must be 1 here. /v1/completions accepts other values.", param="n")


def _copy_params(body: GenerationParams) -> dict[str, Any]:
    return {name: getattr(body, name) for name in GenerationParams.__struct_fields__}


def _make_completion_request(body: NativeParams, prompt: Any) -> CompletionRequest:
    fields = _copy_params(body)
    if body.n_predict is not None:
        fields["max_tokens"] = body.n_predict
    return CompletionRequest(prompt=prompt, **fields)


class InfillResponseBuilder(CompletionResponseBuilder):
    """Builds the engine request for the parts of a text with a gap."""

    def __init__(self, queue: ModelQueue, body: CompletionRequest, parts: InfillParts, param: str) -> None:
        """Create a builder; `param` is the name of the request field with the suffix, for error responses."""
        super().__init__(queue, body)
        self._parts = parts
        self._param = param

    async def make_prompt(self, prompt: str | list[int]) -> list[int]:  # noqa: ARG002
        return await make_infill_prompt(self.queue, self._parts, self.max_tokens, self._param)

    def discard_prompt(self) -> None:
        super().discard_prompt()
        self._parts = InfillParts("", "")


class FimResponseBuilder(ChatResponseBuilder):
    """Builds the engine request of an infill request of Mistral, whose response has the form of a chat completion."""

    ID_PREFIX = "fim-"

    def __init__(self, queue: ModelQueue, body: FimRequest) -> None:
        fields = _copy_params(body)
        if body.max_completion_tokens is not None:
            fields["max_tokens"] = body.max_completion_tokens
        super().__init__(queue, ChatRequest(messages=[], **fields))
        parts = InfillParts(body.prompt, body.suffix or "")
        self._completion = InfillResponseBuilder(queue, CompletionRequest(prompt="", **fields), parts, "suffix")

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        return await self._completion.build_requests()

    def discard_prompt(self) -> None:
        super().discard_prompt()
        self._completion.discard_prompt()
