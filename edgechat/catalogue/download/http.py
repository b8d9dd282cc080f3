"""HTTP client for downloads: GET requests with byte ranges, proxies, redirects, and tokens sent to one origin only.

The client uses only the standard library, because HTTP libraries make additional copies of the data: with httpx2, a
download took 30 to 80 % more CPU time. In addition, they do not let another thread end a read.
"""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from edgechat.catalogue.download import network_settings
from edgechat.errors import HubError

CONNECT_TIMEOUT_S: Final = 3.0
"""Time limit in seconds for name resolution and connecting together."""
READ_TIMEOUT_S: Final = 20.0
"""Timeout for each read from a connection, and for all headers of a response together."""
# Timeout for each address of a host. It is short, because the first of several addresses may be unreachable.
_ADDRESS_TIMEOUT_S: Final = 1.5
MAX_REDIRECTS: Final = 5
_REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
_OK: Final = 200
_PARTIAL_CONTENT: Final = 206
_TRANSIENT_STATUSES: Final = frozenset({408, 429})
_FIRST_SERVER_ERROR: Final = 500
_MAX_ERROR_BYTES: Final = 4096
_MAX_REASON_CHARS: Final = 200
_COMPRESSIONS: Final = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_MAX_RETRY_AFTER_DIGITS: Final = 9

T = TypeVar("T")


