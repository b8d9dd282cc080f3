"""Endpoints of the OpenAI Responses API (/v1/responses), with stored responses that later requests continue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgechat.serve.bodies import BodyBudget
from edgechat.serve.dialects.openai_responses import ResponsesDialect
from edgechat.serve.dialects.openai_responses_items import Item, read_items, split_item_id, with_item_id
from edgechat.serve.dialects.openai_responses_output import OutputWriter
from edgechat.serve.dialects.openai_responses_requests import (
    ENCODED_REASONING,
    InputCountingBuilder,
    ResponsesBuilder,
    check_supported_fields,
    find_custom_tools,
    find_namespaces,
    find_summary_option,
    make_chat_request,
    make_echo_fields,
    stores_response,
)
from edgechat.serve.dialects.openai_responses_schemas import ResponsesRequest
from edgechat.serve.endpoints import BodyReader, Endpoint, ErrorHandler, make_json_response
from edgechat.serve.errors import ApiError
from edgechat.serve.metrics import Metrics
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.responding import count_prompt_tokens, respond
from edgechat.serve.response_store import ResponseStore, StoredResponse

_DEFAULT_PAGE_ITEMS: Final = 20
_MAX_PAGE_ITEMS: Final = 100
_DECODED_FACTOR: Final = 4
"""Maximum memory of decoded items per byte of their JSON: a string with characters beyond U+FFFF takes 4 bytes per
character, and the smallest item takes 100 bytes of JSON."""


class _Output(msgspec.Struct, frozen=True):
    """Output of a stored response."""

    output: list[Item]


_input_decoder: Final = msgspec.json.Decoder(list[Item])
_output_decoder: Final = msgspec.json.Decoder(_Output)


class ResponsesApi:
    """Endpoints of the Responses API. `find_queue` returns the queue of the model with a name."""

    def __init__(
        self, find_queue: Callable[[str | None], ModelQueue], metrics: Metrics, read_body: BodyReader,
        body_budget: BodyBudget,
    ) -> None:  # fmt: skip
        self._find_queue = find_queue
        self._metrics = metrics
        self._read_body = read_body
        self._body_budget = body_budget
        self._store = ResponseStore()

    def make_routes(self, handle_errors: ErrorHandler) -> list[Route]:
        """Build the routes."""
        endpoints: list[tuple[str, Endpoint, str]] = [
            ("/v1/responses", self.create, "POST"),
            ("/v1/responses/input_tokens", self.count_input_tokens, "POST"),
            ("/v1/responses/{id}", self.retrieve, "GET"),
            ("/v1/responses/{id}", self.delete, "DELETE"),
            ("/v1/responses/{id}/input_items", self.list_input_items, "GET"),
            ("/v1/responses/{id}/cancel", self.cancel, "POST"),
        ]
        return [Route(path, handle_errors(endpoint, "input"), methods=[method]) for path, endpoint, method in endpoints]

    async def create(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, ResponsesRequest, memory)
            queue = self._find_queue(body.model)
            previous, items, history = self._read_conversation(body, memory)
            builder = ResponsesBuilder(queue, make_chat_request(body, [*history, *items]))
            echo_fields = make_echo_fields(body)
            input_items = msgspec.json.encode(items) if stores_response(body) else b""
            # The body is released when the prompt is built, but these texts are needed until the response ends.
            resources = contextlib.ExitStack()
            n_bytes = len(input_items) + sum(len(bytes(field)) for field in echo_fields.values())
            resources.enter_context(self._body_budget.hold(n_bytes))
            dialect = ResponsesDialect(
                builder, self._make_writer(body, builder.id), echo_fields,
                self._make_saver(builder.id, input_items, previous) if stores_response(body) else None, resources,
            )  # fmt: skip
            del body, items, history
            return await respond(request, dialect, self._metrics, memory.pop_all())

    def _read_conversation(
        self, body: ResponsesRequest, memory: contextlib.AsyncExitStack
    ) -> tuple[StoredResponse | None, list[Item], list[Item]]:
        """Return the response that a request continues, the items of its input, and the items before them.

        Stored items are counted in the memory budget until `memory` is closed. Raises ApiError.
        """
        check_supported_fields(body)
        previous_id = body.previous_response_id
        previous = self._store.find_previous(previous_id) if previous_id is not None else None
        stored_responses = _list_conversation(previous) if previous is not None else []
        hold = memory.enter_context(self._body_budget.hold(_count_decoded_bytes(stored_responses)))
        outputs: dict[str, list[Item]] = {}
        references: set[str] = set()

        def find_item(item_id: str, path: str) -> Item:
            if item_id in references:
                raise ApiError(400, f"{path}: the item {item_id[:60]!r} is referenced twice.", param=path)
            references.add(item_id)
            response_id, index = split_item_id(item_id)
            try:
                if response_id not in outputs:
                    stored = self._store.find(response_id)
                    hold(_DECODED_FACTOR * len(stored.response))
                    outputs[response_id] = _decode_output(stored)
                item = outputs[response_id][index]
            except (ApiError, IndexError):
                item = None
            if item is None or item.id != item_id:
                message = (
                    f"{path}: item {item_id[:60]!r} not found. Items of stored responses are kept in memory only. Send "
                    "the item itself, or continue the response by previous_response_id."
                )
                raise ApiError(400, message, param=path, code="item_not_found")
            return item

        items = read_items(body.input, find_item)
        history: list[Item] = []
        for stored in stored_responses:
            history += [*_input_decoder.decode(stored.input_items), *_decode_output(stored)]
        return previous, items, history

    def _make_writer(self, body: ResponsesRequest, response_id: str) -> OutputWriter:
        return OutputWriter(
            response_id, find_custom_tools(body), find_namespaces(body),
            with_summary=find_summary_option(body) is not None,
            with_encoded_reasoning=ENCODED_REASONING in (body.include or ()),
        )  # fmt: skip

    def _make_saver(
        self, response_id: str, input_items: bytes, previous: StoredResponse | None
    ) -> Callable[[bytes], None]:
        return lambda response: self._store.add(StoredResponse(response_id, response, input_items, previous))

    async def count_input_tokens(self, request: Request) -> Response:
        async with contextlib.AsyncExitStack() as memory:
            body = await self._read_body(request, ResponsesRequest, memory)
            _, items, history = self._read_conversation(body, memory)
            builder = InputCountingBuilder(
                self._find_queue(body.model), make_chat_request(body, [*history, *items])
            )  # fmt: skip
            del body, items, history
            n_tokens = await count_prompt_tokens(request, builder)
        return make_json_response({"object": "response.input_tokens", "input_tokens": n_tokens})

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() not in {"false", "0", ""}:
            message = "stream: a stored response cannot be streamed. Leave stream out."
            raise ApiError(400, message, param="stream")
        return Response(self._find(request).response, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        stored = self._find(request)
        self._store.delete(stored.id)
        return make_json_response({"id": stored.id, "object": "response", "deleted": True})

    async def list_input_items(self, request: Request) -> Response:
        """List the items of the prompt of a stored response, including those of the responses before it."""
        stored, query = self._find(request), request.query_params
        limit_text, order, after = query.get("limit", str(_DEFAULT_PAGE_ITEMS)), query.get("order"), query.get("after")
        limit = int(limit_text) if limit_text.isdecimal() and len(limit_text) <= len(str(_MAX_PAGE_ITEMS)) else 0
        if not 1 <= limit <= _MAX_PAGE_ITEMS:
            raise ApiError(400, f"limit: must be a number from 1 to {_MAX_PAGE_ITEMS}.", param="limit")
        if order not in {"asc", "desc", None}:
            raise ApiError(400, 'order: must be "asc" or "desc".', param="order")
        async with contextlib.AsyncExitStack() as memory:
            items = self._list_items(stored, memory)
            if order != "asc":
                items.reverse()
            if after is not None:
                start = next((i + 1 for i, item in enumerate(items) if item.id == after), None)
                if start is None:
                    raise ApiError(400, f"after: no item with the id {after[:60]!r}.", param="after")
                items = items[start:]
            page = items[:limit]
            return make_json_response({
                "object": "list", "data": page, "has_more": len(items) > limit,
                "first_id": page[0].id if page else None, "last_id": page[-1].id if page else None,
            })  # fmt: skip

    def _list_items(self, stored: StoredResponse, memory: contextlib.AsyncExitStack) -> list[Item]:
        responses = _list_conversation(stored)
        memory.enter_context(self._body_budget.hold(_count_decoded_bytes(responses)))
        items: list[Item] = []
        for response in responses:
            input_items = _input_decoder.decode(response.input_items)
            items += [with_item_id(item, response.id, i) for i, item in enumerate(input_items)]
            items += _decode_output(response) if response is not stored else ()
        return items

    async def cancel(self, request: Request) -> Response:
        self._find(request)
        message = "Only background responses can be cancelled. To cancel a response, close its connection."
        raise ApiError(400, message, param="id")

    def _find(self, request: Request) -> StoredResponse:
        return self._store.find(request.path_params["id"])


def _list_conversation(stored: StoredResponse) -> list[StoredResponse]:
    """Return the responses of a conversation up to `stored`, oldest first."""
    return list(stored.iterate_history())[::-1]


def _count_decoded_bytes(responses: Sequence[StoredResponse]) -> int:
    """Return the maximum memory of the decoded items of stored responses."""
    return _DECODED_FACTOR * sum(len(stored.input_items) + len(stored.response) for stored in responses)


def _decode_output(stored: StoredResponse) -> list[Item]:
    return _output_decoder.decode(stored.response).output
