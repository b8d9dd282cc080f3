"""What stands before every request: who may ask, from where, how much, and for how long they may take to say it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgechat.serve.errors import ApiError

MAX_BODY_BYTES: Final = 16 << 20
_MAX_READ_BYTES: Final = 4 * MAX_BODY_BYTES
BODY_TIMEOUT_S: Final = 30.0
PATHS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics", "/openapi.json",
)  # fmt: skip
# What tells nothing of a model or a conversation, and what programs look at that have no key.
_PUBLIC_PATHS: Final = ("/health",)


class AccessRules(msgspec.Struct, frozen=True, kw_only=True):
    """Who may ask."""

    host: str
    """What the server listens on."""
    api_key: str = ""
    """What clients must send; "" is nothing."""
    origins: tuple[str, ...] = ()
    """Web pages that may ask."""
    log_requests: bool = False
    """Write a line for each request, without anything of what it says."""


def error_response(error: ApiError) -> Response:
    """An error as an answer."""
    body = msgspec.json.encode(error.body())
    return Response(body, error.status, error.headers, media_type="application/json")


class RequestGuard:
    """Lets in what may be let in, with a whole body of a bounded size."""

    def __init__(self, app: ASGIApp, rules: AccessRules, on_request: Callable[[str, int], None]) -> None:
        """`requested` is told of each request's path and status."""
        self._app = app
        self._rules = rules
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499
        headers = Headers(scope=scope)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._cors_headers(headers)]
            await send(message)

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and headers.get("origin"):
                await _preflight()(scope, receive, noted)
                return
            await self._app(scope, await _buffer_body(receive), noted)
        except ApiError as error:
            await error_response(error)(scope, receive, noted)
        finally:
            # Nothing that a client made up: names of models, and paths that are not there.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._on_request(path, status)
            if self._rules.log_requests:
                words = f"{scope['method']} {path} {status} {time.monotonic() - started:.3f} s"
                print(words, file=sys.stderr, flush=True)  # noqa: T201  (asked for)

    def _check(self, scope: Scope, headers: Headers) -> None:
        rules = self._rules
        host = _host_name(f"//{headers.get('host', '')}")
        if is_loopback(rules.host) and not is_loopback(host):
            # A page that had its own name point here would read all that it likes.
            raise ApiError(403, "this server answers to localhost and 127.0.0.1 only", code="wrong_host")
        origin = headers.get("origin")
        is_foreign = origin is not None and not self._is_allowed_origin(origin, headers)
        if is_foreign or (origin is None and headers.get("sec-fetch-site") in {"cross-site", "same-site"}):
            words = "a web page may not ask here, unless its origin is given with --allow-origin"
            raise ApiError(403, words, code="wrong_origin")
        if rules.api_key and scope["path"] not in _PUBLIC_PATHS and scope["method"] != "OPTIONS":
            scheme, _, given = headers.get("authorization", "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), rules.api_key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _is_allowed_origin(self, origin: str, headers: Mapping[str, str]) -> bool:
        if origin in self._rules.origins:
            return True
        return origin.partition("://")[2] == headers.get("host")  # a page of this very server

    def _cors_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin not in self._rules.origins:
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin")]


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine that no other one can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(address: str) -> str:
    try:
        return "" if "@" in address else urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key, *", "Access-Control-Max-Age": "600"},
    )  # fmt: skip


async def _buffer_body(receive: Receive) -> Receive:
    """A `receive` that has the body at once. Raises ApiError if it is too large, or does not come."""
    try:
        body = await asyncio.wait_for(_read_body(receive), BODY_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s", code="timeout") from error
    is_given = False

    async def whole() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return whole


async def _read_body(receive: Receive) -> bytes:
    body, n_bytes, is_last = bytearray(), 0, False
    # Who sends too much listens only once all is sent, up to a point.
    while not is_last and n_bytes <= _MAX_READ_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client closed the connection")
        piece = message.get("body", b"")
        n_bytes += len(piece)
        is_last = not message.get("more_body", False)
        if n_bytes <= MAX_BODY_BYTES:
            body.extend(piece)
    if n_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is over the limit of {MAX_BODY_BYTES >> 20} MiB", code="too_large")
    return bytes(body)
