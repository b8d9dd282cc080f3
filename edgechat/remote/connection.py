"""HTTP requests to a remote: errors as sentences, redirects within the same origin only, and cancellation.

The HTTP client is that of downloads: it supports proxies and certificates, and another thread can end a read.
"""

from __future__ import annotations

import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from edgechat import __version__
from edgechat.catalogue.download import http
from edgechat.errors import ContextOverflowError, HubError, RemoteError, RemoteStatusError, RequestCancelledError
from edgechat.humanize import format_duration
from edgechat.remote.keys import read_key
from edgechat.remote.reply_stream import clean_message, find_error_message
from edgechat.remote.target import find_host
from edgechat.remote_settings import RemoteSettings

_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_OK: Final = range(200, 300)
_MAX_ERROR_BYTES: Final = 64 << 10
_READ_BYTES: Final = 64 << 10
RETRIED_STATUSES: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
_OVERFLOW_WORDS: Final = ("context length", "context size", "context window", "maximum context", "too many tokens")
_PORTS: Final = {"http": 80, "https": 443}


class Timeouts(NamedTuple):
    """Time limits of requests, in seconds. Connecting has a limit of its own, in the HTTP client."""

    first_token_s: float = 900.0
    """Time until the first text of a reply. A large model on a slow machine reads a long prompt for minutes."""
    between_tokens_s: float = 120.0
    """Time until the next text. A server that shares its slots can pause a reply."""
    answer_s: float = 15.0
    """Time for a response that needs no model."""


DEFAULT_TIMEOUTS: Final = Timeouts()