class HttpStatusError(HubError):
    """Raised for a response with a status other than 200 or 206."""

    def __init__(self, message: str, status: int, retry_after_s: float | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.code = code
        """X-Error-Code of the hub, such as `GatedRepo`; "" if absent."""

    @property
    def is_transient(self) -> bool:
        """True if a repeated request may succeed."""
        return self.status in _TRANSIENT_STATUSES or self.status >= _FIRST_SERVER_ERROR


class InvalidUrlError(HubError):
    """Raised for an invalid URL, or a redirect that this client does not follow."""


class UnusableResponseError(HubError):
    """Raised for a response that this client cannot use. A retry would return the same response."""


class ConnectionFailedError(HubError):
    """Raised when a connection could not be established, was lost, or was too slow."""


class ConnectError(ConnectionFailedError):
    """Raised when a connection could not be established."""


PERMANENT_ERRORS: Final = (network_settings.NetworkSetupError, InvalidUrlError, UnusableResponseError)
"""Errors that would occur again after a retry."""


class Response:
    """HTTP response whose body starts at byte `start` of the file. Context manager that closes the connection."""

    def __init__(self, connection: http.client.HTTPConnection, url: str) -> None:
        self._connection = connection
        self._raw = raw = connection.getresponse()
        self.status = raw.status
        self.url = url
        """Final URL after redirects."""
        self.headers = raw.headers
        self.start, self.size_bytes = _parse_start_and_size(raw)
        """Offset of the body in the file, and size of the whole file (None if the server does not send the size)."""

    @property
    def validator(self) -> str:
        """Value for the If-Range header of later requests: strong ETag or modification date; "" if neither was sent."""
        etag = self.headers.get("ETag", "")
        return etag if etag and not etag.startswith("W/") else self.headers.get("Last-Modified", "")

    def read(self, count: int) -> bytes:
        """Return at most `count` available bytes of the body; b"" at its end. Raises ConnectionFailedError."""
        try:
            return self._raw.read1(count)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _make_connection_error(self.url, error) from error

    def close(self) -> None:
        with suppress(OSError):
            self._raw.close()
        self._connection.close()

    def __enter__(self) -> Response:  # noqa: PYI034  (typing.Self needs Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_url(url: str) -> urllib.parse.SplitResult:
    """Parse a URL. Raises InvalidUrlError."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  (parsed on access)
    except ValueError as error:
        raise InvalidUrlError(f"The URL is not valid: {error}") from None
    return parts


def get(
    url: str,
    start: int = 0,
    end: int | None = None,
    headers: Mapping[str, str] = {},
    *,
    read_timeout_s: float = READ_TIMEOUT_S,
    on_connect: Callable[[socket.socket], None] = lambda sock: None,
) -> Response:
    """Request bytes `start` to `end` (exclusive) of a file. A server without range support sends the whole file.

    After a redirect to another origin, `headers` are sent without token and cookies. `on_connect` receives each new
    socket, so that another thread can end the transfer with `shut_down_socket`.
    Raises HttpStatusError, NetworkSetupError, InvalidUrlError, UnusableResponseError and ConnectionFailedError.
    """
    headers = dict(headers) | {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    for _ in range(MAX_REDIRECTS + 1):
        response = send_request(url, headers, read_timeout_s=read_timeout_s, on_connect=on_connect)
        if response.status not in _REDIRECT_STATUSES:
            _check_status(response)
            check_encoding(response)
            return response
        response.close()
        target = _redirect_target(url, response.headers.get("Location", ""))
        if _origin(target) != _origin(url):
            headers = {
                name: value for name, value in headers.items() if name.lower() not in {"authorization", "cookie"}
            }
        if url.startswith("https:") and not target.startswith("https:"):
            raise InvalidUrlError(
                f"{redact_url(url)} redirects to {redact_url(target)}. "
                "edgechat does not follow redirects from https to http."
            )
        url = target
    raise InvalidUrlError(f"{redact_url(url)} redirects more than {MAX_REDIRECTS} times")


def run_with_timeout(timeout_s: float, work: Callable[[], T], host: str) -> T:
    """Run `work` in a thread, and return its result.

    The thread is needed because a name lookup cannot be interrupted. Raises the exceptions of `work`. After `timeout_s`
    seconds, raises ConnectionFailedError with `host` in its message.
    """
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001  (raised in the caller's thread)
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not result:
        raise ConnectionFailedError(f"{host} did not answer within {timeout_s:.0f} s. Check the network connection.")
    return result[0]  # type: ignore[no-any-return]


def shut_down_socket(sock: socket.socket) -> None:
    """End a transfer from another thread: `Response.read` then returns b"" or raises ConnectionFailedError."""
    with suppress(OSError):
        # Do not call SSLSocket.shutdown: after it, reads would return encrypted bytes.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def send_request(
    url: str,
    headers: Mapping[str, str],
    *,
    method: str = "GET",
    body: bytes | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
    on_connect: Callable[[socket.socket], None] = lambda sock: None,
) -> Response:
    """Send one request and return its response, whatever its status. Does not follow redirects.

    Raises InvalidUrlError, NetworkSetupError and ConnectionFailedError.
    """
    connection, target, proxy_headers = _connect(url, read_timeout_s)
    on_connect(connection.sock)
    has_timed_out = threading.Event()

    def end_request() -> None:
        has_timed_out.set()
        shut_down_socket(connection.sock)

    # A server could send its headers one byte at a time, and each byte would restart the read timeout.
    deadline = threading.Timer(read_timeout_s, end_request)
    deadline.start()
    try:
        connection.request(method, target, body, headers={**headers, **proxy_headers})
        response = Response(connection, url)
        if not has_timed_out.is_set():  # after the time limit, the headers may be incomplete
            return response
        response.close()
        raise TimeoutError
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        if has_timed_out.is_set():
            raise _make_connection_error(url, TimeoutError("timed out while waiting for the headers")) from None
        raise _make_connection_error(url, error) from error
    finally:
        deadline.cancel()


def _connect(url: str, read_timeout_s: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """Connect to the server or its proxy. Returns connection, request target (path or URL) and proxy headers."""
    parts = split_url(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidUrlError(f"{redact_url(url)} is not an http or https URL")
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    proxy = network_settings.find_proxy(parts)
    tls_context = network_settings.make_tls_context() if parts.scheme == "https" else None
    host, port = (proxy.host, proxy.port) if proxy else (parts.hostname, parts.port)
    try:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=_ADDRESS_TIMEOUT_S, context=tls_context)
            if tls_context
            else http.client.HTTPConnection(host, port, timeout=_ADDRESS_TIMEOUT_S)
        )
        if proxy and tls_context:
            connection.set_tunnel(parts.hostname, parts.port or 443, headers=proxy.headers)
    except (http.client.HTTPException, ValueError):
        raise InvalidUrlError(f"{redact_url(url)} has an invalid host name") from None
    try:
        run_with_timeout(CONNECT_TIMEOUT_S, connection.connect, host)
        connection.sock.settimeout(read_timeout_s)
    except (OSError, http.client.HTTPException, ValueError, ConnectionFailedError) as error:
        connection.close()
        route = f" through the proxy {host} ({proxy.source})" if proxy else ""
        raise ConnectError(f"Cannot reach {parts.hostname}{route}: {_error_reason(error)}") from None
    return (connection, url, proxy.headers) if proxy and not tls_context else (connection, target, {})


def _check_status(response: Response) -> None:
    if response.status in {_OK, _PARTIAL_CONTENT}:
        return
    with response, suppress(ConnectionFailedError):
        response.read(_MAX_ERROR_BYTES)
    raise HttpStatusError(
        f"{redact_url(response.url)} responded with HTTP status {response.status}",
        response.status,
        parse_retry_after(response.headers),
        response.headers.get("X-Error-Code", ""),
    )


def check_encoding(response: Response) -> None:
    """Close the response and raise UnusableResponseError if its body is compressed, which edgechat never requests."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in _COMPRESSIONS:
        response.close()
        raise UnusableResponseError(
            f"{redact_url(response.url)} sent compressed data ({encoding}), although edgechat did not request this. "
            "A proxy may have changed the response."
        )


def parse_retry_after(headers: Mapping[str, str] | http.client.HTTPMessage) -> float | None:
    """Return the value of the Retry-After header in seconds; None if it is absent or a date."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_AFTER_DIGITS else None


def _parse_start_and_size(raw: http.client.HTTPResponse) -> tuple[int, int | None]:
    if raw.status == _PARTIAL_CONTENT:
        content_range = raw.headers.get("Content-Range", "")
        unit, _, span_and_size = content_range.partition(" ")
        span, _, size = span_and_size.partition("/")
        start = span.partition("-")[0]
        if unit == "bytes" and start.isdigit():
            return int(start), int(size) if size.isdigit() else None
        raise http.client.HTTPException(
            f"the server sent a partial response with an invalid Content-Range header: {content_range!r}"
        )
    length = raw.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _redirect_target(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        raise InvalidUrlError(f"{redact_url(url)} redirects to an invalid URL") from None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = split_url(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def redact_url(url: str) -> str:
    """Return a URL without user name, password and query, which may contain secrets."""
    parts = split_url(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _make_connection_error(url: str, error: BaseException) -> ConnectionFailedError:
    return ConnectionFailedError(f"Lost the connection to {split_url(url).hostname}: {_error_reason(error)}")


def _error_reason(error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shorten_reason(reason)


def shorten_reason(reason: str) -> str:
    """Return a short form of an error's text, which may contain data from a server."""
    return reason if len(reason) <= _MAX_REASON_CHARS else f"{reason[:_MAX_REASON_CHARS]}..."
