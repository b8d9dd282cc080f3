"""Engine process (`edgechat _engine [NAME] [ACTIVITY] READ WRITE`), which runs all native code.

The main thread executes the requests: Generate requests together, in decode steps, and all other requests one at a
time. Another thread reads the requests of each client, so that a Cancel request can abort a running decode. A private
engine has one client and ends with it. A resident engine has a NAME: further clients attach to it through a socket.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

from edgechat.engine import protocol
from edgechat.engine.client_connections import REQUEST_ID_BITS, ClientConnections
from edgechat.engine.embedding_model import EmbeddingModel
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.failures import create_failure_event
from edgechat.engine.heartbeat import HeartbeatThread
from edgechat.engine.inspector import ModelInspector
from edgechat.engine.pipe import open_inherited_channel, open_inherited_file
from edgechat.engine.resident_server import ResidentServer
from edgechat.engine.text_model import TextModel
from edgechat.errors import ComputeError, EdgechatError, EngineError, ModelFileError
from edgechat.process import EXIT_GPU_FAILED
from edgechat.runtime import activity
from edgechat.runtime.backends import gpu_probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.model import Model, OnLoadProgress
from edgechat.runtime.model_drafter import open_model_drafter

_N_PIPES: Final = 2
# Delay before idle work starts, so that no idle work runs between two requests of a busy client.
IDLE_DELAY_S: Final = 0.25
_PROGRESS_INTERVAL_S: Final = 0.1
# Types of requests that are executed between two decode steps; all other requests wait until no reply is being
# generated and no text tokenised.
_CONCURRENT_REQUEST_TYPES: Final = (
    protocol.Generate, protocol.Tokenize, protocol.Detokenize, protocol.Embed, protocol.Rerank,
    protocol.Stats,
)  # fmt: skip
# Number of later request IDs after which the ID of a cancelled request is deleted. A Cancel may arrive after its
# request has ended.
_MAX_CANCELLED_ID_AGE: Final = 100
# Maximum time for sending the last events before the engine ends because its GPU failed.
_FLUSH_TIMEOUT_S: Final = 2.0


def main(arguments: list[str]) -> int:
    """Run the engine process until its client sends Shutdown or exits; a resident engine ends later.

    The arguments are the name of a resident engine, the handle of the activity file, if there is one, and the handles
    of the two pipes.
    """
    prefer_oom_kill()
    resident = _open_resident_server(arguments.pop(0)) if not arguments[0].isdecimal() else None
    if len(arguments) > _N_PIPES:
        with contextlib.suppress(OSError, ValueError):  # without marks, crashes are not recorded
            activity.share(open_inherited_file(arguments[0]))
    server = EngineServer(is_resident=resident is not None)
    server.clients.add(open_inherited_channel(arguments))
    if resident is not None:
        resident.start(server.clients, server.shut_down)
    try:
        server.serve()
    except BaseException:
        activity.record_exit(1)
        raise
    if resident is not None:
        resident.close()
    return 0


def _open_resident_server(name: str) -> ResidentServer | None:
    """Return the lifetime of a resident engine; None if its files cannot be written, which makes it a private one."""
    try:
        return ResidentServer(name)
    except (EdgechatError, OSError) as error:
        print(f"Cannot share this engine: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        return None


def prefer_oom_kill() -> None:
    """Ask Linux to kill this process before the client, which holds the conversation, when memory runs out."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            pass  # some containers forbid this write; the engine works without it


