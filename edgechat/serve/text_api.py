"""Endpoints for tokens, prompts and properties of the served models, in the forms of llama-server and vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgechat import __version__
from edgechat.engine.overflow import make_overflow_error
from edgechat.prompt.builder import BuiltPrompt
from edgechat.serve.endpoints import BodyReader, ErrorHandler, make_json_response
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.prompt_rendering import RenderingBuilder
from edgechat.serve.responding import cancel_on_disconnect, find_client_address
from edgechat.serve.schemas import ChatRequest
from edgechat.serve.served_models import ServedModels
from edgechat.serve.text_schemas import DetokenizeRequest, TokenizeRequest

MAX_TEXT_PARTS: Final = 1024
"""Maximum number of texts in the list form of `content`, each of which the engine tokenises separately."""


class TextApi:
    """Endpoints that tokenise texts, render prompts and describe a model, without generating anything."""

    def __init__(self, models: ServedModels, read_body: BodyReader) -> None:
        self._models = models
        self._read_body = read_body

    def make_routes(self, handle_errors: ErrorHandler) -> list[Route]:
        """Build the routes."""
        return [
            Route("/tokenize", handle_errors(self.tokenize, "content"), methods=["POST"]),
            Route("/detokenize", handle_errors(self.detokenize, "tokens"), methods=["POST"]),
            Route("/apply-template", handle_errors(self.apply_template, "messages"), methods=["POST"]),
            Route("/v1/chat/completions/input_tokens", handle_errors(self.count_tokens, "messages"), methods=["POST"]),
            Route("/props", handle_errors(self.describe_model, None), methods=["GET"]),
            Route("/version", handle_errors(self.version, None), methods=["GET"]),
            Route("/slots", handle_errors(self.refuse_slots, None), methods=["GET"], include_in_schema=False),
        ]

    async def tokenize(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, TokenizeRequest, memory)
            queue = self._find_any_queue(body.model)
            with queue.admit(find_client_address(request)):
                task = asyncio.ensure_future(_tokenize(queue, body))
                return make_json_response(await cancel_on_disconnect(request, task))

    async def detokenize(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, DetokenizeRequest, memory)
            queue = self._find_any_queue(body.model)
            _check_length(queue, len(body.tokens))
            tokens = queue.validate_tokens(body.tokens, "tokens") if body.tokens else []
            with queue.admit(find_client_address(request)):
                task = asyncio.ensure_future(queue.detokenize(tokens))
                text = b"".join(await cancel_on_disconnect(request, task)).decode("utf-8", "replace")
        return make_json_response({"content": text, "prompt": text})  # names of llama-server and of vLLM

    def _find_any_queue(self, name: str | None) -> ModelQueue:
        """Return the model with this name, of any kind; otherwise choose a text model."""
        return self._models.get(name, "text")

    async def apply_template(self, request: Request) -> Response:
        return make_json_response({"prompt": (await self._render(request)).text})

    async def count_tokens(self, request: Request) -> Response:
        n_tokens = len((await self._render(request)).tokens)
        return make_json_response({"object": "response.input_tokens", "input_tokens": n_tokens})

    async def _render(self, request: Request) -> BuiltPrompt:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, ChatRequest, memory)
            queue = self._models.get(body.model, "text")
            queue.check_generates_text("/tokenize")
            builder = RenderingBuilder(queue, body)
            del body
            with queue.admit(find_client_address(request)):
                prompt: BuiltPrompt = await cancel_on_disconnect(request, asyncio.ensure_future(builder.render()))
        return prompt

    async def describe_model(self, request: Request) -> Response:
        """Describe a model, given in the query as `model`, and the defaults of requests to it."""
        queue = self._models.get(request.query_params.get("model"), "text")
        return make_json_response(make_model_properties(queue))

    async def version(self, request: Request) -> Response:  # noqa: ARG002
        return make_json_response({"version": __version__})

    async def refuse_slots(self, request: Request) -> Response:  # noqa: ARG002
        # llama-server answers so without --slots. edgechat's scheduler has no fixed slots to report.
        raise ApiError(501, "This server has no slots. /metrics counts the running and waiting requests.")


async def _tokenize(queue: ModelQueue, body: TokenizeRequest) -> dict[str, Any]:
    if body.messages is not None:
        queue.check_generates_text("/tokenize with content")
        chat_request = ChatRequest(
            messages=body.messages, tools=body.tools, model=body.model,
            add_generation_prompt=body.add_generation_prompt,
        )  # fmt: skip
        tokens = (await RenderingBuilder(queue, chat_request).render()).tokens
    else:
        tokens = await _tokenize_text(queue, body)
    fields: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": queue.model_properties.n_ctx}
    if body.with_pieces or body.return_token_strs:
        pieces = await queue.detokenize(tokens)
        if body.return_token_strs:
            fields["token_strs"] = [piece.decode("utf-8", "replace") for piece in pieces]
        if body.with_pieces:
            fields["tokens"] = [
                {"id": token, "piece": _format_piece(piece)} for token, piece in zip(tokens, pieces, strict=True)
            ]
    return fields


async def _tokenize_text(queue: ModelQueue, body: TokenizeRequest) -> list[int]:
    parts: Sequence[str | int]
    if body.content is not None:
        parts, add_special = [body.content] if isinstance(body.content, str) else body.content, body.add_special
        add_special = bool(add_special if add_special is not None else body.add_special_tokens)
    elif body.prompt is not None:
        flags = (body.add_special_tokens, body.add_special, True)
        parts, add_special = [body.prompt], bool(next(flag for flag in flags if flag is not None))
    else:
        raise ApiError(400, "content: missing. Send the text as content, prompt or messages.", param="content")
    parse_special = body.parse_special is None or bool(body.parse_special)
    n_texts = sum(isinstance(part, str) for part in parts)
    if n_texts > MAX_TEXT_PARTS:
        message = f"content: {n_texts} texts; at most {MAX_TEXT_PARTS} are allowed."
        raise ApiError(400, message, param="content")
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, int):
            tokens += queue.validate_tokens([part], "content")
        else:
            # The start of a text is marked only once. Without parts, llama-server also marks nothing.
            tokens += await queue.tokenize_text(part, add_special=add_special and i == 0, parse_special=parse_special)
        _check_length(queue, len(tokens))
    return tokens


def _check_length(queue: ModelQueue, n_tokens: int) -> None:
    """Raise ContextOverflowError if a request has more tokens than one text may have."""
    max_tokens, properties = queue.prompt_builder.max_text_tokens, queue.model_properties
    if n_tokens > max_tokens:
        raise make_overflow_error(
            f"The text has more than {max_tokens:,} tokens", properties.n_ctx, properties.n_ctx_train
        )  # fmt: skip


def _format_piece(piece: bytes) -> str | list[int]:
    """Return the text of a token; the bytes if they are only a part of a character, as in llama-server."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def make_model_properties(queue: ModelQueue) -> dict[str, Any]:
    """Describe a model as llama-server does. Of the path of the model file, only the name is public."""
    properties, settings = queue.model_properties, queue.settings
    max_tokens = settings.max_tokens if settings.max_tokens is not None else -1
    params = msgspec.to_builtins(settings.sampling) | {"max_tokens": max_tokens, "n_predict": max_tokens}
    return {
        "default_generation_settings": {"params": params, "n_ctx": properties.n_ctx},
        "total_slots": queue.max_parallel_replies, "model_alias": queue.name, "model_path": queue.path.name,
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": False, "endpoint_props": False, "endpoint_metrics": True,
        "chat_template": properties.chat_template or "", "bos_token": properties.bos, "eos_token": properties.eos,
        "build_info": f"edgechat-{__version__}", "is_sleeping": False,
    }  # fmt: skip
