"""ASGI middleware for all endpoints: checks host, origin and API key, discards unread bodies, and logs requests."""

from __future__ import annotations

import hmac
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgechat.serve.addresses import is_loopback
from edgechat.serve.bodies import discard_body, has_body
from edgechat.serve.dialects.error_bodies import make_error_body
from edgechat.serve.errors import ApiError
from edgechat.serve.paths import PathTable

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


def make_error_response(error: ApiError, path: str) -> Response:
    """Build the HTTP response with the status, headers and JSON body of `error` to a request for `path`."""
    body = msgspec.json.encode(make_error_body(error, path))
    return Response(body, error.status, error.headers, media_type="application/json")


class RequestGuard:
    """Rejects requests that the access rules forbid, and discards request bodies that the endpoints did not read."""

    def __init__(
        self, app: ASGIApp, rules: AccessRules, on_request: Callable[[str, int], None],
        paths: PathTable | None = None,
    ) -> None:  # fmt: skip
        """Wrap `app`; `on_request` receives the path and the response status of each request.

        `paths` are the endpoints of `app`, which receives their paths in the spelling of its routes.
        """
        self._app = app
        self._paths = paths or PathTable()
        self._rules = rules
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request, and pass it to the application if it is allowed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": self._paths.normalize(scope["path"])}
        started_at, status = time.monotonic(), 499
        headers = Headers(scope=scope)
        is_body_read = not has_body(headers)

        async def tracked_receive() -> Message:
            nonlocal is_body_read
            message = await receive()
            is_body_read = is_body_read or not message.get("more_body", False)
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._make_cors_headers(headers)]
            elif not message.get("more_body", False) and not is_body_read and _can_discard(headers, status):
                # Many clients read the response only after they have sent the whole body.
                await send({**message, "more_body": True})
                await discard_body(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            _check_framing(headers)
            self._check_access(scope, headers)
            if scope["method"] == "OPTIONS" and headers.get("origin"):
                await _make_preflight_response()(scope, tracked_receive, guarded_send)
                return
            await self._app(scope, tracked_receive, guarded_send)
        except ApiError as error:
            await make_error_response(error, scope["path"])(scope, tracked_receive, guarded_send)
        finally:
            # Unknown paths are not recorded, because clients may put private data into them.
            path = scope["path"] if scope["path"] in self._paths.paths else "other"
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
            message = "Web pages of this origin are refused. To allow them, start the server with --allow-origin."
            raise ApiError(403, message, code="wrong_origin")
        if rules.api_key and scope["path"] not in _PUBLIC_PATHS and scope["method"] != "OPTIONS":
            scheme, _, token = headers.get("authorization", "").partition(" ")
            # Clients of Anthropic's API may send a token for another service beside the key.
            keys = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
            if not any(hmac.compare_digest(key.encode(), rules.api_key.encode()) for key in keys):
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


def _check_framing(headers: Headers) -> None:
    """Raise ApiError if two headers specify the body length, to prevent request smuggling.

    A proxy that uses the other header would find the end of the body, and so the next request, elsewhere.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        message = "A request must not have both Content-Length and Transfer-Encoding."
        raise ApiError(400, message, code="invalid_body_length", must_close=True)


def _can_discard(headers: Headers, status: int) -> bool:
    has_two_lengths = "transfer-encoding" in headers and "content-length" in headers
    is_slow = status == 408  # noqa: PLR2004
    return not has_two_lengths and not is_slow and "expect" not in headers


def _parse_host_name(address: str) -> str:
    try:
        return "" if "@" in address else urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _make_preflight_response() -> Response:
    return Response(status_code=204, headers={
        "Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key, *",
    })  # fmt: skip