class EngineServer:
    """Request loop of an engine process, with at most one loaded model."""

    def __init__(self, *, is_resident: bool = False) -> None:
        """Create the server without clients. Unless `is_resident`, the process exits when a client leaves."""
        self.clients = ClientConnections(self, is_shared=is_resident)
        self._is_resident = is_resident
        self._requests: queue.SimpleQueue[tuple[protocol.AnyRequest, float]] = queue.SimpleQueue()
        self._inspector = ModelInspector(self._send)
        self._lock = threading.Lock()  # guards the fields below, which are shared with the reader threads
        self._model = EngineModel()
        self._load_request: protocol.Load | None = None
        self._loaded_event: protocol.Loaded | None = None
        """Result of the last Load request; None while a model is being loaded, and without a model."""
        self._can_abort_idle_work = False
        self._running_ids: set[int] = set()
        self._cancelled_ids: set[int] = set()
        self._is_load_cancelled = False
        self._heartbeat = HeartbeatThread(self.clients.write)

    def serve(self) -> None:
        """Execute requests until Shutdown arrives."""
        self._heartbeat.start()
        while True:
            request, arrived_at = self._wait_for_request()
            if isinstance(request, protocol.Shutdown):
                self._unload()
                return
            if isinstance(request, protocol.CancelSequences):
                self._model.cancel_sequences(request.target_id, request.sequences)
                continue
            if isinstance(request, protocol.EndThinking):
                self._model.end_thinking(request.target_id)
                continue
            while self._model.is_busy and not isinstance(request, _CONCURRENT_REQUEST_TYPES):
                self._step()
            self._begin_request(request.id)
            try:
                event = self._execute(request, arrived_at)
            except (EdgechatError, MemoryError) as error:
                event = create_failure_event(request.id, error)
            if event is not None:
                self._end_request(request.id, event)

    def _wait_for_request(self) -> tuple[protocol.AnyRequest, float]:
        """Return the next request and its arrival time; until it arrives, run decode steps or idle work."""
        while self._model.is_busy:
            try:
                return self._requests.get_nowait()
            except queue.Empty:  # noqa: PERF203  (the usual case)
                self._step()
        if self._is_resident and self._model.has_failed:
            self._end_after_failure()
        delay_s: float | None = IDLE_DELAY_S
        while True:
            try:
                return self._requests.get(timeout=delay_s)
            except queue.Empty:  # noqa: PERF203  (the engine is idle)
                delay_s = self._idle_step()

    def _end_after_failure(self) -> None:
        """End a resident engine whose GPU failed, so that its memory is free when the clients load the model again.

        All requests have failed. The model is not freed, because the driver of a lost device may never return.
        """
        self.clients.begin_end()
        self.clients.flush(_FLUSH_TIMEOUT_S)
        activity.record_exit(EXIT_GPU_FAILED)
        os._exit(EXIT_GPU_FAILED)

    def _step(self) -> None:
        with self._lock:
            self._model.clear_abort()  # an earlier abort applied only to the requests that are cancelled below
            cancelled_ids = self._running_ids & self._cancelled_ids
        self._model.step(cancelled_ids)
        self._heartbeat.record_progress()

    def _idle_step(self) -> float | None:
        try:
            return self._model.idle_step(self._allow_idle_abort)
        except (EdgechatError, MemoryError, OSError) as error:
            print(f"Idle work failed: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
            return None

    def _allow_idle_abort(self, is_allowed: bool) -> None:  # noqa: FBT001  (a switch)
        with self._lock:
            self._can_abort_idle_work = is_allowed
            self._model.clear_abort()
            if is_allowed and not self._requests.empty():
                self._model.abort()

    # Reader threads

    def receive(self, request: protocol.AnyRequest) -> None:
        """Queue a request for the main thread, or apply a cancellation at once."""
        if isinstance(request, protocol.Cancel):
            self._cancel(request.target_id)
            return
        if isinstance(request, protocol.Shutdown):
            self.shut_down()
            return
        arrived_at = time.monotonic()
        if not isinstance(request, protocol.TARGETED_REQUESTS):
            self._heartbeat.add_request()
        self._queue_request(request, arrived_at)

    def shut_down(self) -> None:
        """Abort the running requests; the main thread then frees the model and returns from `serve`."""
        with self._lock:
            self._abort_running_requests()
        self._queue_request(protocol.Shutdown(id=0), time.monotonic())

    def remove_client(self, number: int, unfinished_ids: Collection[int]) -> None:
        """Cancel the unfinished requests of a client that has ended. A private engine exits."""
        if not self._is_resident:
            os._exit(0)  # the client stores the conversations, so this process has nothing to save
        for request_id in list(unfinished_ids):
            self._cancel(request_id)
        with self._lock:
            self._cancelled_ids = {
                i for i in self._cancelled_ids if i >> REQUEST_ID_BITS != number or i in unfinished_ids
            }

    def describe_model(self, request_id: int) -> protocol.Attached:
        """Return the loaded model, as the result of an Attach request; none if it has failed."""
        with self._lock:
            loaded = self._loaded_event if not self._model.has_failed else None
            load = self._load_request if loaded is not None else None
            return protocol.Attached(id=request_id, load=load, loaded=loaded)

    def _queue_request(self, request: protocol.AnyRequest, arrived_at: float) -> None:
        self._requests.put((request, arrived_at))
        with self._lock:
            if self._can_abort_idle_work:
                self._model.abort()

    def _cancel(self, target_id: int) -> None:
        with self._lock:
            self._cancelled_ids.add(target_id)
            self._model.cancel(target_id)
            # Abort the running decode only if all its requests are cancelled; otherwise the remaining requests would
            # lose work.
            if target_id in self._running_ids and self._running_ids <= self._cancelled_ids:
                self._abort_running_requests()

    def _abort_running_requests(self) -> None:
        """Abort the running load or decode. The caller must hold the lock."""
        self._is_load_cancelled = True
        self._model.abort()

    # Execution

    def _begin_request(self, request_id: int) -> None:
        self._heartbeat.record_progress()
        with self._lock:
            self._running_ids.add(request_id)
            self._is_load_cancelled = request_id in self._cancelled_ids

    def _end_request(self, request_id: int, event: protocol.Event) -> None:
        if isinstance(event, protocol.RequestFailed) and event.error_type == ComputeError.__name__:
            self._record_gpu_failure()
        self._send(event)
        self._heartbeat.remove_request()
        with self._lock:
            self._running_ids.discard(request_id)
            # Earlier requests can still be waiting in the queue, so only the ids of much older requests of the same
            # client expire.
            expired_ids = range(request_id >> REQUEST_ID_BITS << REQUEST_ID_BITS, request_id - _MAX_CANCELLED_ID_AGE)
            self._cancelled_ids.discard(request_id)
            self._cancelled_ids = {i for i in self._cancelled_ids if i not in expired_ids or i in self._running_ids}

    def _record_gpu_failure(self) -> None:
        """Record a failed computation, before a client that has not sent it loads the model on the same GPU again."""
        plan = self._load_request.plan if self._load_request is not None else None
        if plan is not None and plan.options.uses_gpu:
            self._model.has_failed = True
            with contextlib.suppress(EdgechatError):  # the bundle may have been removed
                gpu_probe.record_failure(find_bundle(), "a failed computation", plan.model_path, plan.gpu_module)

    def _execute(self, request: protocol.AnyRequest, arrived_at: float) -> protocol.Event | None:
        if isinstance(request, protocol.Load):
            return self._load(request)
        if isinstance(request, (protocol.ProbeMemory, protocol.ListDevices, protocol.ListQuantTypes)):
            return self._inspector.execute(request)
        return self._model.execute(request, arrived_at)

    def _load(self, request: protocol.Load) -> protocol.Loaded:
        """Load a model in place of the current one. Raises EngineError if other clients may use the current one."""
        if self._is_resident and self._loaded_event is not None:
            raise EngineError("The engine has a model loaded, which other programs may use. Start another engine.")
        self._unload()
        self._inspector.close_model()
        model_path = request.plan.model_path
        self._inspector.check_backend(request.id, model_path)
        devices = [gpu.device for gpu in request.plan.gpus if gpu.device]
        bindings = self._inspector.load_backend(request.id, model_path, devices)
        if request.plan.options.uses_gpu:
            self._inspector.check_devices(devices)
        backend, plan = self._inspector.backend, request.plan
        started_at = time.monotonic()
        model = Model(
            bindings, Path(model_path), plan.options, unused_ranges=request.unused_ranges,
            on_progress=self._make_progress_callback(request.id),
            load_mtp=plan.speculation and plan.drafter is not None and plan.drafter.kind == "mtp",
        )  # fmt: skip
        engine_model: EngineModel
        if model.is_embedding:
            engine_model = EmbeddingModel(model, plan, self._begin_embedding, self._end_request)
        else:
            open_drafter = partial(open_model_drafter, on_progress=partial(self._continue_load, request.id))
            engine_model = TextModel(model, request, backend, self._send, self._end_request, open_drafter)
        if self._is_load_cancelled:  # while the drafter was loaded, without which a model works
            engine_model.close()
            raise ModelFileError(f"Cannot load {model_path}: the load was cancelled")
        with self._lock:
            self._model = engine_model
        loaded_event = protocol.Loaded(
            id=request.id,
            backend=backend,
            n_ctx=engine_model.n_ctx,
            n_ctx_train=model.n_ctx_train,
            n_threads=plan.n_threads,
            n_params=model.n_params,
            n_vocab=model.n_vocab,
            size_bytes=model.size_bytes,
            chat_template=model.chat_template,
            bos=model.bos,
            eos=model.eos,
            control_tokens=list(model.control_tokens),
            can_truncate=engine_model.can_truncate,
            load_s=time.monotonic() - started_at,
            is_embedding=model.is_embedding,
            n_embd=engine_model.n_embd,
            n_labels=engine_model.n_labels,
            fim_tokens=_find_fim_tokens(model),
            max_draft=engine_model.max_draft,
            drafter=engine_model.drafter,
            drafter_error=engine_model.drafter_error,
        )
        with self._lock:
            self._load_request, self._loaded_event = request, loaded_event
        return loaded_event

    def _continue_load(self, request_id: int, _fraction: float) -> bool:
        """Record the progress of loading the drafter; return False if the load `request_id` was cancelled.

        A drafter that is woken later is not part of a load, which a cancelled reply could end.
        """
        self._heartbeat.record_progress()
        return not (self._is_load_cancelled and request_id in self._running_ids)

    def _make_progress_callback(self, request_id: int) -> OnLoadProgress:
        """Create a callback for llama.cpp that sends up to ten progress events per second and can cancel the load."""
        sent_at = 0.0

        def on_progress(fraction: float) -> bool:
            nonlocal sent_at
            self._heartbeat.record_progress()
            now = time.monotonic()
            if now - sent_at > _PROGRESS_INTERVAL_S:
                sent_at = now
                self._send(protocol.LoadProgressed(id=request_id, fraction=fraction))
            return not self._is_load_cancelled

        return on_progress

    def _begin_embedding(self, request_id: int) -> bool:
        """Record progress before the embedding of one text; return whether the request was cancelled."""
        self._heartbeat.record_progress()
        return request_id in self._cancelled_ids

    def _unload(self) -> None:
        with self._lock:
            model, self._model = self._model, EngineModel()
            self._load_request = self._loaded_event = None
        model.close()

    def _send(self, event: protocol.Event) -> None:
        """Send an event from the main thread, and record that this thread makes progress."""
        self._heartbeat.record_progress()
        self.clients.write(event)


def _find_fim_tokens(model: Model) -> protocol.FimTokens | None:
    """Return the tokens for infilling; None if the vocabulary lacks one of those that every prompt needs."""
    tokens = model.fim_tokens
    if not {"prefix", "suffix", "middle"} <= tokens.keys():
        return None
    return protocol.FimTokens(**tokens, bos_tokens=[model.bos_token] if model.adds_bos else [])
