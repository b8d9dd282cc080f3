"""ASGI middleware for all endpoints: checks of host, origin and API key, body size limits, and a request log."""

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
# Paths that need no API key. Monitoring systems often have no key, and /health reveals no models or conversations.
_PUBLIC_PATHS: Final = ("/health",)


class AccessRules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules that decide which clients may send requests."""

    host: str
    """Address that the server listens on."""
    api_key: str = ""
    """API key that clients must send; "" if no key is required."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may send requests, such as https://example.com."""
    log_requests: bool = False
    """True to print the method, path, status and duration of each request, but never its content."""


def make_error_response(error: ApiError) -> Response:
    """Build the HTTP response with the status, headers and JSON body of `error`."""
    body = msgspec.json.encode(error.body())
    return Response(body, error.status, error.headers, media_type="application/json")


class RequestGuard:
    """Rejects requests that the access rules forbid, and buffers request bodies of up to 16 MiB for the application."""

    def __init__(self, app: ASGIApp, rules: AccessRules, on_request: Callable[[str, int], None]) -> None:
        """Wrap `app`; `on_request` receives the path and the response status of each request."""
        self._app = app
        self._rules = rules
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request, and pass it to the application if it is allowed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.monotonic(), 499
        headers = Headers(scope=scope)

        async def send_with_cors(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._make_cors_headers(headers)]
            await send(message)

        try:
            self._check_access(scope, headers)
            if scope["method"] == "OPTIONS" and headers.get("origin"):
                await _make_preflight_response()(scope, receive, send_with_cors)
                return
            await self._app(scope, await _buffer_body(receive), send_with_cors)
        except ApiError as error:
            await make_error_response(error)(scope, receive, send_with_cors)
        finally:
            # Unknown paths are not recorded, because clients may put private data into them.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._on_request(path, status)
            if self._rules.log_requests:
                line = f"{scope['method']} {path} {status} {time.monotonic() - started_at:.3f} s"
                print(line, file=sys.stderr, flush=True)  # noqa: T201  (--log-requests)

    def _check_access(self, scope: Scope, headers: Headers) -> None:
        rules = self._rules
        host = _parse_host_name(f"//{headers.get('host', '')}")
        if is_loopback(rules.host) and not is_loopback(host):
            # Protects against DNS rebinding: a web page whose host name resolves to 127.0.0.1 could read all responses.
            raise ApiError(403, "This server accepts only the host names localhost and 127.0.0.1.", code="wrong_host")
        origin = headers.get("origin")
        is_forbidden_origin = origin is not None and not self._is_allowed_origin(origin, headers)
        if is_forbidden_origin or (origin is None and headers.get("sec-fetch-site") in {"cross-site", "same-site"}):
            message = "Web pages of this origin are not allowed. Start the server with --allow-origin to allow them."
            raise ApiError(403, message, code="wrong_origin")
        if rules.api_key and scope["path"] not in _PUBLIC_PATHS and scope["method"] != "OPTIONS":
            scheme, _, token = headers.get("authorization", "").partition(" ")
            api_key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(api_key.encode(), rules.api_key.encode()):
                raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def _is_allowed_origin(self, origin: str, headers: Mapping[str, str]) -> bool:
        if origin in self._rules.allowed_origins:
            return True
        return origin.partition("://")[2] == headers.get("host")  # this server's own origin

    def _make_cors_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin not in self._rules.allowed_origins:
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin")]


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback address, which only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_host_name(address: str) -> str:
    try:
        return "" if "@" in address else urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _make_preflight_response() -> Response:
    return Response(status_code=204, headers={
        "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key, *",
    })  # fmt: skip


async def _buffer_body(receive: Receive) -> Receive:
    """Read the whole body of a request; return an ASGI `receive` callable that returns the body in one message.

    Raises ApiError if the body is too large, or if it is incomplete after `BODY_TIMEOUT_S`.
    """
    try:
        body = await asyncio.wait_for(_read_body(receive), BODY_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        message = f"The request body did not arrive completely within {BODY_TIMEOUT_S:g} s."
        raise ApiError(408, message, code="timeout") from error
    is_delivered = False

    async def receive_buffered() -> Message:
        nonlocal is_delivered
        if is_delivered:
            return await receive()
        is_delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_buffered


async def _read_body(receive: Receive) -> bytes:
    body, n_bytes, is_last = bytearray(), 0, False
    # Many clients read the response only after sending the whole body, so the server reads and discards up to 64 MiB.
    while not is_last and n_bytes <= _MAX_READ_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "The client closed the connection.")
        chunk = message.get("body", b"")
        n_bytes += len(chunk)
        is_last = not message.get("more_body", False)
        if n_bytes <= MAX_BODY_BYTES:
            body.extend(chunk)
    if n_bytes > MAX_BODY_BYTES:
        raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.", code="too_large")
    return bytes(body)