class RemoteConnection:
    """Sends requests to one remote. `cancel` is thread-safe and ends the current request and all later ones."""

    def __init__(self, name: str, settings: RemoteSettings, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        """Prepare requests to the remote `name`; does not use the network. Raises RemoteError without the API key."""
        self.timeouts = timeouts
        self.host = find_host(settings.url)
        self.label = f"{name} ({self.host})"
        """Name and host of the remote, for messages."""
        self._name = name
        self._settings = settings
        self._key = read_key(name, settings)
        self._cancelled = threading.Event()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the current request, which then raises RequestCancelledError, and all later ones."""
        self._cancelled.set()
        with self._lock:
            if self._socket is not None:
                http.shut_down_socket(self._socket)

    def wait(self, delay_s: float) -> None:
        """Wait before a retry. Raises RequestCancelledError after `cancel`."""
        if self._cancelled.wait(delay_s):
            raise RequestCancelledError("The request was cancelled.")

    def set_read_timeout(self, timeout_s: float) -> None:
        """Set the time limit of each later read of the current response."""
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.settimeout(max(0.01, timeout_s))

    def request(self, path: str, body: object = None, *, timeout_s: float) -> http.Response:
        """Send a request, and return its response, which the caller closes.

        `path` follows the URL of the remote; a request without `body` is a GET request. Raises RemoteStatusError for a
        status that reports an error, ContextOverflowError if the prompt is too long, RequestCancelledError after
        `cancel`, and RemoteError.
        """
        url = self._settings.url.rstrip("/") + path
        headers = {
            "Accept": "text/event-stream, application/json", "Accept-Encoding": "identity", "Connection": "close",
            "User-Agent": f"edgechat/{__version__}", **self._key.headers(),
        }  # fmt: skip
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(url, headers, data, timeout_s)
            if response.status not in _REDIRECTS:
                self._check_status(response, has_body=body is not None)
                return response
            response.close()
            target = urllib.parse.urljoin(url, response.headers.get("Location", ""))
            if _origin(target) != _origin(url):
                raise RemoteError(
                    f"{self.label} redirects to {find_host(target) or 'another server'}. edgechat follows no redirect "
                    "to another server, because it would receive the messages. Correct the URL of the remote."
                )
            url = target
        raise RemoteError(f"{self.label} redirects more than {_MAX_REDIRECTS} times. Correct the URL of the remote.")

    def _send(self, url: str, headers: dict[str, str], data: bytes | None, timeout_s: float) -> http.Response:
        def remember_socket(sock: socket.socket) -> None:
            with self._lock:
                self._socket = sock
            if self.is_cancelled:
                http.shut_down_socket(sock)

        if self.is_cancelled:
            raise RequestCancelledError("The request was cancelled.")
        try:
            response = http.send_request(
                url, headers, method="GET" if data is None else "POST", body=data, read_timeout_s=timeout_s,
                on_connect=remember_socket,
            )  # fmt: skip
            http.check_encoding(response)
            return response
        except (HubError, UnicodeError) as error:
            raise self.translate(error) from None

    def read(self, response: http.Response, count: int) -> bytes:
        """Return available bytes of a response; b"" at its end. Raises RemoteError and RequestCancelledError."""
        try:
            data = response.read(count)
        except HubError as error:
            raise self.translate(error) from None
        if self.is_cancelled:
            raise RequestCancelledError("The request was cancelled.")
        return data

    def read_all(self, response: http.Response, max_bytes: int) -> bytes:
        """Return the whole body of a response. Raises RemoteError, also if the body has more than `max_bytes`."""
        deadline = time.monotonic() + self.timeouts.answer_s
        content = bytearray()
        while data := self.read(response, _READ_BYTES):
            content += data
            if len(content) > max_bytes:
                raise RemoteError(f"{self.label} sent a response of more than {max_bytes >> 10} KiB. Check the URL.")
            if time.monotonic() > deadline:
                raise RemoteError(f"{self.label} did not finish its response in {self.timeouts.answer_s:.0f} s.")
        return bytes(content)

    def translate(self, error: Exception) -> RemoteError | RequestCancelledError:
        """Return the error that tells the user about an error of the HTTP client."""
        if self.is_cancelled:
            return RequestCancelledError("The request was cancelled.")
        text = self._key.redact(clean_message(str(error)))
        if "CERTIFICATE_VERIFY_FAILED" in text:
            reason = text.partition("certificate verify failed:")[2].partition("(_ssl")[0].strip() or "it is not valid"
            return RemoteError(
                f"{self.label} has a certificate that cannot be verified: {reason}. Nothing was sent. If you trust "
                "this server, set SSL_CERT_FILE to a file with its certificate."
            )
        head, separator, reason = text.partition(": ")
        if isinstance(error, http.ConnectError):
            _, route, proxy = head.partition(" through the proxy ")
            return RemoteConnectError(
                f"{self.label} cannot be reached{route}{proxy}: {reason}. Check that the server runs."
            )
        if "timed out" in text:
            return RemoteError(f"{self.label} did not answer in time: {reason or text}.")
        if "IncompleteRead" in text:
            return RemoteError(f"{self.label} closed the connection before the end of the reply.")
        is_lost = separator and head.startswith("Lost the connection")
        return RemoteError(
            f"The connection to {self.label} was lost: {reason}." if is_lost else f"{self.label}: {text}."
        )

    def _check_status(self, response: http.Response, *, has_body: bool) -> None:
        status = response.status
        if status in _OK:
            return
        content = bytearray()
        deadline = time.monotonic() + self.timeouts.answer_s
        self.set_read_timeout(self.timeouts.answer_s)
        with response, suppress(HubError):
            while len(content) < _MAX_ERROR_BYTES and time.monotonic() < deadline:
                data = response.read(_READ_BYTES)
                if not data:
                    break
                content += data
        reason = self._key.redact(_find_reason(bytes(content[:_MAX_ERROR_BYTES])))
        retry_after_s = http.parse_retry_after(response.headers)
        message = self._describe_status(status, reason, retry_after_s, has_body=has_body).replace("..", ".")
        if status in {400, 413, 422} and any(words in reason.lower() for words in _OVERFLOW_WORDS):
            raise ContextOverflowError(f"The conversation is too long for {self.label}: {reason}. Shorten the message.")
        raise RemoteStatusError(message, status, retry_after_s, reason)

    def _describe_status(self, status: int, reason: str, retry_after_s: float | None, *, has_body: bool) -> str:
        detail = f"HTTP {status}: {reason}" if reason else f"HTTP {status}"
        if status in {401, 403}:
            variable = self._settings.api_key_env
            advice = f"Correct the key in {variable}." if variable else "Name the variable with its key in api_key_env."
            refusal = "refuses the API key" if self._key else "needs an API key"
            return f"{self.label} {refusal} ({detail}). {advice}"
        if status == 404 and not has_body:  # noqa: PLR2004  (the list of models)
            return f"{self.label} does not have this API ({detail}). Check its URL, which usually ends with /v1."
        if status == 404:  # noqa: PLR2004
            return (
                f"{self.label} does not have this model or this API ({detail}). "
                f"`edgechat remotes test {self._name}` lists its models; the URL usually ends with /v1."
            )
        if status == 429:  # noqa: PLR2004
            wait = f"in {format_duration(retry_after_s)}" if retry_after_s else "later"
            return f"{self.label} takes no more requests now ({detail}). Try again {wait}."
        if status >= 500:  # noqa: PLR2004
            return f"{self.label} failed ({detail}). Try again later, or look at the log of the server."
        return f"{self.label} refuses the request ({detail})."


class RemoteConnectError(RemoteError):
    """Raised when no connection to a remote can be established."""


def _find_reason(content: bytes) -> str:
    """Return the reason in the body of an error response, which may be JSON, plain text or a page; "" for a page."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = msgspec.json.decode(content)
        if isinstance(value, list) and value:
            value = value[0]
        return find_error_message(value) if isinstance(value, dict) else ""
    text = content.decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else clean_message(text)


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None


def iterate_delays(n_retries: int) -> Iterator[float]:
    """Yield the delays in seconds before retries: 0.5, 1, 2 and so on."""
    yield from (0.5 * 2**attempt for attempt in range(n_retries))
