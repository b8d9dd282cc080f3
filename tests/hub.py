"""Local copy of the Hugging Face API over HTTP, with a file store at a second origin and simulated faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeRepo:
    """A repository of the local hub."""

    files: dict[str, Path | bytes]
    gated: bool = False
    licence: str = "apache-2.0"
    token: str = ""
    """If set, files are sent only to requests with this token."""
    wrong_hash: set[str] = field(default_factory=set)
    """Files for which the API returns the hash of other content."""


@dataclass
class Faults:
    """Faults to simulate. Each request for a file removes the first element of the lists."""

    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    drop_after: list[int] = field(default_factory=list)
    """Number of bytes of the body after which the server closes the connection."""
    no_ranges: bool = False
    no_length: bool = False
    no_etag: bool = False
    max_connections: int = 0
    """Maximum number of parallel downloads; more downloads get status 503. 0 disables the limit."""
    redirect_to: str | None = None
    """Target of redirects instead of the file store."""
    bytes_per_s: float = 0
    silent_after: int = -1
    """Number of bytes of the body after which the server sends no more, but leaves the connection open."""
    api_status: int = 0
    api_body: bytes | None = None
    api_redirect_to: str | None = None
    encoding: str = ""
    """Content-Encoding of all responses; the content is sent as it is."""
    content_range: str | None = None
    """Content-Range of partial responses instead of the right one."""


class LocalHub:
    """Two servers: the hub, and the file store to which the hub redirects."""

    def __init__(self, tls: Path | None = None) -> None:
        """Start the servers; with HTTPS if `tls` is set, a directory with key.pem and cert.pem."""
        self._tls = tls
        self.open_bodies = 0
        self.repos: dict[str, FakeRepo] = {}
        self.n_repeats_in_search = 1
        """Number of times that a search lists each repository."""
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Path, Range header and all headers of each request; paths of the file store start with `store:`."""
        self.sent_bytes = 0
        self.lock = threading.Lock()
        self._servers = [self._server(is_store=False), self._server(is_store=True)]
        scheme = "https" if tls else "http"
        self.url, self.store_url = (f"{scheme}://127.0.0.1:{server.server_port}" for server in self._servers)

    def _server(self, *, is_store: bool) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub, Handler.is_store = hub, is_store
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._tls / "cert.pem", self._tls / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def content(self, repo: str, path: str) -> bytes:
        content = self.repos[repo].files[path]
        return content if isinstance(content, bytes) else content.read_bytes()

    def file_requests(self) -> list[tuple[str, str, dict[str, str]]]:
        return [r for r in self.requests if r[0].startswith("store:")]


