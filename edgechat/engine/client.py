"""Engine client: starts an engine process, sends requests to it, and restarts it after a crash.

All methods of `EngineClient` are thread-safe. One reader thread per engine process passes each event to the callback of
its request.
"""

from __future__ import annotations

import itertools
import math
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.death import Death
from edgechat.engine.hang_detector import TICK_S, HangDetector
from edgechat.engine.pipe import spawn_child
from edgechat.errors import BackendMismatchError, EdgechatError, EngineDiedError, find_error_class
from edgechat.hardware.memory import count_memory_kills, is_process_stopped
from edgechat.planner.requantize import QuantModel
from edgechat.process import EXIT_VERSION_CHANGED, KILL_SIGNAL
from edgechat.runtime import logs
from edgechat.runtime.activity import ActivityFile, ActivityState

EXIT_TIMEOUT_S: Final = 2.0
"""Time in which the engine process can save its caches before it exits."""
# Time after which an unanswered Cancel means that the engine cannot exit by itself either.
_CANCEL_TIMEOUT_S: Final = 0.3

T = TypeVar("T", bound=protocol.Event)
OnEvent = Callable[[protocol.AnyEvent], None]
OnOutcome = Callable[["protocol.AnyEvent | EdgechatError"], None]


def _ignore_event(event: protocol.AnyEvent) -> None:
    pass


