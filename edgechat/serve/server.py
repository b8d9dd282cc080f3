"""Listening: a socket, a loop, and an orderly end when Ctrl-C is pressed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgechat.errors import UsageError
from edgechat.serve.model_queue import ModelQueue

DRAIN_S: Final = 10.0
"""How long answers may go on after the first Ctrl-C."""
# How long their last words may take to be read.
_FLUSH_S: Final = 2.0
_MAX_SIGNALS: Final = 2
# Who connects and says nothing is let go.
_FIRST_REQUEST_S: Final = 15.0
_KEEP_ALIVE_S: Final = 30
_MAX_CONNECTIONS: Final = 1000
BACKLOG: Final = 512


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that it is known before a model is loaded. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}; try another one with --port") from error
    return bound


class _FirstRequestTimeout(H11Protocol):
    """HTTP for clients that do say something."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.loop.call_later(_FIRST_REQUEST_S, self._close_unused)

    def _close_unused(self) -> None:
        if self.cycle is None:
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves until Ctrl-C, then lets answers end: by themselves within `DRAIN_S`, or where they are."""

    def __init__(self, app: ASGIApp, models: Mapping[str, ModelQueue], on_status: Callable[[str], None]) -> None:
        """`tell` is given words for a person."""
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what is no HTTP is answered, and no matter
        super().__init__(uvicorn.Config(
            app, http=_FirstRequestTimeout, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S, backlog=BACKLOG, limit_concurrency=_MAX_CONNECTIONS,
        ))  # fmt: skip
        self._models = models
        self._on_status = on_status
        self._loop: asyncio.AbstractEventLoop | None = None
        self._n_signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  (uvicorn's)
        """Begin to end; the second time, end answers where they are; the third time, end."""
        self._n_signals += 1
        self.should_exit = True
        if self._loop is None or self._n_signals > _MAX_SIGNALS:
            self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain if self._n_signals == 1 else self._stop_all)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def _drain(self) -> None:
        n_requests = sum(served.n_requests for served in self._models.values())
        if n_requests:
            self._on_status(
                f"requests in work: {n_requests}. They may end within {DRAIN_S:g} s; Ctrl-C again ends them now"
            )
        for served in self._models.values():
            served.is_draining = True
        asyncio.get_running_loop().call_later(DRAIN_S, self._stop_all)

    def _stop_all(self) -> None:
        for served in self._models.values():
            served.cancel_all()
        asyncio.get_running_loop().call_later(_FLUSH_S, self._abort_connections)

    def _abort_connections(self) -> None:
        """Leave clients that do not read what they asked for."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.force_exit = True


def run(app: ASGIApp, models: Mapping[str, ModelQueue], bound: socket.socket, on_status: Callable[[str], None]) -> None:
    """Serve on a socket until somebody stops it."""
    HttpServer(app, models, on_status).run(sockets=[bound])
