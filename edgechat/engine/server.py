"""The engine process, `edgechat _engine READ WRITE`: all native code runs in it.

The main thread executes requests. It generates for several requests at once, in steps, and executes all other requests
one after another. A second thread reads the pipe, so that Cancel can abort a running decode, and the end of the pipe
(which means that the client has exited) ends this process at once.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Final

from edgechat.engine import protocol
from edgechat.engine.embedding_model import EmbeddingModel
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.inspector import ModelInspector
from edgechat.engine.pipe import Channel, open_inherited_channel
from edgechat.engine.text_model import TextModel
from edgechat.errors import EdgechatError, EngineError
from edgechat.runtime.model import Model, OnLoadProgress

# Idle work starts after this delay, so that no idle work runs between two requests of a busy client.
IDLE_DELAY_S: Final = 0.25
_PROGRESS_INTERVAL_S: Final = 0.1
# Requests that can be executed between two steps of a generation; all other requests wait for its end.
_CONCURRENT_REQUESTS: Final = (protocol.Generate, protocol.Tokenize, protocol.Stats)
# A Cancel can arrive after its request has ended; ids of cancelled requests are deleted after this many later ids.
_CANCEL_HISTORY: Final = 100


def main(arguments: list[str]) -> int:
    """Serve one client until it sends Shutdown or exits."""
    prefer_oom_kill()
    EngineServer(open_inherited_channel(arguments)).serve()
    return 0


def prefer_oom_kill() -> None:
    """Ask Linux to kill this process first when memory runs out: the client holds the conversation."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            pass  # some containers forbid this write; the engine works without it


class EngineServer:
    """The request loop of an engine process. It holds one loaded model or none."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[tuple[protocol.AnyRequest, float]] = queue.SimpleQueue()
        self._inspector = ModelInspector(self._send)
        self._lock = threading.Lock()  # guards the fields below, which the reader thread shares
        self._model = EngineModel()
        self._can_abort_idle_work = False
        self._running_ids: set[int] = set()
        self._cancelled_ids: set[int] = set()
        self._is_load_cancelled = False

    def serve(self) -> None:
        """Execute requests until Shutdown."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            request, arrived_at = self._next()
            if isinstance(request, protocol.Shutdown):
                self._unload()
                return
            while self._model.is_generating and not isinstance(request, _CONCURRENT_REQUESTS):
                self._step()
            self._begin(request.id)
            try:
                event = self._execute(request, arrived_at)
            except (EdgechatError, MemoryError) as error:
                event = protocol.failure(request.id, error)
            if event is not None:
                self._end(request.id, event)

    def _next(self) -> tuple[protocol.AnyRequest, float]:
        """Wait for the next request; meanwhile, run steps of the generation or idle work."""
        while self._model.is_generating:
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
            self._model.clear_abort()  # the abort concerns only the requests cancelled below
            cancelled_ids = self._running_ids & self._cancelled_ids
        self._model.step(cancelled_ids)

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

    def _read(self) -> None:
        while (body := self._channel.read()) is not None:
            try:
                request = protocol.decode_request(body)
            except EngineError:
                break  # a client that sends an invalid message is treated like one that has exited
            if isinstance(request, protocol.Cancel):
                self._cancel(request.target)
                continue
            arrived_at = time.monotonic()
            if isinstance(request, protocol.Shutdown):
                with self._lock:
                    self._abort_running()
            self._requests.put((request, arrived_at))
            with self._lock:
                if self._can_abort_idle_work:
                    self._model.abort()
        # The client has exited. It stores the conversations, so this process has nothing to save.
        os._exit(0)

    def _cancel(self, target: int) -> None:
        with self._lock:
            self._cancelled_ids.add(target)
            # Abort the running decode only if all its requests are cancelled: otherwise the others would lose work.
            if target in self._running_ids and self._running_ids <= self._cancelled_ids:
                self._abort_running()

    def _abort_running(self) -> None:
        """Abort the running load or decode. The caller must hold the lock."""
        self._is_load_cancelled = True
        self._model.abort()

    # Execution

    def _begin(self, request_id: int) -> None:
        with self._lock:
            self._running_ids.add(request_id)
            self._is_load_cancelled = request_id in self._cancelled_ids

    def _end(self, request_id: int, event: protocol.Event) -> None:
        self._send(event)
        with self._lock:
            self._running_ids.discard(request_id)
            # Ids increase, but requests can be executed out of order: keep recent ids of cancelled requests.
            oldest = request_id - _CANCEL_HISTORY
            self._cancelled_ids.discard(request_id)
            self._cancelled_ids = {i for i in self._cancelled_ids if i > oldest or i in self._running_ids}

    def _execute(self, request: protocol.AnyRequest, arrived_at: float) -> protocol.Event | None:
        if isinstance(request, protocol.Load):
            return self._load(request)
        if isinstance(request, (protocol.ProbeMemory, protocol.ListDevices, protocol.ListQuantTypes)):
            return self._inspector.execute(request)
        return self._model.execute(request, arrived_at)

    def _load(self, request: protocol.Load) -> protocol.Loaded:
        self._unload()
        self._inspector.close_model()
        native = self._inspector.load_backend(request.id)
        backend, plan = self._inspector.backend, request.plan
        started_at = time.monotonic()
        model = Model(native, Path(plan.model_path), plan.options, on_progress=self._progress_callback(request.id))
        engine_model: EngineModel
        if model.is_embedding:
            engine_model = EmbeddingModel(model, plan, lambda request_id: request_id in self._cancelled_ids)
        else:
            engine_model = TextModel(model, request, backend, self._send, self._end)
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

    def _progress_callback(self, request_id: int) -> OnLoadProgress:
        """Create llama.cpp's progress callback, which sends up to ten events per second and can cancel the load."""
        sent_at = 0.0

        def on_progress(fraction: float) -> bool:
            nonlocal sent_at
            now = time.monotonic()
            if now - sent_at > _PROGRESS_INTERVAL_S:
                sent_at = now
                self._send(protocol.LoadProgressed(id=request_id, fraction=fraction))
            return not self._is_load_cancelled

        return on_progress

    def _unload(self) -> None:
        with self._lock:
            model, self._model = self._model, EngineModel()
        model.close()

    def _send(self, event: protocol.Event) -> None:
        self._channel.write(protocol.encode(event))  # after a failed write, the reader thread ends the process
