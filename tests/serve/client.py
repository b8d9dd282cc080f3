"""An `edgechat serve` process, and an HTTP client that can also send invalid requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import edgechat_command

# In the starter model's reply each token is at least 0.9 (log probability) ahead of the next: neither a draft nor
# another request in the same decode step, whose larger batches round differently, changes it.
CERTAIN_PROMPT = "Count from 1 to 20."


# Constants of the server's shutdown and of its search for engines that hang.
DRAIN_TIMEOUT_S = "edgechat.serve.server.DRAIN_TIMEOUT_S"
CANCEL_TIMEOUT_S = "edgechat.serve.server._CANCEL_TIMEOUT_S"
FLUSH_TIMEOUT_S = "edgechat.serve.server._FLUSH_TIMEOUT_S"
STOPPED_TICKS = "edgechat.engine.hang_detector.STOPPED_TICKS"
CANCELLED_TICKS = "edgechat.engine.hang_detector.CANCELLED_TICKS"
NEVER = 3600
"""Number of seconds that a test cannot reach: a server that ends before them does not end because of this limit."""


class ServerProcess:
    """`edgechat serve` on a free port, and requests to it."""

    def __init__(
        self, home: Path, *arguments: str, constants: Mapping[str, float] | None = None, **environment: str
    ) -> None:
        """Start the server; `constants` are other values of constants, by module and name, in its process."""
        self.errors: list[str] = []
        command = edgechat_command("serve", "--port", "0", "--json", *arguments)
        if constants:
            command = [sys.executable, "-c", _make_start_code(constants), *command[1:]]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            env=os.environ | {"EDGECHAT_HOME": str(home)} | environment,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "".join(self.errors)
        self.url = str(json.loads(line)["url"])
        self.host, _, port = self.url.removeprefix("http://").removesuffix("/v1").rpartition(":")
        self.port = int(port)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors += iter(self.process.stderr.readline, "")

    @property
    def engine_pid(self) -> int:
        """Process ID of the engine."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in _read_if_present(task).split()]
        pids = [c for c in children if b"_engine" in _read_if_present(Path(f"/proc/{c.decode()}/cmdline"))]
        return int(pids[0])

    def _open_connection(self) -> http.client.HTTPConnection:
        # A reply that fills the context takes minutes on a busy machine.
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def request(
        self, path: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        """Return status, decoded body and response; a body other than `bytes` is encoded as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with contextlib.closing(self._open_connection()) as connection:
            connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
            response = connection.getresponse()
            content = response.read()
        try:
            return response.status, json.loads(content), response
        except ValueError:
            return response.status, content.decode(), response

    def chat(self, body: dict[str, Any], **options: Any) -> tuple[int, Any]:
        """Request a chat completion, return status and body; `messages` may be the text of one user message."""
        if isinstance(body.get("messages"), str):
            body = body | {"messages": [{"role": "user", "content": body["messages"]}]}
        status, answer, _ = self.request("/v1/chat/completions", body, **options)
        return status, answer

    def stream(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> Iterator[Any]:
        """Yield the decoded events of a stream, and "[DONE]"."""
        connection = self._open_connection()
        connection.request("POST", path, json.dumps(body | {"stream": True}).encode())
        response = connection.getresponse()
        assert response.status == 200, response.read()
        try:
            for line in response:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        finally:
            response.close()
            connection.close()

    def connect(self) -> socket.socket:
        """Open a TCP connection."""
        return socket.create_connection((self.host, self.port), timeout=120)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def has_printed(self, text: str) -> bool:
        """Return whether the server has printed `text` on standard error."""
        return text in "".join(self.errors)

    def close(self) -> int:
        """End the server and return its exit code."""
        if self.process.poll() is None:
            self.interrupt()
            try:
                self.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(60)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return self.process.returncode


def _make_start_code(constants: Mapping[str, float]) -> str:
    """Return the code of a process that changes constants and runs edgechat with the rest of its arguments."""
    lines = [f"import {name.rpartition('.')[0]}; {name} = {value!r}" for name, value in constants.items()]
    return "\n".join([*lines, "from edgechat.cli.main import main", "main()"])


def _read_if_present(path: Path) -> bytes:
    """Return the content of a file in /proc; nothing if its thread or process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def user(text: str) -> list[dict[str, str]]:
    """Return the messages of a conversation with one user message."""
    return [{"role": "user", "content": text}]
