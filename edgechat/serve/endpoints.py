"""Type aliases and JSON helper of the endpoint classes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
ErrorHandler = Callable[[Endpoint, str | None], Endpoint]
"""Function that wraps an endpoint, given the name of the request field with the input text."""


class BodyReader(Protocol):
    """Function that receives and decodes a request body, which counts in the memory budget until `memory` is closed."""

    async def __call__(self, request: Request, body_type: type[T], memory: contextlib.AsyncExitStack) -> T: ...


def make_json_response(value: Any) -> Response:
    """Build a response with the status 200 and a JSON body."""
    return Response(msgspec.json.encode(value), media_type="application/json")
