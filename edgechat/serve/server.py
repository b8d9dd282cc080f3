"""HTTP server with connection timeouts and an orderly shutdown on Ctrl-C."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp

from edgechat.engine.engine_process import EXIT_TIMEOUT_S
from edgechat.errors import UsageError, format_reason
from edgechat.serve.connections import KEEP_ALIVE_TIMEOUT_S, Connection, ConnectionTable, raise_connection_limit
from edgechat.serve.model_queue import ModelQueue

DRAIN_TIMEOUT_S: Final = 10.0
"""Time limit for running requests to finish after the first Ctrl-C."""
# Delays after the cancellation of all requests: until the server closes its engines, and until it closes the
# connections of clients that do not read their responses. Including `DRAIN_TIMEOUT_S`, the server ends within 12
# seconds even if engines or clients do not respond.
_CANCEL_TIMEOUT_S: Final = 0.5
_FLUSH_TIMEOUT_S: Final = 1.5
# Time that an engine has to save its caches after the cancellation, before it is killed.
_ENGINE_EXIT_TIMEOUT_S: Final = 1.0
# Number of signals for an orderly shutdown: the first drains the queues, the second cancels requests. The next signal
# ends the server immediately.
_MAX_ORDERLY_SIGNALS: Final = 2
OLLAMA_PORT: Final = 11434
"""Port on which clients of Ollama expect it."""
BACKLOG: Final = 512
"""Number of connections that the system queues until the server accepts them."""
# Number of connections that asyncio accepts in one iteration of the event loop. `ConnectionTable` can close slow
# connections only between two iterations.
_ACCEPT_BATCH: Final = 64
_TICKS_PER_S: Final = 10  # how often uvicorn calls `on_tick`
_STDIN_CHUNK_BYTES: Final = 4096


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind and return the server's socket. Raises UsageError if the port is in use or the host is invalid.

    The caller binds the socket before it loads the models, so that errors are reported immediately.
    """
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server_socket = stack.enter_context(socket.socket(family, kind, protocol))
            server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server_socket.bind(address)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"Cannot listen on {host}, port {port}: {format_reason(error)}. Choose another port with --port."
            ) from error
        stack.pop_all()  # the socket stays open
    return server_socket


def bind_ollama_socket(stack: contextlib.ExitStack) -> socket.socket | None:
    """Listen on the port of Ollama, and close the socket with `stack`. Return None if the port is in use.

    Clients that connect before the models are loaded wait. Without listening, another program could take the port.
    """
    try:
        ollama_socket = stack.enter_context(bind_socket("127.0.0.1", OLLAMA_PORT))
        ollama_socket.listen(BACKLOG)
    except (UsageError, OSError):
        return None
    return ollama_socket


def stop_on_stdin_eof() -> None:
    """Send SIGTERM to this process when standard input ends, also while models are loading.

    The system closes the other end of a pipe when the process that has it ends, even by SIGKILL.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):  # standard input is closed
            while os.read(0, _STDIN_CHUNK_BYTES):
                pass
        if sys.platform == "win32":  # there, os.kill would end the process at once
            _thread.interrupt_main(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="standard input", daemon=True).start()


def _is_not_cancellation(record: logging.LogRecord) -> bool:
    """Return False for the log record of a request that the shutdown of the server cancelled."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class HttpServer(uvicorn.Server):
    """HTTP server that runs until Ctrl-C, and cancels requests still running `DRAIN_TIMEOUT_S` seconds later."""

    def __init__(self, app: ASGIApp, models: Mapping[str, ModelQueue], on_status: Callable[[str], None]) -> None:
        """Configure the server without starting it; `on_status` receives status messages for the user."""
        logger = logging.getLogger("uvicorn.error")
        logger.setLevel(logging.ERROR)  # hide warnings about invalid HTTP requests
        logger.addFilter(_is_not_cancellation)
        self._connections = ConnectionTable(raise_connection_limit())
        super().__init__(uvicorn.Config(
            app, http=cast("type[asyncio.Protocol]", functools.partial(Connection, self._connections)), ws="none",
            lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=int(KEEP_ALIVE_TIMEOUT_S), backlog=_ACCEPT_BATCH,
        ))  # fmt: skip
        self._models = models
        self._on_status = on_status
        self._loop: asyncio.AbstractEventLoop | None = None
        self._n_signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's signature)
        """Handle Ctrl-C: the first signal starts the shutdown, the second cancels all requests, the third exits."""
        self._n_signals += 1
        self.should_exit = True
        if self._loop is None or self._n_signals > _MAX_ORDERLY_SIGNALS:
            self.force_exit = True
            self._close_models(0.0)
        else:
            self._loop.call_soon_threadsafe(self._drain if self._n_signals == 1 else self._cancel_all)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for server_socket in sockets or ():
            server_socket.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_S == 0:
            self._connections.check_deadlines()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # Threads of disconnected clients may still wait for an engine, and the event loop waits for these threads.
        self._close_models(_ENGINE_EXIT_TIMEOUT_S if self.force_exit else EXIT_TIMEOUT_S)

    def _close_models(self, timeout_s: float) -> None:
        """Close each model on a separate thread; requests in progress end with an error."""
        for queue in self._models.values():
            threading.Thread(target=queue.close, args=(timeout_s,), name="close model").start()

    def _drain(self) -> None:
        n_requests = sum(queue.n_requests for queue in self._models.values())
        if n_requests:
            self._on_status(
                f"Running requests: {n_requests}. They have {DRAIN_TIMEOUT_S:g} s to finish; "
                "press Ctrl-C again to cancel them."
            )
        for queue in self._models.values():
            queue.is_draining = True
        asyncio.get_running_loop().call_later(DRAIN_TIMEOUT_S, self._cancel_all)

    def _cancel_all(self) -> None:
        for queue in self._models.values():
            queue.cancel_all()
        loop = asyncio.get_running_loop()
        loop.call_later(_CANCEL_TIMEOUT_S, self._close_models, _ENGINE_EXIT_TIMEOUT_S)
        loop.call_later(_FLUSH_TIMEOUT_S, self._abort_connections)

    def _abort_connections(self) -> None:
        """Close the connections of clients that do not read their responses."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.force_exit = True


def run(
    app: ASGIApp, models: Mapping[str, ModelQueue], sockets: list[socket.socket], on_status: Callable[[str], None]
) -> None:
    """Serve requests on bound sockets until a signal ends the server."""
    HttpServer(app, models, on_status).run(sockets=sockets)
