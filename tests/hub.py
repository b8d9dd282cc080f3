"""A hub over HTTP: what huggingface-hub asks, files with ranges from a second origin, and faults on demand."""

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
    files: dict[str, Path | bytes]
    gated: bool = False
    licence: str = "apache-2.0"
    token: str = ""
    """If set, only who sends it is let in."""
    wrong_hash: set[str] = field(default_factory=set)


@dataclass
class Faults:
    """What goes wrong. Lists are used up from the front, one for each request for a file."""

    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    drop_after: list[int] = field(default_factory=list)
    """Bytes of the body after which the connection is cut."""
    no_ranges: bool = False
    no_length: bool = False
    no_etag: bool = False
    max_connections: int = 0
    """More than so many at a time are refused, if not 0."""
    redirect_to: str | None = None
    """Where files are said to be, instead of the store."""
    bytes_per_s: float = 0
    silent_after: int = -1
    """After so many bytes nothing comes any more, and the connection stays."""
    api_status: int = 0
    api_body: bytes | None = None


class LocalHub:
    """Two servers: the hub, and the store of files that it leads to."""

    def __init__(self, tls: Path | None = None) -> None:
        """`tls` holds key.pem and cert.pem, if https is to be spoken."""
        self._tls = tls
        self.open_bodies = 0
        self.repos: dict[str, FakeRepo] = {}
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Path, range and headers of each request, the store's with `store:` before the path."""
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
        found = self.repos[repo].files[path]
        return found if isinstance(found, bytes) else found.read_bytes()

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
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        with self.hub.lock:
            name = f"store:{path}" if self.is_store else path
            self.hub.requests.append((name, self.headers.get("Range", ""), dict(self.headers)))
        try:
            if self.is_store:
                self._file(path)
            elif path == "/api/models":
                self._api(self._search(query))
            elif path.startswith("/api/models/"):
                self._info(path)
            elif "/resolve/" in path:
                self._resolve(path)
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

    def _api(self, value: Any) -> None:
        faults = self.hub.faults
        if faults.api_status:
            self._refuse(faults.api_status)
            return
        body = faults.api_body if faults.api_body is not None else json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        words = query.get("search", [""])[0].lower()
        limit = int(query.get("limit", ["20"])[0])
        found = [self._facts(name) for name in self.hub.repos if words in name.lower()]
        return found[:limit]

    def _facts(self, name: str) -> dict[str, Any]:
        repo = self.hub.repos[name]
        return {
            "id": name, "modelId": name, "sha": COMMIT, "downloads": 7, "likes": 1, "private": False,
            "gated": "manual" if repo.gated else False, "tags": ["gguf", f"license:{repo.licence}"],
        }  # fmt: skip

    def _may(self, repo: FakeRepo) -> bool:
        return not repo.token or self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _info(self, path: str) -> None:
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
        self._api(self._facts(name) | {"siblings": siblings})

    def _resolve(self, path: str) -> None:
        name, _, rest = path[1:].partition("/resolve/")
        file = rest.partition("/")[2]
        repo = self.hub.repos.get(name)
        if repo is None or file not in repo.files:
            self._refuse(404, "EntryNotFound")
        elif not self._may(repo):
            self._refuse(401 if not self.headers.get("Authorization") else 403, "GatedRepo" if repo.gated else "")
        else:
            self.send_response(302)
            there = f"{self.hub.store_url}/{name}/{urllib.parse.quote(file)}?signature=secret"
            told = self.hub.faults.redirect_to
            self.send_header("Location", there if told is None else told)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self, path: str) -> None:
        faults = self.hub.faults
        with self.hub.lock:
            status = faults.statuses.pop(0) if faults.statuses else 0
            drop_after = faults.drop_after.pop(0) if faults.drop_after else -1
            is_too_much = 0 < faults.max_connections <= self.hub.open_bodies
        if status or is_too_much:
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
        wanted = self.headers.get("Range", "")
        same = self.headers.get("If-Range", etag) == etag
        if wanted and not faults.no_ranges and same:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(content), int(last) + 1) if last else len(content)
            if start >= len(content):
                self._refuse(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if not faults.no_etag:
            self.send_header("ETag", etag)
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
                self._body(memoryview(content)[start:end], drop_after)
            finally:
                with self.hub.lock:
                    self.hub.open_bodies -= 1

    def _is_left(self) -> bool:
        """True if nobody is at the other end any more."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)

    def _body(self, body: memoryview, drop_after: int) -> None:
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
                while self.hub.faults is faults and not self._is_left():
                    time.sleep(0.02)
                return
            if faults.bytes_per_s:
                time.sleep(0.05)
