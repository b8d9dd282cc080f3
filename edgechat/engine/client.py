"""The parent's side of an engine: starts it, talks to it, and survives it.

Threads: any number may call; one reader thread per engine process hands events to the requests they answer.
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

# In real use an abort is llama.cpp refusing a model, which is no fault of the backend.
_CRASHES: Final = CRASH_CODES - ABORT_CODES
_EXIT_S: Final = 2.0
KILLED: Final = getattr(signal, "SIGKILL", 9)
"""The signal that a process ends by when the system runs out of memory."""

T = TypeVar("T", bound=protocol.Event)
OnEvent = Callable[[protocol.AnyEvent], None]
OnOutcome = Callable[["protocol.AnyEvent | EdgechatError"], None]


class EngineProcess:
    """One engine process and the requests that wait for it."""

    def __init__(self) -> None:
        log = logs.open_log()
        self._log_start = logs.size()
        try:
            self.child, self.channel = spawn_child(["_engine"], log or subprocess.DEVNULL)
        finally:
            if log:
                log.close()
        self.backend = ""
        self.n_loads = 0
        self.died: EngineDiedError | None = None
        self.closing = False
        self._waiting: dict[int, OnOutcome] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="engine-events", daemon=True).start()

    def send(self, request: protocol.Request, on_event: OnOutcome) -> None:
        """Send a request; `hear` gets its events, or the error that ends it, in the thread that reads."""
        frame = protocol.encode(request)
        with self._lock:
            if self.died is not None:
                raise self.died
            self._waiting[request.id] = on_event
        self.channel.write(frame)  # if that fails, the reader notices the death

    def _read(self) -> None:
        while (body := self.channel.read()) is not None:
            try:
                event = protocol.decode_event(body)
            except EdgechatError:
                self.child.kill()
                break
            with self._lock:
                final = isinstance(event, protocol.FINAL_EVENTS)
                hear = self._waiting.pop(event.id, None) if final else self._waiting.get(event.id)
            if isinstance(event, protocol.RequestFinished) and event.finish_reason == "cancelled":
                self._log_start = logs.size()  # llama.cpp logs an abort as a failure, which nobody dies of
            if isinstance(event, protocol.BackendChosen):
                self.backend = event.backend
            if hear is not None:
                hear(event)
        self._reap()

    def _reap(self) -> None:
        try:
            code = self.child.wait(timeout=_EXIT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        with self._lock:
            self.died = EngineDiedError(self._obituary(code), code)
            waiting, self._waiting = list(self._waiting.values()), {}
        for hear in waiting:
            hear(self.died)
        self.channel.close()
        if code in _CRASHES and self.backend and not self.closing:
            with contextlib.suppress(EdgechatError):  # the bundle may be gone by now
                _record_crash(self.backend, describe_exit(code))

    def _obituary(self, code: int) -> str:
        if code == EXIT_VERSION_CHANGED:
            return UPGRADED_MESSAGE
        words = f"the engine process died by {describe_exit(code)}"
        if code == -KILLED:
            words += ": something killed it, often the system when memory runs out"
        lines = logs.last_lines(paths.log_file(), self._log_start)
        if lines:
            words += "\nits last log lines:\n  " + "\n  ".join(lines)
        return words

    def stop(self) -> None:
        """End the process, kindly at first."""
        self.closing = True
        self.channel.write(protocol.encode(protocol.Shutdown(id=0)))
        try:
            self.child.wait(timeout=_EXIT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class EngineClient:
    """An engine that is there when it is needed: started at the first request, and again after a death.

    After a death every pending request ends with EngineDiedError. The next one starts a fresh engine, which
    loads the last model again.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._process: EngineProcess | None = None
        self._load: protocol.Load | None = None
        self.loaded: protocol.Loaded | None = None
        """What the engine said of the loaded model; None before the first load."""
        self._closed = False
        self._lock = threading.Lock()
        self._reviving = threading.Lock()  # several may find it dead at once

    def start(self) -> None:
        """Start the process, so that it is up when the first request comes. Raises EngineDiedError after `close`."""
        with self._lock:
            if self._closed:
                raise EngineDiedError("the engine was closed")
            if self._process is None or self._process.died is not None:
                self._process = EngineProcess()

    @property
    def pid(self) -> int | None:
        """The process, while it lives."""
        process = self._process
        return process.child.pid if process is not None and process.died is None else None

    @property
    def has_loaded_one_model(self) -> bool:
        """True if all that the process ever took, it took for the model that it has."""
        return self._process is not None and self._process.n_loads == 1

    def next_id(self) -> int:
        """A number for a request."""
        return next(self._ids)

    def load(self, request: protocol.Load, on_event: OnEvent = lambda event: None) -> protocol.Loaded:
        """Load a model; `listen` gets the events on the way.

        An engine that dies on it is started once more (its backend may be to blame, and another one takes
        its place), unless it was killed. Raises what the engine reports, or EngineDiedError.
        """
        self._load = None
        try:
            loaded = self._load_once(request, on_event)
        except EngineDiedError as error:
            if self._closed or error.code in (-KILLED, EXIT_VERSION_CHANGED):
                raise
            loaded = self._load_once(msgspec.structs.replace(request, id=self.next_id()), on_event)
        self._load = request
        return loaded

    def _load_once(self, request: protocol.Load, on_event: OnEvent) -> protocol.Loaded:
        self.start()
        self.loaded = None
        if self._process is not None:
            self._process.n_loads += 1
        self.loaded = self._final(request, protocol.Loaded, on_event)
        return self.loaded

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        """Events of an answer, the last of which is TurnFinished.

        Starts a fresh engine if the last one died. Raises what the engine reports, or EngineDiedError.
        """
        self.restart_if_dead()
        yield from self._events(request)

    def submit(self, request: protocol.Request, on_event: OnOutcome) -> None:
        """Send a request and return; `hear` gets its events in another thread, the last of them final or an error.

        Raises EngineDiedError if there is no engine: `revive` makes one.
        """
        process = self._process
        if process is None:
            raise EngineDiedError("the engine is not running")
        process.send(request, lambda event: on_event(_error_of(event)))

    def probe_memory(
        self, request: protocol.ProbeMemory, on_event: OnEvent = lambda event: None
    ) -> protocol.MemoryProbed:
        """How large llama.cpp's buffers would be. Raises what the engine reports, or EngineDiedError."""
        self.start()
        return self._final(request, protocol.MemoryProbed, on_event)

    def list_devices(
        self, *, benchmark: bool, remeasure: bool = False, on_event: OnEvent = lambda event: None
    ) -> protocol.DevicesListed:
        """What there is to compute with; with `measure` how fast it is, which takes seconds the first time."""
        self.start()
        request = protocol.ListDevices(id=self.next_id(), benchmark=benchmark, remeasure=remeasure)
        return self._final(request, protocol.DevicesListed, on_event)

    def list_quant_types(self, model: QuantModel, preset: int) -> list[int]:
        """Ggml's numbers of the types that tensors would have; empty if llama.cpp has no rules for such a model."""
        self.start()
        request = protocol.ListQuantTypes(id=self.next_id(), model=model, preset=preset)
        return self._final(request, protocol.QuantTypesListed).types

    def tokenize(self, text: str, guard: str = "") -> list[int]:
        """Tokens of a rendered prompt."""
        self.restart_if_dead()
        request = protocol.Tokenize(id=self.next_id(), text=text, guard=guard)
        return self._final(request, protocol.Tokenized).tokens

    def stats(self) -> protocol.EngineStats:
        """What the engine holds."""
        return self._final(protocol.Stats(id=self.next_id()), protocol.EngineStats)

    def cancel(self, target: int) -> None:
        """Stop the request with this id; from any thread. Nothing happens if it has ended."""
        process = self._process
        if process is not None:
            process.channel.write(protocol.encode(protocol.Cancel(id=self.next_id(), target=target)))

    def close(self) -> None:
        """End the process, whatever it is doing; there will be no other."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.stop()

    @property
    def needs_restart(self) -> bool:
        """True if an engine had a model and died, also if the model could not be loaded again since."""
        process = self._process
        return self._load is not None and (process is None or process.died is not None or self.loaded is None)

    def restart_if_dead(self) -> None:
        """Start a fresh engine with the last model, if there was one and it died."""
        with self._reviving:
            if self.needs_restart and self._load is not None:
                self._load_once(msgspec.structs.replace(self._load, id=self.next_id()), lambda event: None)

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

    def _final(self, request: protocol.Request, kind: type[T], on_event: OnEvent = lambda event: None) -> T:
        for event in self._events(request):
            if isinstance(event, kind):
                return event
            on_event(event)
        raise EngineDiedError("the engine ended a request without an answer")


def _error_of(event: protocol.AnyEvent | EdgechatError) -> protocol.AnyEvent | EdgechatError:
    return error_class(event.error_type)(event.message) if isinstance(event, protocol.RequestFailed) else event


def _record_crash(backend: str, how: str) -> None:
    bundle = find_bundle()
    cpu = read_cpu()
    for module in bundle.modules:
        if module.name == backend:
            verdicts.record_engine_crash(verdicts.verdict_key(bundle, module, cpu), backend, how)
