"""A scripted server with an OpenAI-compatible API over real sockets: right answers, and every kind of wrong one."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgechat.remote_settings import RemoteSettings

KEY = "sk-test-0123456789abcdef"

Answer = Callable[["Exchange"], None]
"""Function that writes the response to one request."""


class Exchange:
    """One request to the server, and helpers to write its response."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.handler = handler
        self.path = handler.path
        self.headers = dict(handler.headers.items())
        self.body = body
        self.is_streaming = False

    @property
    def prompt(self) -> str:
        """Text of the last message."""
        return str(self.body["messages"][-1]["content"])

    def send(
        self, content: bytes | str | dict[str, Any], status: int = 200, content_type: str = "application/json",
        **headers: str,
    ) -> None:  # fmt: skip
        """Write a complete response."""
        data = json.dumps(content) if isinstance(content, dict) else content
        data = data.encode() if isinstance(data, str) else data
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", content_type)
        self.handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def start_stream(self, content_type: str = "text/event-stream") -> None:
        """Write the headers of a stream, which ends with the connection."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", content_type)
        self.handler.end_headers()
        self.is_streaming = True

    def write(self, data: bytes) -> None:
        """Write bytes of a stream at once."""
        if not self.is_streaming:
            self.start_stream()
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def chunk(self, content: str | None = None, finish: str | None = None, **fields: Any) -> None:
        """Write one chunk with text; `fields` are other fields of its delta."""
        delta = {"content": content, **fields}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.event({"id": "x", "object": "chat.completion.chunk", "choices": [choice]})

    def usage(self, prompt_tokens: int, completion_tokens: int, **details: Any) -> None:
        """Write the last chunk, which has the usage."""
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **details}
        self.event({"choices": [], "usage": usage})

    def event(self, value: Any) -> None:
        self.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def done(self) -> None:
        self.write(b"data: [DONE]\n\n")


def reply(*parts: str) -> Answer:
    """Return an answer that streams the parts of a reply."""

    def answer(exchange: Exchange) -> None:
        for part in parts:
            exchange.chunk(part)
        exchange.chunk(finish="stop")
        exchange.usage(10, len(parts))
        exchange.done()

    return answer


class RemoteServer:
    """The server. `answers` are used in order, and the last one repeats; `models` are those of its list."""

    def __init__(self, *answers: Answer, certificate: tuple[str, str] | None = None) -> None:
        """Start the server; with `certificate` (files of certificate and key) it speaks TLS."""
        self.answers = list(answers) or [reply("Hello", " there.")]
        self.models: list[Any] = [{"id": "small"}, {"id": "big", "max_model_len": 4096}]
        self.exchanges: list[Exchange] = []
        self.required_key = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.handle(Exchange(self, None))

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                server.handle(Exchange(self, json.loads(data)))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client has closed the connection, as some tests want

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)
        self._thread.start()

    @property
    def settings(self) -> RemoteSettings:
        return RemoteSettings(url=self.url)

    @property
    def chats(self) -> list[Exchange]:
        """The requests for replies."""
        return [exchange for exchange in self.exchanges if exchange.body is not None]

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.required_key and exchange.headers.get("Authorization") != f"Bearer {self.required_key}":
            exchange.send({"error": {"message": f"Incorrect API key {exchange.headers.get('Authorization')}"}}, 401)
        elif exchange.path.endswith("/models"):
            exchange.send({"object": "list", "data": self.models})
        elif exchange.body["model"] not in {model["id"] for model in self.models}:
            exchange.send({"error": {"message": f"The model {exchange.body['model']} does not exist"}}, 404)
        else:
            number = len(self.chats) - 1
            self.answers[min(number, len(self.answers) - 1)](exchange)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def remote_server(*answers: Answer, certificate: tuple[str, str] | None = None) -> Iterator[RemoteServer]:
    """Return a context manager that runs a scripted server."""
    server = RemoteServer(*answers, certificate=certificate)
    try:
        yield server
    finally:
        server.close()
