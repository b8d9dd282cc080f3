"""The client's side of an engine process: starts it, sends requests, and restarts it after a crash.

Any thread may call a client. One reader thread per engine process passes events to the callbacks of their requests.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from edgechat import paths
from edgechat.engine import protocol
from edgechat.engine.pipe import spawn_child
from edgechat.errors import EdgechatError, EngineDiedError, error_class
from edgechat.hardware.cpu import read_cpu
from edgechat.planner.requantize import QuantModel
from edgechat.process import EXIT_VERSION_CHANGED, UPGRADED_MESSAGE
from edgechat.runtime import logs
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import ABORT_CODES, CRASH_CODES, describe_exit

# Exit codes that count against the backend. llama.cpp also aborts when it rejects a model: no backend fault.
_BACKEND_CRASHES: Final = CRASH_CODES - ABORT_CODES
_EXIT_TIMEOUT_S: Final = 2.0
KILL_SIGNAL: Final = getattr(signal, "SIGKILL", 9)
"""The signal that the system sends to a process when memory runs out."""

T = TypeVar("T", bound=protocol.Event)
OnEvent = Callable[[protocol.AnyEvent], None]
OnOutcome = Callable[["protocol.AnyEvent | EdgechatError"], None]


def _ignore(event: protocol.AnyEvent) -> None:
    pass


class EngineProcess:
    """One engine process and its pending requests."""

    def __init__(self) -> None:
        log = logs.open_log()
        self._log_start = logs.size()
        try:
            self.child, self.channel = spawn_child(["_engine"], log or subprocess.DEVNULL)
        finally:
            if log:
                log.close()
        self.n_loads = 0
        """Number of Load requests that this process received."""
        self.error: EngineDiedError | None = None
        """Error that describes the death of the process; None while the process is running."""
        self._backend = ""
        self._is_closing = False
        self._callbacks: dict[int, OnOutcome] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="engine-events", daemon=True).start()

    def send(self, request: protocol.Request, on_event: OnOutcome) -> None:
        """Send a request. The reader thread calls `on_event` with each event, or with the error that ends the request.

        Raises EngineDiedError if the process has died.
        """
        frame = protocol.encode(request)
        with self._lock:
            if self.error is not None:
                raise self.error
            self._callbacks[request.id] = on_event
        self.channel.write(frame)  # after a failed write, the reader thread notices the end of the process

    def _read(self) -> None:
        while (body := self.channel.read()) is not None:
            try:
                event = protocol.decode_event(body)
            except EdgechatError:
                self.child.kill()
                break
            with self._lock:
                is_final = isinstance(event, protocol.FINAL_EVENTS)
                on_event = self._callbacks.pop(event.id, None) if is_final else self._callbacks.get(event.id)
            if isinstance(event, protocol.RequestFinished) and event.finish_reason == "cancelled":
                self._log_start = logs.size()  # llama.cpp logs an abort as an error, which crash reports must not quote
            if isinstance(event, protocol.BackendChosen):
                self._backend = event.backend
            if on_event is not None:
                on_event(event)
        self._reap()

    def _reap(self) -> None:
        """Wait for the process to exit, fail all pending requests, and record a crash of the backend."""
        try:
            code = self.child.wait(timeout=_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        error = EngineDiedError(self._death_message(code), code)
        with self._lock:
            self.error = error
            callbacks, self._callbacks = list(self._callbacks.values()), {}
        for on_event in callbacks:
            on_event(error)
        self.channel.close()
        if code in _BACKEND_CRASHES and self._backend and not self._is_closing:
            with contextlib.suppress(EdgechatError):  # the bundle may have been removed
                _record_crash(self._backend, describe_exit(code))

    def _death_message(self, code: int) -> str:
        if code == EXIT_VERSION_CHANGED:
            return UPGRADED_MESSAGE
        message = f"The engine process died: {describe_exit(code)}"
        if code == -KILL_SIGNAL:
            message += "; the system kills processes when memory runs out"
        lines = logs.last_lines(paths.log_file(), self._log_start)
        if lines:
            message += "\nIts last log lines:\n  " + "\n  ".join(lines)
        return message

    def stop(self) -> None:
        """Ask the process to exit; kill the process after two seconds."""
        self._is_closing = True
        self.channel.write(protocol.encode(protocol.Shutdown(id=0)))
        try:
            self.child.wait(timeout=_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class EngineClient:
    """Client of an engine that starts with the first request and restarts after a crash.

    A crash ends every pending request with EngineDiedError. The next request starts a new process, which loads the last
    model again.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._process: EngineProcess | None = None
        self._last_load: protocol.Load | None = None
        self.loaded: protocol.Loaded | None = None
        """The Loaded event of the current model; None before the first load and after a failed one."""
        self._is_closed = False
        self._lock = threading.Lock()
        self._restart_lock = threading.Lock()  # several threads may notice a crash at the same time

    def start(self) -> None:
        """Start the process before the first request needs it. Raises EngineDiedError after `close`."""
        with self._lock:
            if self._is_closed:
                raise EngineDiedError("The engine is closed. Restart edgechat.")
            if self._process is None or self._process.error is not None:
                self._process = EngineProcess()

    @property
    def pid(self) -> int | None:
        """Process id of the running engine; None if it is not running."""
        process = self._process
        return process.child.pid if process is not None and process.error is None else None

    @property
    def has_loaded_one_model(self) -> bool:
        """True if the process has loaded one model only, so that its peak memory is that of the model."""
        return self._process is not None and self._process.n_loads == 1

    def next_id(self) -> int:
        """Return a new request id."""
        return next(self._ids)

    def load(self, request: protocol.Load, on_event: OnEvent = _ignore) -> protocol.Loaded:
        """Load a model; `on_event` receives the progress events.

        If the engine crashes, the client tries once more in a new process, which may choose another backend. After the
        system killed the engine, the client does not try again. Raises the engine's error, or EngineDiedError.
        """
        self._last_load = None
        try:
            loaded = self._load_once(request, on_event)
        except EngineDiedError as error:
            if self._is_closed or error.code in (-KILL_SIGNAL, EXIT_VERSION_CHANGED):
                raise
            loaded = self._load_once(msgspec.structs.replace(request, id=self.next_id()), on_event)
        self._last_load = request
        return loaded

    def _load_once(self, request: protocol.Load, on_event: OnEvent) -> protocol.Loaded:
        self.start()
        self.loaded = None
        if self._process is not None:
            self._process.n_loads += 1
        self.loaded = self._call(request, protocol.Loaded, on_event)
        return self.loaded

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        """Yield the events of a request; the last one is RequestFinished.

        Restarts a dead engine first. Raises the engine's error, or EngineDiedError.
        """
        self.restart_if_dead()
        yield from self._events(request)

    def submit(self, request: protocol.Request, on_event: OnOutcome) -> None:
        """Send a request without waiting. Another thread calls `on_event` with each event, or with the final error.

        Raises EngineDiedError if the engine is not running; `restart_if_dead` restarts it.
        """
        process = self._process
        if process is None:
            raise EngineDiedError("The engine is not running. Load a model first.")
        process.send(request, lambda event: on_event(_error_of(event)))

    def probe_memory(self, request: protocol.ProbeMemory, on_event: OnEvent = _ignore) -> protocol.MemoryProbed:
        """Measure the size of llama.cpp's buffers. Raises the engine's error, or EngineDiedError."""
        self.start()
        return self._call(request, protocol.MemoryProbed, on_event)

    def list_devices(
        self, *, benchmark: bool, remeasure: bool = False, on_event: OnEvent = _ignore
    ) -> protocol.DevicesListed:
        """List GPUs and kernel speeds; `benchmark` measures missing speeds, which takes a few seconds."""
        self.start()
        request = protocol.ListDevices(id=self.next_id(), benchmark=benchmark, remeasure=remeasure)
        return self._call(request, protocol.DevicesListed, on_event)

    def list_quant_types(self, model: QuantModel, preset: int) -> list[int]:
        """List the ggml type number of each tensor under a preset; empty if llama.cpp cannot quantise the model."""
        self.start()
        request = protocol.ListQuantTypes(id=self.next_id(), model=model, preset=preset)
        return self._call(request, protocol.QuantTypesListed).types

    def tokenize(self, text: str, guard: str = "") -> list[int]:
        """Tokenise a rendered prompt; see `protocol.Generate.guard`."""
        self.restart_if_dead()
        request = protocol.Tokenize(id=self.next_id(), text=text, guard=guard)
        return self._call(request, protocol.Tokenized).tokens

    def stats(self) -> protocol.EngineStats:
        """Return the engine's memory use and step costs."""
        return self._call(protocol.Stats(id=self.next_id()), protocol.EngineStats)

    def cancel(self, target: int) -> None:
        """Cancel the request with this id, from any thread. A finished request is unaffected."""
        process = self._process
        if process is not None:
            process.channel.write(protocol.encode(protocol.Cancel(id=self.next_id(), target=target)))

    def close(self) -> None:
        """End the process and refuse further requests."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process is not None:
            process.stop()

    @property
    def needs_restart(self) -> bool:
        """True if the engine died after a successful load, or if reloading the model has failed since."""
        process = self._process
        return self._last_load is not None and (process is None or process.error is not None or self.loaded is None)

    def restart_if_dead(self) -> None:
        """If `needs_restart`, start a new process and load the last model again."""
        with self._restart_lock:
            if self.needs_restart and self._last_load is not None:
                self._load_once(msgspec.structs.replace(self._last_load, id=self.next_id()), _ignore)

    def _events(self, request: protocol.Request) -> Iterator[protocol.AnyEvent]:
        events: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
        self.submit(request, events.put)
        while True:
            event = events.get()
            if isinstance(event, EdgechatError):
                raise event
            yield event
            if isinstance(event, protocol.FINAL_EVENTS):
                return

    def _call(self, request: protocol.Request, result_type: type[T], on_event: OnEvent = _ignore) -> T:
        for event in self._events(request):
            if isinstance(event, result_type):
                return event
            on_event(event)
        raise EngineDiedError("The engine ended a request without a result. Send the request again.")


def _error_of(event: protocol.AnyEvent | EdgechatError) -> protocol.AnyEvent | EdgechatError:
    """Convert RequestFailed to the exception that it describes."""
    return error_class(event.error_type)(event.message) if isinstance(event, protocol.RequestFailed) else event


def _record_crash(backend: str, reason: str) -> None:
    bundle = find_bundle()
    cpu = read_cpu()
    for module in bundle.modules:
        if module.name == backend:
            verdicts.record_engine_crash(verdicts.verdict_key(bundle, module, cpu), backend, reason)