@contextmanager
def local_hub(tls: Path | None = None) -> Iterator[LocalHub]:
    hub = LocalHub(tls)
    try:
        yield hub
    finally:
        hub.close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    is_store: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
            super().handle()

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        with self.hub.lock:
            name = f"store:{path}" if self.is_store else path
            self.hub.requests.append((name, self.headers.get("Range", ""), dict(self.headers)))
        try:
            if self.is_store:
                self._send_file(path)
            elif path == "/api/models":
                self._send_json(self._search(query))
            elif path.startswith("/api/models/"):
                self._send_repository(path)
            elif "/resolve/" in path:
                self._redirect(path)
            else:
                self._refuse(404, "EntryNotFound")
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if self.hub.faults.retry_after:
            self.send_header("Retry-After", self.hub.faults.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, value: Any) -> None:
        faults = self.hub.faults
        if faults.api_status:
            self._refuse(faults.api_status)
            return
        if faults.api_redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", faults.api_redirect_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = faults.api_body if faults.api_body is not None else json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if faults.encoding:
            self.send_header("Content-Encoding", faults.encoding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        text = query.get("search", [""])[0].lower()
        limit = int(query.get("limit", ["20"])[0])
        names = [name for name in self.hub.repos if text in name.lower()] * self.hub.n_repeats_in_search
        return [self._api_entry(name) for name in names][:limit]

    def _api_entry(self, name: str) -> dict[str, Any]:
        repo = self.hub.repos[name]
        return {
            "id": name, "modelId": name, "sha": COMMIT, "downloads": 7, "likes": 1, "private": False,
            "gated": "manual" if repo.gated else False, "tags": ["gguf", f"license:{repo.licence}"],
        }  # fmt: skip

    def _is_allowed(self, repo: FakeRepo) -> bool:
        return not repo.token or self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _send_repository(self, path: str) -> None:
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        repo = self.hub.repos.get(name)
        if repo is None:
            self._refuse(401, "RepoNotFound")
            return
        siblings = []
        for file in repo.files:
            content = self.hub.content(name, file)
            digest = hashlib.sha256(b"other" if file in repo.wrong_hash else content).hexdigest()
            siblings.append({
                "rfilename": file, "size": len(content), "blobId": digest[:40],
                "lfs": {"sha256": digest, "size": len(content), "pointerSize": 134},
            })  # fmt: skip
        self._send_json(self._api_entry(name) | {"siblings": siblings})

    def _redirect(self, path: str) -> None:
        name, _, revision_and_file = path[1:].partition("/resolve/")
        file = revision_and_file.partition("/")[2]
        repo = self.hub.repos.get(name)
        if repo is None or file not in repo.files:
            self._refuse(404, "EntryNotFound")
        elif not self._is_allowed(repo):
            self._refuse(401 if not self.headers.get("Authorization") else 403, "GatedRepo" if repo.gated else "")
        else:
            self.send_response(302)
            store_url = f"{self.hub.store_url}/{name}/{urllib.parse.quote(file)}?signature=secret"
            redirect_to = self.hub.faults.redirect_to
            self.send_header("Location", store_url if redirect_to is None else redirect_to)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send_file(self, path: str) -> None:
        faults = self.hub.faults
        with self.hub.lock:
            status = faults.statuses.pop(0) if faults.statuses else 0
            drop_after = faults.drop_after.pop(0) if faults.drop_after else -1
            is_over_limit = 0 < faults.max_connections <= self.hub.open_bodies
        if status or is_over_limit:
            self._refuse(status or 503)
            return
        owner, repo, file = path[1:].split("/", 2)
        try:
            content = self.hub.content(f"{owner}/{repo}", file)
        except KeyError:
            self._refuse(404)
            return
        etag = '"' + hashlib.md5(content, usedforsecurity=False).hexdigest() + '"'
        start, end = 0, len(content)
        requested = self.headers.get("Range", "")
        is_same = self.headers.get("If-Range", etag) == etag
        if requested and not faults.no_ranges and is_same:
            first, _, last = requested.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(content), int(last) + 1) if last else len(content)
            if start >= len(content):
                self._refuse(416)
                return
            self.send_response(206)
            content_range = f"bytes {start}-{end - 1}/{len(content)}"
            self.send_header("Content-Range", content_range if faults.content_range is None else faults.content_range)
        else:
            self.send_response(200)
        if not faults.no_etag:
            self.send_header("ETag", etag)
        if faults.encoding:
            self.send_header("Content-Encoding", faults.encoding)
        if faults.no_length:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            with self.hub.lock:
                self.hub.open_bodies += 1
            try:
                self._send_body(memoryview(content)[start:end], drop_after)
            finally:
                with self.hub.lock:
                    self.hub.open_bodies -= 1

    def _has_client_disconnected(self) -> bool:
        """Return True if the client has closed the connection."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send_body(self, body: memoryview, drop_after: int) -> None:
        faults, sent = self.hub.faults, 0
        step = max(1, int(faults.bytes_per_s * 0.05)) if faults.bytes_per_s else 256 << 10
        while sent < len(body):
            count = min(step, len(body) - sent)
            for limit in (drop_after, faults.silent_after):
                if limit >= 0:
                    count = min(count, limit - sent)
            self.wfile.write(body[sent : sent + count])
            sent += count
            with self.hub.lock:
                self.hub.sent_bytes += count
            if sent == drop_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if sent == faults.silent_after:
                while self.hub.faults is faults and not self._has_client_disconnected():
                    time.sleep(0.02)
                return
            if faults.bytes_per_s:
                time.sleep(0.05)
