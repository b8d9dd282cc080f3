"""Finds, starts and stops the resident engines of this user.

Clients with the same model and the same load options share one engine process. A lock lets only one client at a time
start an engine and load a model, so that two clients never load the same model twice, or plan with the same memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

import edgechat
from edgechat.engine import frames, protocol
from edgechat.engine.engine_link import AttachedEngine, StartedEngine, connect_to_engine
from edgechat.engine.local_socket import socket_dir
from edgechat.engine.resident_files import EngineRecord, ResidentFiles, list_records
from edgechat.errors import EngineError, LocalSocketError, format_reason
from edgechat.files import FileLock
from edgechat.hardware.memory import is_process_stopped, read_process_start_time

PRIVATE_MODE: Final = "private"
"""Value of the environment variable EDGECHAT_ENGINE with which each client starts an engine of its own."""
# Time for an engine to end after a Shutdown request: it saves its caches first.
_END_TIMEOUT_S: Final = 10.0
_N_END_REQUESTS: Final = 10
# Time for an engine to report its status, which it does also during a computation.
_STATUS_TIMEOUT_S: Final = 2.0
# Rooms whose code decides what an engine does.
_ENGINE_ROOMS: Final = ("engine", "runtime", "prefix", "speculation", "planner")
_POLL_S: Final = 0.02


class ShareRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs of an engine that it shares with others."""

    client: protocol.ClientInfo
    keep_alive_s: float
    key: str
    """Model files and load options, except for context length and budget."""
    model_path: str
    n_ctx: int | None
    budget_bytes: int | None

    def accepts(self, record: EngineRecord) -> bool:
        """Return whether the engine has the right model and options.

        An engine whose context grows serves a client that asked for a fixed length which it can reach.
        """
        if record.key != self.key or record.version != read_installation():
            return False
        has_context = record.n_ctx == self.n_ctx or (record.n_ctx is None and (self.n_ctx or 0) <= record.max_n_ctx)
        has_budget = record.budget_bytes == self.budget_bytes or (
            record.budget_bytes is None and 0 < record.total_bytes <= (self.budget_bytes or 0)
        )
        return has_context and has_budget


def is_private() -> bool:
    """Return whether the user asked for an engine process for each client."""
    return os.environ.get("EDGECHAT_ENGINE") == PRIVATE_MODE


