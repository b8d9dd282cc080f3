"""Engine client: starts an engine process, sends requests to it, and restarts it after a crash.

All methods of `EngineClient` are thread-safe.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import msgspec

from edgechat.engine import protocol, resident_client
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.engine_link import StartedEngine
from edgechat.engine.engine_process import EXIT_TIMEOUT_S, EngineProcess, OnOutcome
from edgechat.engine.resident_client import ShareRequest
from edgechat.errors import BackendMismatchError, EdgechatError, EngineDiedError, EngineError, find_error_class
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.requantize import QuantModel
from edgechat.process import EXIT_VERSION_CHANGED, KILL_SIGNAL

T = TypeVar("T", bound=protocol.Event)
OnEvent = Callable[[protocol.AnyEvent], None]


def _ignore_event(event: protocol.AnyEvent) -> None:
    pass


class EngineClient:
    """Client of an engine process, which it starts for the first request, and again after a crash.

    After `leave`, it shares the process with other clients: `attach` uses a running one.

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
        self._share: ShareRequest | None = None
        self._replace: Callable[[LoadPlan], object] | None = None
        self._lock = threading.Lock()
        # Several threads can notice a crash at the same time. The thread that loads the model again can call `leave`.
        self._restart_lock = threading.RLock()
        self._is_restarting = False

    def start(self) -> None:
        """Start an engine process, unless one is running. Raises EngineDiedError after `close`."""
        with self._lock:
            self.check_not_closed()
            if self._process is not None and self._process.error is None:
                return
            if self._share is None:
                self._process = EngineProcess(StartedEngine())
                return
            self._process = EngineProcess(resident_client.start(self._share))
            self._process.send(self._make_attach(self._share), lambda outcome: None)

    def _make_attach(self, share: ShareRequest) -> protocol.Attach:
        return protocol.Attach(id=self.next_id(), client=share.client, keep_alive_s=share.keep_alive_s)

    def leave(
        self,
        share: ShareRequest | None,
        replace: Callable[[LoadPlan], object] | None = None,
        timeout_s: float = EXIT_TIMEOUT_S,
    ) -> None:
        """Leave the current engine, and use one that `share` describes from now on: None for a private process.

        After the end of the engine, `restart_if_dead` calls `replace` with the plan of the last load, to load the model
        again; without `replace`, it repeats the load. A private process is killed after `timeout_s`. Waits for a
        restart in another thread.
        """
        with self._restart_lock, self._lock:
            process, self._process = self._process, None
            self._share, self._replace, self._last_load, self.model_properties = share, replace, None, None
        if process is not None:
            process.stop(timeout_s)

    def attach(self, accepts: Callable[[LoadPlan], bool] = lambda plan: True) -> protocol.Load | None:
        """Attach to a running engine with the right model; return the request that loaded it, None if there is none.

        `accepts` returns whether an engine with a load plan can be used. Raises LocalSocketError.
        """
        share = self._share
        if share is None:
            return None
        for link in resident_client.attach(share):
            process = EngineProcess(link)
            attached = _attach_to(process, self._make_attach(share))
            # An engine without a model is one whose starter has not loaded it.
            if attached is not None and attached.load and attached.loaded and accepts(attached.load.plan):
                with self._lock:
                    if not self._is_closed:
                        self._process, self._last_load = process, attached.load
                        self.model_properties = msgspec.structs.replace(attached.loaded, load_s=0.0)
                        return attached.load
            process.stop(EXIT_TIMEOUT_S)
        return None

    def end_failed_process(self, number: int, timeout_s: float) -> None:
        """Wait for the end of the process `number`, whose GPU failed, so that `restart_if_dead` replaces it.

        A shared process ends by itself, and is killed after `timeout_s`; a private one is killed at once. Does nothing
        if another process has replaced it: that one works.
        """
        process = self._process
        if process is not None and process.number == number:
            process.end_after_failure(timeout_s)

    def end_process(self) -> None:
        """Kill the private engine process, if there is one; the next load starts another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.stop(0)

    @property
    def died_on_gpu(self) -> bool:
        """True if the engine process has ended and the GPU may have caused it, as `EngineDiedError.died_on_gpu`."""
        process = self._process
        return process is not None and process.error is not None and process.error.died_on_gpu

    def check_not_closed(self) -> None:
        """Raise EngineDiedError after `close`."""
        if self._is_closed:
            raise EngineDiedError("The engine was closed. Restart edgechat.")

    @property
    def is_shared(self) -> bool:
        """True if other clients may use the engine process."""
        return self._share is not None

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None if no engine process is running."""
        process = self._process
        return process.link.pid if process is not None and process.error is None else None

    @property
    def has_loaded_one_model(self) -> bool:
        """True if the engine process has loaded exactly one model, so that its peak memory belongs to that model."""
        return self._process is not None and self._process.n_loads == 1

    @property
    def peak_n_ctx(self) -> int:
        """Largest context length that the engine process has reported; 0 before the first reply."""
        return self._process.peak_n_ctx if self._process is not None else 0

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
        if self._share is not None and self.pid is not None:
            resident_client.record_load(self.pid, loaded_event.n_ctx, request.plan.estimate.total)
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
            process.stop(EXIT_TIMEOUT_S, shut_down=True)
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
        process.send(request, lambda outcome: on_outcome(_convert_failure(outcome, process.number)))

    def probe_memory(self, request: protocol.ProbeMemory, on_event: OnEvent = _ignore_event) -> protocol.MemoryProbed:
        """Measure the sizes of llama.cpp's buffers for a model file.

        Raises the error that the engine reports, ModelCrashError or EngineDiedError.
        """
        self.start()
        return self._call(request, protocol.MemoryProbed, on_event)

    def list_devices(
        self, *, benchmark: bool, remeasure: bool = False, n_weights: dict[int, int] | None = None,
        n_bytes: int = 0, model_path: str = "", drafter_types: Collection[int] = (),
        on_event: OnEvent = _ignore_event,
    ) -> protocol.DevicesListed:  # fmt: skip
        """Return the usable GPUs and the kernel speeds; `protocol.ListDevices` describes the arguments."""
        self.start()
        request = protocol.ListDevices(
            id=self.next_id(),
            benchmark=benchmark,
            remeasure=remeasure,
            n_weights=n_weights or {},
            n_bytes=n_bytes,
            model_path=model_path,
            drafter_types=list(drafter_types),
        )
        return self._call(request, protocol.DevicesListed, on_event)

    def list_quant_types(self, model: QuantModel, preset: int) -> list[int]:
        """Return the ggml type of each tensor under a quantisation preset.

        The list is empty if llama.cpp cannot quantise the model.
        """
        self.start()
        request = protocol.ListQuantTypes(id=self.next_id(), model=model, preset=preset)
        return self._call(request, protocol.QuantTypesListed).ggml_types

    def tokenize(
        self, text: str, guard: str = "", *, max_tokens: int | None = None, cancellation: Cancellation | None = None,
        add_special: bool | None = None, parse_special: bool | None = None,
    ) -> list[int]:  # fmt: skip
        """Return the tokens of a text; `protocol.Tokenize` describes the arguments.

        Raises ContextOverflowError after more than `max_tokens` tokens, RequestCancelledError after `cancellation`, and
        the errors of the engine.
        """
        self.restart_if_dead()
        request = protocol.Tokenize(
            id=self.next_id(), text=text, guard=guard, max_tokens=max_tokens, add_special=add_special,
            parse_special=parse_special,
        )  # fmt: skip
        with (cancellation or Cancellation()).call_on_cancel(lambda: self.cancel(request.id)):
            return self._call(request, protocol.Tokenized).tokens

    def detokenize(self, tokens: list[int]) -> list[bytes]:
        """Return the UTF-8 bytes of each token. Raises the errors of the engine."""
        self.restart_if_dead()
        return self._call(protocol.Detokenize(id=self.next_id(), tokens=tokens), protocol.Detokenized).pieces

    def stats(self) -> protocol.EngineStats:
        """Return the loaded model of the engine, its memory use and its step costs."""
        return self._call(protocol.Stats(id=self.next_id()), protocol.EngineStats)

    def cancel(self, target_id: int) -> None:
        """Cancel the request with the id `target_id`; do nothing if that request has finished."""
        process = self._process
        if process is not None:
            process.cancel(protocol.Cancel(id=self.next_id(), target_id=target_id))

    def cancel_sequences(self, target_id: int, sequences: Collection[int]) -> None:
        """End single replies of the request `target_id`, which then end with the finish reason "cancelled".

        The other replies continue. Does nothing for replies that have ended or have no token yet.
        """
        process = self._process
        if process is not None:
            process.send_notice(
                protocol.CancelSequences(id=self.next_id(), target_id=target_id, sequences=sorted(sequences))
            )

    def end_thinking(self, target_id: int) -> None:
        """End the reasoning in the replies of the request `target_id`, so that the model answers now.

        If a reply has no reasoning yet, reasoning ends as soon as it starts. Does nothing if the request has finished
        or never arrives.
        """
        process = self._process
        if process is not None:
            process.send_notice(protocol.EndThinking(id=self.next_id(), target_id=target_id))

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
        """True if a model was loaded, but the engine has died since, is restarted, or has failed to load it again."""
        return self._is_restarting or self._has_lost_model

    @property
    def _has_lost_model(self) -> bool:
        process = self._process
        return self._last_load is not None and (
            process is None or process.error is not None or self.model_properties is None
        )

    def restart_if_dead(self) -> None:
        """If `needs_restart`, start a new process and load the last model again, or replace a shared engine.

        Waits for a restart in another thread. Raises the errors of the load.
        """
        with self._restart_lock:
            last_load = self._last_load
            if not self._has_lost_model or last_load is None:
                return
            if self._is_restarting:  # in this thread, which uses the model while it is loaded again
                raise EngineDiedError("The engine ended while the model was loaded again. Send the request again.")
            self._is_restarting = True
            self.model_properties = None  # if that fails, a new process can be running without a model
            try:
                self.check_not_closed()
                if self._replace is None:
                    self.load_again()
                else:
                    self._replace(last_load.plan)
            finally:
                self._last_load = self._last_load or last_load  # after a failure, the next request tries again
                self._is_restarting = False

    def load_again(self) -> None:
        """Repeat the last load, in a new process if the engine has died. Raises the same exceptions as `load`."""
        if self._last_load is not None:
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


def _attach_to(process: EngineProcess, request: protocol.Attach) -> protocol.Attached | None:
    """Send `request` to a resident engine and return the answer; None if the engine ends."""
    events: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
    try:
        process.send(request, events.put)
    except EngineDiedError:
        return None
    event = events.get()
    return event if isinstance(event, protocol.Attached) else None


def _convert_failure(
    outcome: protocol.AnyEvent | EdgechatError, process_number: int
) -> protocol.AnyEvent | EdgechatError:
    """Return the exception that a RequestFailed event describes; return any other outcome unchanged.

    An exception gets the number of the process that failed.
    """
    if isinstance(outcome, protocol.RequestFailed):
        outcome = find_error_class(outcome.error_type)(outcome.message)
    if isinstance(outcome, EngineError):
        outcome.process_number = process_number
    return outcome