class EngineProcess:
    """One engine process and its pending requests."""

    def __init__(self) -> None:
        log = logs.open_log()
        self._log_start = logs.size()
        self._activity_file = _create_activity_file()
        extra_fds = (self._activity_file.fd,) if self._activity_file is not None else ()
        try:
            self.child, self.channel = spawn_child(["_engine"], log or subprocess.DEVNULL, extra_fds)
        except EngineDiedError:
            if self._activity_file is not None:
                self._activity_file.close()
            raise
        finally:
            if log:
                log.close()
        self.n_loads = 0
        """Number of Load requests sent to this process."""
        self.error: EngineDiedError | None = None
        """Error with the cause of the exit; None while the process is running."""
        self.was_killed_for_memory = False
        """True if Linux killed the process because memory ran out."""
        self._backend = ""
        self._load: protocol.Load | None = None
        self._opened_path = ""
        self._is_stopping = False
        self._detector = HangDetector()
        self._hang_reason = ""
        self._n_memory_kills = count_memory_kills()
        self._callbacks: dict[int, OnOutcome] = {}
        self._cancelled_at: dict[int, float] = {}
        """Monotonic time of the first cancellation of each unfinished request that was cancelled."""
        self._lock = threading.Condition()
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for name, target in (
            ("engine-events", self._read_events), ("engine-requests", self._write_requests),
            ("engine-watchdog", self._watch),
        ):  # fmt: skip
            threading.Thread(target=target, name=name, daemon=True).start()

    def send(self, request: protocol.Request, on_outcome: OnOutcome) -> None:
        """Send a request. The reader thread calls `on_outcome` with each event, or with the error if the process dies.

        Raises EngineDiedError if the process has already died.
        """
        frame = protocol.encode(request)
        with self._lock:
            if self.error is not None:
                raise self.error
            self._callbacks[request.id] = on_outcome
            if isinstance(request, protocol.Load):
                self._load, self._opened_path = request, request.plan.model_path
                self.n_loads += 1
            elif isinstance(request, protocol.ProbeMemory):
                self._opened_path = request.model_path
            self._lock.notify()
        self._frames.put(frame)

    def cancel(self, request: protocol.Cancel) -> None:
        """Send a Cancel request. The engine is killed if it does not end its cancelled requests."""
        with self._lock:
            if request.target_id in self._callbacks:
                self._cancelled_at.setdefault(request.target_id, time.monotonic())
        self._frames.put(protocol.encode(request))

    def expect_end(self) -> None:
        """Expect the end of all requests in progress, as after `cancel`, without cancelling them."""
        with self._lock:
            for request_id in self._callbacks:
                self._cancelled_at.setdefault(request_id, time.monotonic())

    def _write_requests(self) -> None:
        """Write the frames on a thread of their own, because a write to an engine that hangs never returns."""
        while (frame := self._frames.get()) is not None:
            self.channel.write(frame)  # if the write fails, the reader thread reports that the engine died

    def _watch(self) -> None:
        """Kill the process if it hangs while requests are in progress."""
        while self.error is None:
            with self._lock:
                if not self._callbacks:
                    self._detector.reset()
                    self._lock.wait_for(lambda: self._callbacks or self.error is not None)
            time.sleep(TICK_S)
            with self._lock:
                all_cancelled = bool(self._callbacks) and self._callbacks.keys() <= self._cancelled_at.keys()
            reason = self._detector.tick(is_stopped=is_process_stopped(self.child.pid), all_cancelled=all_cancelled)
            if reason and self._callbacks:
                self._hang_reason = reason
                self.child.kill()
                return

    def _read_events(self) -> None:
        while (body := self.channel.read()) is not None:
            try:
                event = protocol.decode_event(body)
            except EdgechatError:
                self.child.kill()
                break
            self._detector.record_frame()
            with self._lock:
                is_final = isinstance(event, protocol.FINAL_EVENTS)
                on_outcome = self._callbacks.pop(event.id, None) if is_final else self._callbacks.get(event.id)
                if is_final:
                    self._cancelled_at.pop(event.id, None)
            if isinstance(event, protocol.RequestFinished) and event.finish_reason == "cancelled":
                # llama.cpp logs a cancelled decode as an error, which a later crash report must not quote.
                self._log_start = logs.size()
            if isinstance(event, protocol.BackendChosen):
                self._backend = event.backend
            if on_outcome is not None:
                on_outcome(event)
        self._reap()

    def _reap(self) -> None:
        """Wait for the process to exit, record a crash of the backend, and fail all pending requests."""
        try:
            exit_code = self.child.wait(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            exit_code = self.child.wait()
        state = ActivityState()
        if self._activity_file is not None:
            state = self._activity_file.read()
            self._activity_file.close()
        death = Death(
            exit_code=exit_code,
            state=state,
            backend=self._backend,
            load=self._load,
            opened_path=self._opened_path,
            log_start=self._log_start,
            hang_reason=self._hang_reason,
        )
        if not self._is_stopping:
            death.record_crash()  # before the requests fail, because the next engine process chooses another backend
        request_error = death.find_request_error()
        if exit_code == -KILL_SIGNAL and not self._is_stopping and not self._hang_reason:
            n_memory_kills = count_memory_kills()
            self.was_killed_for_memory = n_memory_kills is None or n_memory_kills != self._n_memory_kills
        with self._lock:
            self.error = death.find_error()
            self._lock.notify_all()
            callbacks, self._callbacks = list(self._callbacks.values()), {}
        for on_outcome in callbacks:
            on_outcome(request_error)
        self._frames.put(None)
        self.channel.close()

    def stop(self, timeout_s: float) -> None:
        """Ask the process to exit; kill it after `timeout_s`, or at once if it does not respond to a cancellation."""
        self._is_stopping = True
        self._frames.put(protocol.encode(protocol.Shutdown(id=0)))
        with self._lock:
            cancelled_at = min(self._cancelled_at.values(), default=math.inf)
        if time.monotonic() - cancelled_at > _CANCEL_TIMEOUT_S:
            timeout_s = 0
        try:
            self.child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class EngineClient:
    """Client that starts an engine process for the first request, and a new process after a crash.

    A crash ends every pending request with EngineDiedError. The next request starts a new process and loads the last
    model again.
    """

    def __init__(self) -> None:
        self._request_ids = itertools.count(1)
        self._process: EngineProcess | None = None
        self._last_load: protocol.Load | None = None
        self.model_properties: protocol.Loaded | None = None
        """Loaded event of the current model; None before the first load and after a failed load."""
        self._is_closed = False
        self._lock = threading.Lock()
        self._restart_lock = threading.Lock()  # several threads can notice a crash at the same time

    def start(self) -> None:
        """Start an engine process, unless one is running. Raises EngineDiedError after `close`."""
        with self._lock:
            if self._is_closed:
                raise EngineDiedError("The engine was closed. Restart edgechat.")
            if self._process is None or self._process.error is not None:
                self._process = EngineProcess()

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None if no engine process is running."""
        process = self._process
        return process.child.pid if process is not None and process.error is None else None

    @property
    def has_loaded_one_model(self) -> bool:
        """True if the engine process has loaded exactly one model, so that its peak memory belongs to that model."""
        return self._process is not None and self._process.n_loads == 1

    def take_memory_kill(self) -> bool:
        """Return whether Linux killed the engine because memory ran out. A later call returns False for this death."""
        process = self._process
        was_killed = process is not None and process.was_killed_for_memory
        if process is not None:
            process.was_killed_for_memory = False
        return was_killed

    def next_id(self) -> int:
        """Return a new request id."""
        return next(self._request_ids)

    def load(self, request: protocol.Load, on_event: OnEvent = _ignore_event) -> protocol.Loaded:
        """Load a model; `on_event` receives the progress events.

        If the engine crashes, the client retries once in a new process, which can choose another backend. The client
        does not retry if llama.cpp rejected the model, the system killed the engine, or edgechat was upgraded. Raises
        the error that the engine reports, ModelCrashError, PlanError or EngineDiedError.
        """
        self._last_load = None
        try:
            loaded_event = self._load_once(request, on_event)
        except EngineDiedError as error:
            if self._is_closed or error.code in (-KILL_SIGNAL, EXIT_VERSION_CHANGED):
                raise
            loaded_event = self._load_once(msgspec.structs.replace(request, id=self.next_id()), on_event)
        self._last_load = request
        return loaded_event

    def _load_once(self, request: protocol.Load, on_event: OnEvent) -> protocol.Loaded:
        self.start()
        self.model_properties = None
        try:
            self.model_properties = self._call(request, protocol.Loaded, on_event)
        except BackendMismatchError:
            self._replace_process()
            self.model_properties = self._call(
                msgspec.structs.replace(request, id=self.next_id()), protocol.Loaded, on_event
            )
        return self.model_properties

    def _replace_process(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.stop(EXIT_TIMEOUT_S)
        self.start()

    def generate(self, request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        """Restart the engine if it has died, send `request`, and yield its events; the last event is RequestFinished.

        Raises the error that the engine reports, or EngineDiedError.
        """
        self.restart_if_dead()
        yield from self._iterate_events(request)

    def submit(self, request: protocol.Request, on_outcome: OnOutcome) -> None:
        """Send a request without waiting. Another thread calls `on_outcome` with each event, or with the final error.

        Raises EngineDiedError if the engine is not running; `restart_if_dead` restarts it.
        """
        process = self._process
        if process is None:
            raise EngineDiedError("The engine is not running. Load a model first.")
        process.send(request, lambda outcome: on_outcome(_convert_failure(outcome)))

    def probe_memory(self, request: protocol.ProbeMemory, on_event: OnEvent = _ignore_event) -> protocol.MemoryProbed:
        """Measure the sizes of llama.cpp's buffers for a model file.

        Raises the error that the engine reports, ModelCrashError or EngineDiedError.
        """
        self.start()
        return self._call(request, protocol.MemoryProbed, on_event)

    def list_devices(
        self, *, benchmark: bool, remeasure: bool = False, on_event: OnEvent = _ignore_event
    ) -> protocol.DevicesListed:
        """Return the usable GPUs and the kernel speeds; `protocol.ListDevices` describes the arguments."""
        self.start()
        request = protocol.ListDevices(id=self.next_id(), benchmark=benchmark, remeasure=remeasure)
        return self._call(request, protocol.DevicesListed, on_event)

    def list_quant_types(self, model: QuantModel, preset: int) -> list[int]:
        """Return the ggml type of each tensor under a quantisation preset.

        The list is empty if llama.cpp cannot quantise the model.
        """
        self.start()
        request = protocol.ListQuantTypes(id=self.next_id(), model=model, preset=preset)
        return self._call(request, protocol.QuantTypesListed).ggml_types

    def tokenize(
        self, text: str, guard: str = "", *, max_tokens: int | None = None, cancellation: Cancellation | None = None
    ) -> list[int]:
        """Return the tokens of a rendered prompt; `protocol.Tokenize` describes the arguments.

        Raises ContextOverflowError after more than `max_tokens` tokens, RequestCancelledError after `cancellation`, and
        the errors of the engine.
        """
        self.restart_if_dead()
        request = protocol.Tokenize(id=self.next_id(), text=text, guard=guard, max_tokens=max_tokens)
        with (cancellation or Cancellation()).interrupting(lambda: self.cancel(request.id)):
            return self._call(request, protocol.Tokenized).tokens

    def stats(self) -> protocol.EngineStats:
        """Return the loaded model of the engine, its memory use and its step costs."""
        return self._call(protocol.Stats(id=self.next_id()), protocol.EngineStats)

    def cancel(self, target_id: int) -> None:
        """Cancel the request with the id `target_id`; do nothing if that request has finished."""
        process = self._process
        if process is not None:
            process.cancel(protocol.Cancel(id=self.next_id(), target_id=target_id))

    def expect_end(self) -> None:
        """Kill the engine process if one of the requests in progress has not ended 10 seconds after this call."""
        process = self._process
        if process is not None:
            process.expect_end()

    def close(self, timeout_s: float = EXIT_TIMEOUT_S) -> None:
        """Stop the engine process and refuse further requests. The process is killed after `timeout_s`."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process is not None:
            process.stop(timeout_s)

    @property
    def needs_restart(self) -> bool:
        """True if a model was loaded, but the engine has died since, or has failed to reload the model."""
        process = self._process
        return self._last_load is not None and (
            process is None or process.error is not None or self.model_properties is None
        )

    def restart_if_dead(self) -> None:
        """If `needs_restart`, start a new process and load the last model again."""
        with self._restart_lock:
            if self.needs_restart and self._last_load is not None:
                self._load_once(msgspec.structs.replace(self._last_load, id=self.next_id()), _ignore_event)

    def _iterate_events(self, request: protocol.Request) -> Iterator[protocol.AnyEvent]:
        events: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
        self.submit(request, events.put)
        while True:
            event = events.get()
            if isinstance(event, EdgechatError):
                raise event
            yield event
            if isinstance(event, protocol.FINAL_EVENTS):
                return

    def _call(self, request: protocol.Request, result_type: type[T], on_event: OnEvent = _ignore_event) -> T:
        for event in self._iterate_events(request):
            if isinstance(event, result_type):
                return event
            on_event(event)
        raise EngineDiedError("The engine ended a request without a result. Send the request again.")


def _convert_failure(outcome: protocol.AnyEvent | EdgechatError) -> protocol.AnyEvent | EdgechatError:
    """Return the exception that a RequestFailed event describes; return any other outcome unchanged."""
    if isinstance(outcome, protocol.RequestFailed):
        return find_error_class(outcome.error_type)(outcome.message)
    return outcome


def _create_activity_file() -> ActivityFile | None:
    """Create the activity file of an engine process; None if that fails, and crashes then have an unknown cause."""
    try:
        return ActivityFile()
    except OSError:
        return None
