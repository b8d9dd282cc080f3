"""HTTP as downloads need it: one GET with a range, patient with proxies and redirects, and careful with tokens.

On the standard library alone: client libraries copy what they read twice over, and not one tells bytes that arrived
before a break from those that did not. The same code serves the hub and any other address.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from edgechat.errors import HubError

CONNECT_S: Final = 3.0
"""Longest wait for a name to be resolved and a connection to be made."""
READ_S: Final = 20.0
"""Longest wait for more bytes."""
# Of that, for each of a host's addresses: the first may be one that leads nowhere.
_ADDRESS_S: Final = 1.5
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PARTIAL: Final = 206
_MAX_ERROR_BYTES: Final = 4096

T = TypeVar("T")


class HttpStatusError(HubError):
    """The server answered, but not with what was asked for."""

    def __init__(self, words: str, status: int, retry_after_s: float | None = None, code: str = "") -> None:
        super().__init__(words)
        self.status = status
        self.retry_after_s = retry_after_s
        self.code = code
        """What the hub says in X-Error-Code, such as `GatedRepo`."""

    @property
    def is_transient(self) -> bool:
        """True if the same request may succeed later."""
        return self.status in {408, 429} or self.status >= 500  # noqa: PLR2004


class ConnectionFailedError(HubError):
    """Nobody answered, or the connection broke."""


class ConnectError(ConnectionFailedError):
    """Not even a connection was made."""


class Response:
    """The body of an answer, from `start` on. Close it, or use it as a context."""

    def __init__(self, connection: http.client.HTTPConnection, url: str) -> None:
        self._connection = connection
        self._raw = raw = connection.getresponse()
        self.status = raw.status
        self.url = url
        """Where it came from, after redirects."""
        self.headers = raw.headers
        self.start, self.size_bytes = _range(raw)
        """The first byte, and how many the whole file has (None if the server does not say)."""

    @property
    def validator(self) -> str:
        """What names this version of the file for If-Range; "" if the server gives nothing that tells versions apart."""
        etag = self.headers.get("ETag", "")
        return etag if etag and not etag.startswith("W/") else self.headers.get("Last-Modified", "")

    def read(self, count: int) -> bytes:
        """The next bytes, as many as are there and at most `count`; b"" at the end. Raises Unreachable."""
        try:
            return self._raw.read1(count)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _broken(self.url, error) from error

    def close(self) -> None:
        """Drop the connection."""
        with suppress(OSError):
            self._raw.close()
        self._connection.close()

    def __enter__(self) -> Response:  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_url(url: str) -> urllib.parse.SplitResult:
    """The parts of an address. Raises Refused if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  (checked when it is asked for)
    except ValueError as error:
        raise HttpStatusError(f"what was asked for is no address: {error}", 400) from None
    return parts


