"""Lifetime of a resident engine: it accepts clients on a socket, and ends some time after the last one has left.

It also ends when other programs need its memory and it has been idle for a minute; its clients then load the model
again for their next request.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable
from typing import Final

from edgechat.engine.client_connections import ClientConnections
from edgechat.engine.context_sizing import is_short
from edgechat.engine.local_socket import listen
from edgechat.engine.protocol import EngineStatus
from edgechat.engine.resident_files import ResidentFiles
from edgechat.engine.socket_listener import Listener
from edgechat.errors import EdgechatError
from edgechat.files import open_new_private
from edgechat.hardware.free_memory import FreeMemory, read_free_memory
from edgechat.runtime import activity

_CHECK_INTERVAL_S: Final = 0.5
# Time without clients after which an engine without a model ends, for example if its starter was killed.
_MAX_WITHOUT_MODEL_S: Final = 5.0
# Time without a request after which the engine ends when memory is short.
_MIN_IDLE_S: Final = 60.0


class ResidentServer:
    """Listener and lifetime of the resident engine in this process."""

    def __init__(self, name: str) -> None:
        """Record crashes of this process in its files. Raises LocalSocketError and OSError."""
        self._files = ResidentFiles(name)
        self._fault_file = open_new_private(self._files.fault)
        faulthandler.enable(self._fault_file, all_threads=False)
        self._listener: Listener | None = None

    def start(self, clients: ClientConnections, shut_down: Callable[[], None]) -> None:
        """Accept clients in a thread, which calls `shut_down` when the engine must end.

        If no socket can be created, the engine serves only the client that started it.
        """
        clients.on_end = self._files.delete
        try:
            self._listener = listen(self._files.socket)
        except EdgechatError as error:
            print(f"Cannot accept other clients: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        target = self._accept_clients
        threading.Thread(target=target, args=(clients, shut_down), name="clients", daemon=True).start()

    def close(self) -> None:
        """Record that the process exits by itself, and delete its files."""
        activity.record_exit(0)
        self._files.delete()

    def _accept_clients(self, clients: ClientConnections, shut_down: Callable[[], None]) -> None:
        pause = threading.Event()
        while not clients.end_if(self._must_end):
            if self._listener is None:
                pause.wait(_CHECK_INTERVAL_S)
            elif (channel := self._listener.accept(_CHECK_INTERVAL_S)) is not None:
                clients.add(channel)
        if self._listener is not None:
            self._listener.close()
        shut_down()

    def _must_end(self, status: EngineStatus) -> bool:
        try:
            return must_end(status, read_free_memory, can_accept=self._can_accept())
        except OSError as error:  # for example, too many open files
            print(f"Cannot check the memory: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
            return False

    def _can_accept(self) -> bool:
        """Return whether clients can find this engine; its socket may have been deleted, for example at a logout."""
        return self._listener is not None and self._listener.owns_path()


def must_end(status: EngineStatus, read_memory: Callable[[], FreeMemory], *, can_accept: bool) -> bool:
    """Return whether the engine has been idle for long enough to end now; at once if no client can find it again."""
    if status.clients:
        return status.idle_s >= _MIN_IDLE_S and is_short(read_memory())
    if status.loaded is None:
        return status.idle_s >= _MAX_WITHOUT_MODEL_S
    is_expired = 0 <= status.keep_alive_s <= status.idle_s
    return is_expired or not can_accept or is_short(read_memory())
