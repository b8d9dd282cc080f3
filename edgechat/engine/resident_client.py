"""Finds, starts and stops the resident engines of this user.

Clients with the same model and the same load options share one engine process. A lock lets only one client at a time
start an engine and load a model, so that two clients never load the same model twice, or plan with the same memory.
"""

from __future__ import annotations

import contextlib
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
from edgechat.errors import LocalSocketError, format_reason
from edgechat.files import FileLock
from edgechat.hardware.memory import read_process_start_time

PRIVATE_MODE: Final = "private"
"""Value of the environment variable EDGECHAT_ENGINE with which each client starts an engine of its own."""
# Time for an engine that was told to end: it saves its caches first.
_END_TIMEOUT_S: Final = 10.0
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


def read_installation() -> str:
    """Return the version and a hash of the installation; engines and clients of different ones do not meet."""
    package = Path(edgechat.__file__).parent
    stamps = [f"{package}", sys.executable, sys.version, os.environ.get("EDGECHAT_NATIVE_DIR", "")]
    for file in (*sorted((package / "engine").glob("*.py")), *sorted((package / "runtime").glob("*.py"))):
        status = file.stat()
        stamps.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return f"{edgechat.__version__} {hashlib.sha256(chr(10).join(stamps).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def lock_loading(on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock for starting engines and loading models; `on_wait` is called once if another process holds it.

    Raises LocalSocketError.
    """
    try:
        lock = FileLock(socket_dir() / "loading.lock")
    except OSError as error:
        raise LocalSocketError(f"Cannot lock the folder of the engines: {format_reason(error)}.") from error
    with contextlib.closing(lock):
        if not lock.try_acquire():
            on_wait()
            while not lock.try_acquire():
                time.sleep(_POLL_S)
        yield


def attach(request: ShareRequest) -> AttachedEngine | None:
    """Connect to a running engine that `request` accepts; return None if there is none. Raises LocalSocketError."""
    for record in list_records():
        if request.accepts(record):
            link = connect_to_engine(record)
            if link is not None:
                return link
    return None


def start(request: ShareRequest) -> tuple[StartedEngine, ResidentFiles]:
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
    return link, files


def record_load(files: ResidentFiles, max_n_ctx: int, total_bytes: int) -> None:
    """Complete the record of an engine after it has loaded a model. Ignores errors: nobody can attach then."""
    for record in list_records():
        if record.name == files.name:
            with contextlib.suppress(OSError):
                files.write_record(msgspec.structs.replace(record, max_n_ctx=max_n_ctx, total_bytes=total_bytes))


def read_status(record: EngineRecord) -> protocol.EngineStatus | None:
    """Return the status of an engine of this installation; None if it has ended. Raises LocalSocketError."""
    link = connect_to_engine(record)
    if link is None:
        return None
    try:
        link.channel.write(frames.encode(protocol.GetStatus(id=1)))
        body = link.channel.read()
        event = frames.decode_event(body) if body is not None else None
        return event if isinstance(event, protocol.EngineStatus) else None
    finally:
        link.close()


def stop_idle_engine(kept_pid: int | None = None) -> bool:
    """End the engine without clients that has been idle for longest; return False if there is none.

    The process `kept_pid` is left alone. Raises LocalSocketError.
    """
    idle = [(idle_s, record) for idle_s, record in _list_idle_engines() if record.pid != kept_pid]
    return bool(idle) and stop_engine(max(idle, key=lambda item: item[0])[1])


def stop_outdated_engines(model_path: str) -> None:
    """End the engines without clients that have loaded the model file with other options. Raises LocalSocketError."""
    for _, record in _list_idle_engines():
        if record.model_path == model_path:
            stop_engine(record)


def _list_idle_engines() -> list[tuple[float, EngineRecord]]:
    """Return the engines without clients, and for how many seconds each has been idle."""
    engines = []
    for record in list_records():
        status = read_status(record) if record.version == read_installation() else None
        if status is not None and not status.clients:
            engines.append((status.idle_s, record))
    return engines


def describe_used_engines() -> list[str]:
    """Return a sentence for each engine that has clients, which names its model, memory and clients.

    Raises LocalSocketError.
    """
    sentences = []
    for record in list_records():
        status = read_status(record) if record.version == read_installation() else None
        if status is not None and status.clients:
            users = ", ".join(f"{client.name} (process {client.pid})" for client in status.clients)
            sentences.append(f"{Path(record.model_path).name} is in use by {users}: close it to free its memory.")
    return sentences


def stop_engine(record: EngineRecord) -> bool:
    """End an engine, whatever its clients do; return whether it has ended. Raises LocalSocketError."""
    link = connect_to_engine(record)
    if link is None:
        return not record.is_running
    try:
        link.channel.write(frames.encode(protocol.Shutdown(id=0)))
        try:
            link.wait(_END_TIMEOUT_S)
        except TimeoutError:
            link.kill()
            link.wait(_END_TIMEOUT_S)
    except TimeoutError:
        return False
    finally:
        link.close()
    return True
