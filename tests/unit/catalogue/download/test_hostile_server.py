"""Servers that send wrong, endless or oversized responses to downloads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat.catalogue.download import http
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.request import DownloadRequest, RetryPolicy
from edgechat.errors import DownloadError, HubError
from tests.hub import FakeRepo, LocalHub, local_hub
from tests.time_limit import HANG_S

BODY = bytes(range(256)) * 40
QUICK = RetryPolicy(max_tries=2, first_pause_s=0.01)

Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """Yield the URL of a server that reads the head of each request and calls `answer` with the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    is_done = threading.Event()

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(HANG_S)
            head = b""
            while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                head += data
            answer(connection)

    def serve() -> None:
        while not is_done.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/m.gguf"
    finally:
        is_done.set()
        thread.join()
        listener.close()


def send(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def send_slowly(start: bytes, data: bytes) -> Answer:
    """Send `start`, then one byte of `data` every 20 ms, again and again."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            for byte in data:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)

    return answer


def send_forever(data: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (send_slowly(b"HTTP/1.1 200 OK\r\nX: ", b"x"), "timed out while waiting for the headers"),
        (send_slowly(b"", b"H"), "timed out while waiting for the headers"),
        (send_forever(b"HTTP/1.1 100 Continue\r\n\r\n"), "timed out while waiting for the headers"),
        (send_forever(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "Lost the connection"),
        (send_forever(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "Lost the connection"),
        (send(b"HTTP/1.1 2e2 OK\r\n\r\n"), "Lost the connection"),
        (send(b"SSH-2.0-OpenSSH_9.6\r\n"), "Lost the connection"),
        (send(b"\x00" * 5000), "Lost the connection"),
        (send(b""), "Lost the connection"),
    ],
)
def test_headers_have_a_limit_in_time_and_size(answer: Answer, message: str) -> None:
    read_timeout_s = 0.4 if "timed out" in message else HANG_S  # on a busy machine, nothing arrives for a while
    with raw_server(answer) as url, pytest.raises(HubError, match=message) as error:
        http.get(url, read_timeout_s=read_timeout_s)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:alert(1)", "//", "http://", "http://[", "http://a\x00b/",
        "http://127.0.0.1:99999/", "http://127.0.0.1:1/ \xe4", "data:,x",
    ],
)  # fmt: skip
def test_redirect_to_something_else_than_http_is_refused(location: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    with raw_server(send(head)) as url, pytest.raises(HubError):
        http.get(url)


@pytest.mark.parametrize("value", ["\xb2", "-1", "1e9", "9" * 5000, "Wed, 21 Oct 2065 07:28:00 GMT", ""])
def test_invalid_retry_after_is_ignored(value: str) -> None:
    head = f"HTTP/1.1 503 Busy\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    with raw_server(send(head)) as url, pytest.raises(http.HttpStatusError) as error:
        http.get(url)
    assert error.value.retry_after_s is None


@pytest.fixture
def server() -> Iterator[LocalHub]:
    with local_hub() as local:
        local.repos["own/repo"] = FakeRepo({"m.gguf": BODY})
        yield local


def request(server: LocalHub, folder: Path, size: int | None = len(BODY), sha256: str = "0" * 64) -> DownloadRequest:
    url = f"{server.store_url}/own/repo/m.gguf"
    return DownloadRequest(url=url, path=folder / "m.gguf", size_bytes=size, sha256=sha256)


@pytest.mark.parametrize(
    "content_range",
    [
        "", "bytes", "bytes */10240", "items 0-10239/10240", "bytes 5-10239/10240", "bytes -5-10239/10240",
        "bytes 0-10239/999999", f"bytes {'9' * 5000}-1/2", "bytes \xb2-10239/10240",
    ],
)  # fmt: skip
def test_wrong_content_range_fails_the_download(server: LocalHub, tmp_path: Path, content_range: str) -> None:
    server.faults.content_range = content_range
    with pytest.raises((HubError, DownloadError)) as error:
        download_file(request(server, tmp_path), retry_policy=QUICK)
    assert len(str(error.value)) < 400
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_compressed_body_is_refused_at_once(server: LocalHub, tmp_path: Path, size: int | None) -> None:
    server.faults.encoding = "gzip"
    with pytest.raises(http.UnusableResponseError, match=r"sent compressed data \(gzip\)"):
        download_file(request(server, tmp_path, size), retry_policy=QUICK)
    assert len(server.requests) == 1
    server.faults.encoding = "identity"
    with pytest.raises(DownloadError, match="has the hash"):
        download_file(request(server, tmp_path, size), retry_policy=QUICK)


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1, 1 << 40])
def test_size_other_than_published_fails_the_download(
    server: LocalHub, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgechat.catalogue.download.transfer.check_disk_space", lambda *_: None)
    with pytest.raises(DownloadError, match=r"was changed on the server: expected \d+ bytes, got 10240"):
        download_file(request(server, tmp_path, size), retry_policy=QUICK)
    assert not (tmp_path / "m.gguf").exists()


def test_endless_body_of_unknown_size_ends_when_the_disk_is_almost_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def check_disk_space(path: Path, missing_bytes: int) -> None:
        written.append(-missing_bytes)
        if -missing_bytes > 4 << 20:
            raise DownloadError("the disk is almost full")

    monkeypatch.setattr("edgechat.catalogue.download.transfer.check_disk_space", check_disk_space)
    body = b"HTTP/1.1 200 OK\r\n\r\n" + b"GGUF" * 50_000
    with raw_server(send_forever(body)) as url, pytest.raises(DownloadError, match="the disk is almost full"):
        download_file(
            DownloadRequest(url=url, path=tmp_path / "m.gguf"),
            retry_policy=RetryPolicy(max_tries=1, growth_interval_s=0.01),
        )
    assert not (tmp_path / "m.gguf").exists()
