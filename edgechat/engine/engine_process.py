"""One engine process: sends requests to it, receives its events, and kills it if it hangs.

A reader thread passes each event to the callback of its request.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from edgechat.engine import frames, protocol
from edgechat.engine.engine_link import EngineLink
from edgechat.engine.hang_detector import TICK_S, HangDetector
from edgechat.errors import EdgechatError, EngineDiedError
from edgechat.hardware.memory import count_memory_kills, is_process_stopped
from edgechat.process import KILL_SIGNAL
from edgechat.runtime import logs
from edgechat.runtime.activity import Activity

EXIT_TIMEOUT_S: Final = 2.0
"""Time that the engine process has to save its caches before it exits."""
# Time after which an unanswered Cancel means that the engine cannot exit by itself either.
_CANCEL_TIMEOUT_S: Final = 0.3

_numbers: Final = itertools.count(1)

OnOutcome = Callable[["protocol.AnyEvent | EdgechatError"], None]


class EngineProcess:
    """One engine process and its pending requests."""

    def __init__(self, link: EngineLink) -> None:
        """Use the process behind `link`, which `stop` closes."""
        self.link = link
        self.number = next(_numbers)
        """Identity of the process among all that this program has used; the system reuses process ids."""
        self._log_start = logs.size()
        self.n_loads = 0
        """Number of Load requests sent to this process."""
        self.peak_n_ctx = 0
        """Largest context length that the engine has reported, even if that context could not be opened."""
        self.error: EngineDiedError | None = None
        """Error with the cause of the exit; None while the process is running."""
        self.was_killed_for_memory = False
        """True if Linux killed the process because memory ran out."""
        self._backend = ""
        self._load: protocol.Load | None = None
        """Last request that loads a model, also if another client has sent it."""
        self._opened_path = ""
        self._is_stopping = False
        self._n_clients = 1
        """Number of clients of the engine at its last heartbeat."""
        self._detector = HangDetector()
        self._hang_reason = ""
        self._has_gpu_failed = False
        """True if the process was killed after a request failed on the GPU."""
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
        frame = frames.encode(request)
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
        self._frames.put(frames.encode(request))

    def send_notice(self, request: protocol.CancelSequences | protocol.EndThinking) -> None:
        """Send a request that has no event."""
        self._frames.put(frames.encode(request))

    def expect_end(self) -> None:
        """Apply the time limit of `cancel` to all requests in progress, without cancelling them."""
        with self._lock:
            for request_id in self._callbacks:
                self._cancelled_at.setdefault(request_id, time.monotonic())

    def _write_requests(self) -> None:
        """Write the frames in a separate thread, because a write to an engine that hangs never returns."""
        while (frame := self._frames.get()) is not None:
            self.link.channel.write(frame)  # if the write fails, the reader thread reports that the engine died

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
            # With other clients, the engine may have to finish a long step of their requests first.
            reason = self._detector.tick(
                is_stopped=is_process_stopped(self.link.pid), all_cancelled=all_cancelled and self._n_clients <= 1,
                is_resizing=Activity.RESIZING in self.link.read_state().activities,
            )  # fmt: skip
            if reason and self._callbacks:
                self._hang_reason = reason
                self.link.kill()
                return

    def _read_events(self) -> None:
        while (body := self.link.channel.read()) is not None:
            try:
                event = frames.decode_event(body)
            except EdgechatError:
                self.link.kill()
                break
            self._detector.record_frame()
            if isinstance(event, protocol.Heartbeat):
                self._n_clients = event.n_clients
            with self._lock:
                is_final = isinstance(event, protocol.FINAL_EVENTS)
                on_outcome = self._callbacks.pop(event.id, None) if is_final else self._callbacks.get(event.id)
                if is_final:
                    self._cancelled_at.pop(event.id, None)
            self._record_event(event)
            if on_outcome is not None:
                on_outcome(event)
        self._reap()

    def _record_event(self, event: protocol.AnyEvent) -> None:
        """Save what an event says about the process, for a report of its death."""
        if isinstance(event, protocol.RequestFinished):
            self.peak_n_ctx = max(self.peak_n_ctx, event.peak_n_ctx)
        if isinstance(event, protocol.ContextResizeStarted):
            self.peak_n_ctx = max(self.peak_n_ctx, event.n_ctx)
        if isinstance(event, protocol.RequestFinished) and event.finish_reason == "cancelled":
            # llama.cpp logs a cancelled decode as an error, which a later crash report must not quote.
            self._log_start = logs.size()
        if isinstance(event, protocol.Attached) and event.load is not None:
            self._load = event.load  # without `_backend`: the client that started the engine records its crashes
        if isinstance(event, protocol.BackendChosen):
            self._backend = event.backend

    def _reap(self) -> None:
        """Wait for the process to exit, record a crash of the backend, and fail all pending requests."""
        if self._is_stopping and self.link.is_shared:
            self._fail_requests(EngineDiedError("The engine was closed. Restart edgechat."))
            return
        try:
            exit_code = self.link.wait(EXIT_TIMEOUT_S)
        except TimeoutError:
            if self.link.is_shared and not self._hang_reason:  # the engine may serve other clients
                self._fail_requests(EngineDiedError("The engine closed the connection. Send the request again."))
                return
            self.link.kill()
            exit_code = self.link.wait()
        from edgechat.engine.death import Death  # slow to import, and rarely needed

        state = self.link.read_state()
        death = Death(
            exit_code=exit_code,
            state=state,
            backend=self._backend,
            load=self._load,
            opened_path=self._opened_path,
            log_start=self._log_start,
            hang_reason=self._hang_reason,
            is_gpu_failure_known=self._has_gpu_failed,
        )
        if not self._is_stopping:
            death.record_crash()  # before the requests fail, because the next engine process chooses another backend
        request_error = death.find_request_error()
        if exit_code == -KILL_SIGNAL and not self._is_stopping and not self._hang_reason:
            n_memory_kills = count_memory_kills()
            self.was_killed_for_memory = n_memory_kills is None or n_memory_kills != self._n_memory_kills
        self._fail_requests(death.find_error(), request_error)

    def _fail_requests(self, error: EngineDiedError, request_error: EdgechatError | None = None) -> None:
        """Refuse further requests with `error`, and end the pending requests with `request_error`."""
        with self._lock:
            self.error = error
            self._lock.notify_all()
            callbacks, self._callbacks = list(self._callbacks.values()), {}
        for on_outcome in callbacks:
            on_outcome(request_error or error)
        self._frames.put(None)
        self.link.close()

    def end_after_failure(self, timeout_s: float) -> None:
        """Wait until a process whose GPU failed has ended and its memory is free.

        A shared one ends by itself, or is killed after `timeout_s`. A private one is killed at once: it can hang or
        crash when it frees the memory of a lost device, and what it would save may be wrong.
        """
        try:
            if not self.link.is_shared:
                timeout_s = 0
            self.link.wait(timeout_s)
        except TimeoutError:
            self._hang_reason = "its GPU failed" + (" and it did not end" if self.link.is_shared else "")
            self._has_gpu_failed = True
            self.link.kill()
            with contextlib.suppress(TimeoutError):
                self.link.wait(EXIT_TIMEOUT_S)
        with self._lock:
            self._lock.wait_for(lambda: self.error is not None, EXIT_TIMEOUT_S)

    def stop(self, timeout_s: float, *, shut_down: bool = False) -> None:
        """Ask a private process to exit; only leave a shared one, except with `shut_down`.

        The process is killed after `timeout_s`, or at once if it does not respond to a cancellation.
        """
        self._is_stopping = True
        if self.link.is_shared and not shut_down:
            self.link.channel.leave()
            return
        self._frames.put(frames.encode(protocol.Shutdown(id=0)))
        with self._lock:
            cancelled_at = min(self._cancelled_at.values(), default=math.inf)
        if time.monotonic() - cancelled_at > _CANCEL_TIMEOUT_S:
            timeout_s = 0
        try:
            self.link.wait(timeout_s)
        except TimeoutError:
            self.link.kill()
            self.link.wait()