@functools.cache
def read_installation() -> str:
    """Return the version and a hash of the installation; engines and clients of different ones do not share."""
    package = Path(edgechat.__file__).parent
    stamps = [f"{package}", sys.executable, sys.version, os.environ.get("EDGECHAT_NATIVE_DIR", "")]
    for room in _ENGINE_ROOMS:
        for file in sorted((package / room).rglob("*.py")):
            status = file.stat()
            stamps.append(f"{room} {file.name} {status.st_size} {status.st_mtime_ns}")
    return f"{edgechat.__version__} {hashlib.sha256(chr(10).join(stamps).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def lock_loading(on_wait: Callable[[], None], check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock for starting engines and loading models.

    While another process holds it, `on_wait` is called once and `check` again and again; an exception of `check` ends
    the wait. Raises LocalSocketError if there are no locks, or if the process that holds the lock is suspended.
    """
    try:
        lock = FileLock(socket_dir() / "loading.lock")
    except OSError as error:
        raise LocalSocketError(f"Cannot lock the folder of the engines: {format_reason(error)}.") from error
    with contextlib.closing(lock):
        try:
            if not lock.try_acquire():
                on_wait()
                while not lock.try_acquire():
                    check()
                    _check_owner(lock.read_owner())
                    time.sleep(_POLL_S)
        except OSError as error:
            raise LocalSocketError(f"The folder of the engines has no locks: {format_reason(error)}.") from error
        lock.write_owner()
        yield


def _check_owner(pid: int | None) -> None:
    if pid is not None and is_process_stopped(pid):
        raise LocalSocketError(
            f"Another edgechat program (process {pid}) is suspended while it loads a model. Continue or end it."
        )


def attach(request: ShareRequest) -> Iterator[AttachedEngine]:
    """Yield connections to the running engines that `request` accepts. Raises LocalSocketError."""
    for record in list_records():
        if request.accepts(record):
            with contextlib.suppress(LocalSocketError):  # it does not answer
                link = connect_to_engine(record)
                if link is not None:
                    yield link


def start(request: ShareRequest) -> StartedEngine:
    """Start a resident engine and write its record. Raises LocalSocketError and EngineDiedError."""
    files = ResidentFiles.create()
    link = StartedEngine(files)
    record = EngineRecord(
        name=files.name, pid=link.pid, started_at=read_process_start_time(link.pid), version=read_installation(),
        key=request.key, model_path=request.model_path, n_ctx=request.n_ctx, budget_bytes=request.budget_bytes,
    )  # fmt: skip
    try:
        files.write_record(record)
    except OSError as error:
        link.kill()
        link.close()
        raise LocalSocketError(f"Cannot write the record of the engine: {format_reason(error)}.") from error
    return link


def record_load(pid: int, max_n_ctx: int, total_bytes: int) -> None:
    """Complete the record of an engine after it has loaded a model. Ignores errors: nobody can attach then."""
    with contextlib.suppress(OSError, LocalSocketError):
        for record in list_records():
            if record.pid == pid:
                loaded_record = msgspec.structs.replace(record, max_n_ctx=max_n_ctx, total_bytes=total_bytes)
                ResidentFiles(record.name).write_record(loaded_record)


def read_status(record: EngineRecord) -> protocol.EngineStatus | None:
    """Return the status of an engine; None if it has ended, does not answer, or has another protocol."""
    with contextlib.suppress(LocalSocketError):
        link = connect_to_engine(record)
        if link is not None:
            with contextlib.closing(link):
                return _ask_for_status(link)
    return None


def _ask_for_status(link: AttachedEngine) -> protocol.EngineStatus | None:
    link.channel.set_timeout(_STATUS_TIMEOUT_S)
    link.channel.write(frames.encode(protocol.GetStatus(id=1)))
    while (body := link.channel.read()) is not None:
        with contextlib.suppress(EngineError):
            event = frames.decode_event(body)
            if isinstance(event, protocol.EngineStatus):  # heartbeats may come before
                return event
    return None


def stop_idle_engine(kept_pid: int | None = None) -> bool:
    """End the engine without clients that has been idle for longest; return False if there is none.

    The process `kept_pid` is left alone. Raises LocalSocketError.
    """
    idle = [(idle_s, record) for idle_s, record in _list_idle_engines() if record.pid != kept_pid]
    return any(
        stop_engine(record, if_unused=True) for _, record in sorted(idle, key=lambda item: item[0], reverse=True)
    )


def end_left_engine(pid: int) -> None:
    """End an engine that this program has just left, unless another one uses it.

    Ignores errors, because the engine also ends later.
    """
    with contextlib.suppress(LocalSocketError):
        for record in [record for record in list_records() if record.pid == pid]:
            deadline = time.monotonic() + _END_TIMEOUT_S
            # The engine may not have noticed yet that its client has left.
            while (status := read_status(record)) is not None and time.monotonic() < deadline:
                if not status.clients:
                    stop_engine(record, if_unused=True)
                    return
                if any(client.pid != os.getpid() for client in status.clients):
                    return
                time.sleep(_POLL_S)


def _list_idle_engines() -> list[tuple[float, EngineRecord]]:
    """Return the engines without clients, and for how many seconds each has been idle. Raises LocalSocketError."""
    engines = []
    for record in list_records():
        status = read_status(record)
        if status is not None and not status.clients:
            engines.append((status.idle_s, record))
    return engines


def describe_used_engines(own_pid: int | None) -> list[str]:
    """Return a sentence for each engine that other programs use, which names its model and these programs.

    `own_pid` is the engine of this program. Raises LocalSocketError.
    """
    sentences = []
    for record in list_records():
        status = read_status(record) if record.pid != own_pid else None
        if status is not None and status.clients:
            users = ", ".join(f"{client.name} (process {client.pid})" for client in status.clients)
            sentences.append(f"{Path(record.model_path).name} is in use by {users}: close it to free its memory.")
    return sentences


def stop_engine(record: EngineRecord, *, if_unused: bool = False) -> bool:
    """End an engine; return whether it has ended. With `if_unused`, do nothing if it has clients.

    An engine that is suspended is killed, and without `if_unused` also one that does not end.
    """
    try:
        link = connect_to_engine(record)
    except LocalSocketError:
        return False
    if link is None:
        return not record.is_running
    with contextlib.closing(link):
        link.channel.set_timeout(_STATUS_TIMEOUT_S)
        if not _ask_to_end(link, if_unused=if_unused):
            if if_unused and not is_process_stopped(record.pid):
                return False
            link.kill()
        try:
            link.wait(_END_TIMEOUT_S)
        except TimeoutError:
            return False
    return True


def _ask_to_end(link: AttachedEngine, *, if_unused: bool) -> bool:
    """Send Shutdown requests until the engine has ended, or is used by a client; return whether it has ended."""
    for _ in range(_N_END_REQUESTS):  # an engine that is not used refuses while another client connects
        link.channel.write(frames.encode(protocol.Shutdown(id=0, if_unused=if_unused)))
        with contextlib.suppress(TimeoutError):
            link.wait(_END_TIMEOUT_S / _N_END_REQUESTS)
            return True
        if is_process_stopped(link.pid):
            return False
        if if_unused and (status := _ask_for_status(link)) is not None and status.clients:
            return False
    return False