def get(
    url: str,
    start: int = 0,
    end: int | None = None,
    headers: Mapping[str, str] = {},
    *,
    read_timeout_s: float = READ_S,
    on_connect: Callable[[socket.socket], None] = lambda connected: None,
) -> Response:
    """The file at `url` from `start` on, to `end` if given. A server that knows no ranges sends all of it.

    `connected` is given each connection as soon as it is made, so that another thread can `stop` it. `headers` go to this origin only: what another one is redirected to gets no token. Raises Refused and Unreachable.
    """
    sent = dict(headers) | {"Accept-Encoding": "identity"}
    if start or end is not None:
        sent["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    for _ in range(MAX_REDIRECTS + 1):
        response = _ask(url, sent, read_timeout_s, on_connect)
        if response.status not in _REDIRECTS:
            _check(response)
            return response
        response.close()
        target = _joined(url, response.headers.get("Location", ""))
        if _origin(target) != _origin(url):
            sent = {name: value for name, value in sent.items() if name.lower() not in {"authorization", "cookie"}}
        if url.startswith("https:") and not target.startswith("https:"):
            raise HttpStatusError(
                f"{redact_url(url)} leads from https to {redact_url(target)}, which is not followed", 400
            )
        url = target
    raise HttpStatusError(f"{redact_url(url)} redirects more than {MAX_REDIRECTS} times", 400)


def run_with_timeout(seconds: float, work: Callable[[], T], what: str) -> T:
    """The result of `work`, or its error; Unreachable if it takes longer: a name server that is silent cannot be hurried."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise ConnectionFailedError(f"{what} did not answer within {seconds:.0f} s: is there a network?")
    return result[0]  # type: ignore[no-any-return]


def check_reachable(url: str) -> None:
    """Raise Unreachable now, if the server of `url` (or the proxy before it) cannot be reached at all."""
    connection, _, _ = _connect(url, READ_S)
    connection.close()


def shut_down_socket(connected: socket.socket) -> None:
    """Let whoever reads from a connection get the end, or Unreachable."""
    with suppress(OSError):
        # Not the method of a TLS socket: after that, reads would return what was sent as it was sent, encrypted.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _ask(url: str, headers: Mapping[str, str], read_s: float, connected: Callable[[socket.socket], None]) -> Response:
    connection, target, more = _connect(url, read_s)
    headers = {**headers, **more}
    connected(connection.sock)
    try:
        connection.request("GET", target, headers=dict(headers))
        return Response(connection, url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise _broken(url, error) from error


def _connect(url: str, read_s: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """An open connection, what to ask it for (a path, or the whole address where a proxy stands between), and headers."""
    parts = split_url(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise HttpStatusError(f"{redact_url(url)} is no address that files can be had from", 400)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and urllib.request.proxy_bypass(parts.hostname):
        proxy = None
    via = _proxy(proxy, parts.scheme) if proxy else parts
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    host, port = via.hostname or "", via.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_ADDRESS_S, context=secure)
        if secure
        else http.client.HTTPConnection(host, port, timeout=_ADDRESS_S)
    )
    more = {}
    if proxy:
        login = _login(via)
        if secure:
            connection.set_tunnel(parts.hostname, parts.port or 443, headers=login)
        else:
            target, more = url, login
    try:
        run_with_timeout(CONNECT_S, connection.connect, host)
        connection.sock.settimeout(read_s)
    except (OSError, http.client.HTTPException, ValueError, ConnectionFailedError) as error:
        connection.close()
        raise ConnectError(f"{host} cannot be reached: {_words(error)}") from None
    return connection, target, more


def _proxy(proxy: str, scheme: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        if parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    # What is wrong with it is not shown: it may be that its password has a character that it must not have.
    raise ConnectError(f"the proxy for {scheme} that the environment names has no usable address (see {scheme}_proxy)")


def _login(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def _check(response: Response) -> None:
    status = response.status
    if status in {200, _PARTIAL}:
        return
    with response, suppress(ConnectionFailedError):
        response.read(_MAX_ERROR_BYTES)
    code = response.headers.get("X-Error-Code", "")
    words = f"{redact_url(response.url)} was refused with status {status}"
    raise HttpStatusError(words, status, retry_after_s(response.headers), code)


def retry_after_s(headers: Mapping[str, str] | http.client.HTTPMessage) -> float | None:
    """What a server asks to be waited for, where it says that in seconds."""
    after = headers.get("Retry-After", "")
    return float(after) if after.isascii() and after.isdigit() and len(after) < 10 else None  # noqa: PLR2004


def _range(raw: http.client.HTTPResponse) -> tuple[int, int | None]:
    if raw.status == _PARTIAL:
        said = raw.headers.get("Content-Range", "")
        unit, _, rest = said.partition(" ")
        span, _, size = rest.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdigit():
            return int(first), int(size) if size.isdigit() else None
        raise http.client.HTTPException(f"the server sent a part without saying which ({said!r})")
    length = raw.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _joined(url: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(url, location)
    except ValueError:
        raise HttpStatusError(f"{redact_url(url)} leads to what is no address", 400) from None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = split_url(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def redact_url(url: str) -> str:
    """The address without what may be secret: signed addresses carry it in the query, others before the host."""
    parts = split_url(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _broken(url: str, error: BaseException) -> ConnectionFailedError:
    return ConnectionFailedError(f"the connection to {split_url(url).hostname} broke: {_words(error)}")


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
