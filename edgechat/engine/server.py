"""Engine process (`edgechat _engine [ACTIVITY] READ WRITE`), which runs all native code.

The main thread executes the requests: Generate requests together, in decode steps, and all other requests one at a
time. A second thread reads the pipe, so that a Cancel request can abort a running decode. At the end of the pipe, the
second thread ends the process, because the client has exited.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Final

from edgechat.engine import frames, protocol
from edgechat.engine.embedding_model import EmbeddingModel
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.failures import create_failure_event
from edgechat.engine.heartbeat import HeartbeatThread
from edgechat.engine.inspector import ModelInspector
from edgechat.engine.pipe import Channel, open_inherited_channel, open_inherited_file
from edgechat.engine.text_model import TextModel
from edgechat.errors import EdgechatError, EngineError
from edgechat.runtime import activity
from edgechat.runtime.model import Model, OnLoadProgress

_N_PIPES: Final = 2
# Delay before idle work starts, so that no idle work runs between two requests of a busy client.
IDLE_DELAY_S: Final = 0.25
_PROGRESS_INTERVAL_S: Final = 0.1
# Types of requests that are executed between two decode steps; all other requests wait until no reply is being
# generated and no text tokenised.
_CONCURRENT_REQUEST_TYPES: Final = (protocol.Generate, protocol.Tokenize, protocol.Embed, protocol.Stats)
# Number of later request IDs after which the ID of a cancelled request is deleted. A Cancel may arrive after its
# request has ended.
_MAX_CANCELLED_ID_AGE: Final = 100


def main(arguments: list[str]) -> int:
    """Run the engine process until its client sends Shutdown or exits.

    The arguments are the handle of the activity file, if there is one, and the handles of the two pipes.
    """
    prefer_oom_kill()
    if len(arguments) > _N_PIPES:
        with contextlib.suppress(OSError, ValueError):  # without marks, crashes are not recorded
            activity.share(open_inherited_file(arguments[0]))
    EngineServer(open_inherited_channel(arguments)).serve()
    return 0


def prefer_oom_kill() -> None:
    """Ask Linux to kill this process before the client, which holds the conversation, when memory runs out."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            pass  # some containers forbid this write; the engine works without it


class EngineServer:
    """Request loop of an engine process, with at most one loaded model."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[tuple[protocol.AnyRequest, float]] = queue.SimpleQueue()
        self._inspector = ModelInspector(self._send)
        self._lock = threading.Lock()  # guards the fields below, which are shared with the reader thread
        self._model = EngineModel()
        self._can_abort_idle_work = False
        self._running_ids: set[int] = set()
        self._cancelled_ids: set[int] = set()
        self._is_load_cancelled = False
        self._heartbeat = HeartbeatThread(self._write)

    def serve(self) -> None:
        """Execute requests until Shutdown arrives."""
        threading.Thread(target=self._read_requests, name="requests", daemon=True).start()
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
        delay_s: float | None = IDLE_DELAY_S
        while True:
            try:
                return self._requests.get(timeout=delay_s)
            except queue.Empty:  # noqa: PERF203  (the engine is idle)
                delay_s = self._idle_step()

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

    # Reader thread

    def _read_requests(self) -> None:
        while (body := self._channel.read()) is not None:
            try:
                request = frames.decode_request(body)
            except EngineError:
                break  # treat an invalid message as if the client had exited
            if isinstance(request, protocol.Cancel):
                self._cancel(request.target_id)
                continue
            arrived_at = time.monotonic()
            if isinstance(request, protocol.Shutdown):
                with self._lock:
                    self._abort_running_requests()
            if not isinstance(request, (protocol.CancelSequences, protocol.EndThinking)):  # have no events
                self._heartbeat.add_request()
            self._requests.put((request, arrived_at))
            with self._lock:
                if self._can_abort_idle_work:
                    self._model.abort()
        # The client has exited. It stores the conversations, so this process has nothing to save.
        os._exit(0)

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
        self._send(event)
        self._heartbeat.remove_request()
        with self._lock:
            self._running_ids.discard(request_id)
            # Earlier requests can still be waiting in the queue, so only the ids of much older requests expire.
            last_expired_id = request_id - _MAX_CANCELLED_ID_AGE
            self._cancelled_ids.discard(request_id)
            self._cancelled_ids = {i for i in self._cancelled_ids if i > last_expired_id or i in self._running_ids}

    def _execute(self, request: protocol.AnyRequest, arrived_at: float) -> protocol.Event | None:
        if isinstance(request, protocol.Load):
            return self._load(request)
        if isinstance(request, (protocol.ProbeMemory, protocol.ListDevices, protocol.ListQuantTypes)):
            return self._inspector.execute(request)
        return self._model.execute(request, arrived_at)

    def _load(self, request: protocol.Load) -> protocol.Loaded:
        self._unload()
        self._inspector.close_model()
        model_path = request.plan.model_path
        self._inspector.check_backend(request.id, model_path)
        bindings = self._inspector.load_backend(request.id, model_path)
        backend, plan = self._inspector.backend, request.plan
        started_at = time.monotonic()
        model = Model(
            bindings, Path(model_path), plan.options, unused_ranges=request.unused_ranges,
            on_progress=self._make_progress_callback(request.id),
        )  # fmt: skip
        engine_model: EngineModel
        if model.is_embedding:
            engine_model = EmbeddingModel(model, plan, self._begin_embedding, self._end_request)
        else:
            engine_model = TextModel(model, request, backend, self._send, self._end_request)
        with self._lock:
            self._model = engine_model
        return protocol.Loaded(
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
            max_draft=engine_model.max_draft,
        )

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
        model.close()

    def _send(self, event: protocol.Event) -> None:
        """Send an event from the main thread, and record that this thread makes progress."""
        self._heartbeat.record_progress()
        self._write(event)

    def _write(self, event: protocol.Event) -> None:
        self._channel.write(frames.encode(event))  # after a failed write, the reader thread ends the process
