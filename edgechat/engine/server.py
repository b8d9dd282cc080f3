"""The engine process: `edgechat _engine READ WRITE`. Owns everything native.

The main thread works, on all answers that are asked for by steps that they share; a second one reads requests, so that
Cancel reaches a running decode through the abort flag, and so that the end of file (the client is gone, however it
died) ends this process at once.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from edgechat.engine import protocol
from edgechat.engine.cache_identity import open_disk_tier
from edgechat.engine.drafting import Drafting
from edgechat.engine.inspector import ModelInspector
from edgechat.engine.pipe import Channel, open_inherited_channel
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.engine.tokenization import tokenize_prompt
from edgechat.errors import EdgechatError, EngineError
from edgechat.hardware.memory import peak_rss_bytes
from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime import bindings
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.context import Context
from edgechat.runtime.embedder import Embedder
from edgechat.runtime.memory_report import memory_breakdown
from edgechat.runtime.model import Model
from edgechat.speculation.controller import MAX_DRAFT

_REMEMBERED = 100
# Between two turns of a busy client nothing is saved.
IDLE_AFTER_S: Final = 0.25
_BUSY_POLL_S: Final = 0.02
# What is answered between the steps of answers.
_BESIDE: Final = (protocol.Generate, protocol.Tokenize, protocol.Stats)
# What a client waits for at the end; what is not saved by then is computed again some day.
_SAVE_AT_END_S: Final = 1.5
# Of that, for drafts, however long prefixes take.
_LEAST_SAVE_S: Final = 0.2


def main(arguments: list[str]) -> int:
    """Serve one client until it shuts the engine down or goes away."""
    go_first_when_memory_runs_out()
    EngineServer(open_inherited_channel(arguments)).serve()
    return 0


def go_first_when_memory_runs_out() -> None:
    """Let the kernel take this process before others: the conversation lives elsewhere."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            pass  # not allowed in some containers, and only a preference


class EngineServer:
    """Executes requests one after another, but for answers, which are made side by side; Cancel may overtake."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[tuple[protocol.AnyRequest, float]] = queue.SimpleQueue()
        self._context: Context | None = None
        self._embedder: Embedder | None = None
        self._cache: PrefixCache | None = None
        self._disk: DiskTier | None = None
        self._speculation: Drafting | None = None
        self._batching: Scheduler | None = None
        self._survey = ModelInspector(self._send)
        self._lock = threading.Lock()  # guards what is below, which the reader thread shares
        self._may_abort_idle_work = False
        self._running: set[int] = set()
        self._cancelled: set[int] = set()
        self._load_cancelled = False

    def serve(self) -> None:
        """Work until Shutdown."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            request, arrived_s = self._next()
            if isinstance(request, protocol.Shutdown):
                self._unload()
                return
            # What changes the model waits for the answers of this one, and so does all that came after it.
            while self._is_generating and not isinstance(request, _BESIDE):
                self._step()
            self._begin(request.id)
            try:
                event = self._execute(request, arrived_s)
            except EdgechatError as error:
                event = protocol.RequestFailed(id=request.id, error_type=type(error).__name__, message=str(error))
            except MemoryError:
                event = protocol.RequestFailed(
                    id=request.id, error_type="PlanError", message="the engine ran out of memory"
                )
            if event is not None:
                self._end(request.id, event)

    @property
    def _is_generating(self) -> bool:
        return self._batching is not None and not self._batching.is_idle

    def _next(self) -> tuple[protocol.AnyRequest, float]:
        """The next request; meanwhile answers grow, or what was computed is saved, and what was learned."""
        while self._is_generating:
            try:
                return self._requests.get_nowait()
            except queue.Empty:  # noqa: PERF203  (that is the ordinary case)
                self._step()
        wait_s: float | None = IDLE_AFTER_S if self._context is not None else None
        while True:
            try:
                return self._requests.get(timeout=wait_s)
            except queue.Empty:  # noqa: PERF203  (that is the idle case)
                wait_s = self._idle_step()

    def _step(self) -> None:
        if self._batching is None:
            return
        self._batching.cancel(self._take_cancelled())
        self._batching.step()

    def _idle_step(self) -> float | None:
        """Do a step of idle work; how long to wait before the next one, or None if there is nothing left."""
        if self._disk is not None:
            self._disk.resume()
        try:
            if self._cache is not None and self._cache.idle_step():
                return 0.0
            if self._disk is not None and self._disk.is_busy:
                return _BUSY_POLL_S
            if self._speculation is not None and self._speculation.idle_step(self._let_abort):
                return 0.0
        except (EdgechatError, MemoryError, OSError) as error:
            print(f"idle work failed: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        return None

    def _let_abort(self, may_abort: bool) -> None:  # noqa: FBT001  (a switch)
        """From now on a request that comes ends what is computed in idle time, or no longer."""
        with self._lock:
            self._may_abort_idle_work = may_abort
            if self._context is not None:
                self._context.clear_abort()
                if may_abort and not self._requests.empty():
                    self._context.abort()

    def _read(self) -> None:
        while (body := self._channel.read()) is not None:
            try:
                request = protocol.decode_request(body)
            except EngineError:
                break  # a client that breaks the protocol is as good as gone
            if isinstance(request, protocol.Cancel):
                self._cancel(request.target)
            else:
                arrived_s = time.monotonic()
                if isinstance(request, protocol.Shutdown):
                    with self._lock:
                        self._stop_running()
                self._requests.put((request, arrived_s))
                with self._lock:
                    if self._may_abort_idle_work and self._context is not None:
                        self._context.abort()
        # The client is gone. Nothing here is worth an orderly end: conversations are not kept in this process.
        os._exit(0)

    def _cancel(self, target: int) -> None:
        with self._lock:
            self._cancelled.add(target)
            # A decode is given up only if nobody wants any of it; else the others go on after it.
            if target in self._running and self._running <= self._cancelled:
                self._stop_running()

    def _stop_running(self) -> None:
        """With the lock held."""
        self._load_cancelled = True
        if self._context is not None:
            self._context.abort()

    def _begin(self, request_id: int) -> None:
        with self._lock:
            self._running.add(request_id)
            self._load_cancelled = request_id in self._cancelled

    def _take_cancelled(self) -> set[int]:
        """Those in work that are wanted no more; what they alone had stopped can go on."""
        with self._lock:
            if self._context is not None:
                self._context.clear_abort()
            return self._running & self._cancelled

    def _end(self, request_id: int, event: protocol.Event) -> None:
        self._send(event)
        with self._lock:
            self._running.discard(request_id)
            # Ids grow, but a later one may be executed first: only what is long past is forgotten.
            oldest = request_id - _REMEMBERED
            self._cancelled = {t for t in self._cancelled - {request_id} if t > oldest or t in self._running}

    def _execute(self, request: protocol.AnyRequest, arrived_s: float) -> protocol.Event | None:
        """What answers a request; None if that comes later."""
        if isinstance(request, protocol.Load):
            return self._load(request)
        if isinstance(request, (protocol.ProbeMemory, protocol.ListDevices, protocol.ListQuantTypes)):
            return self._survey.answer(request)
        if self._embedder is not None:
            return self._embed(self._embedder, request)
        context, cache = self._context, self._cache
        if context is None or cache is None:
            raise EngineError("no model is loaded")
        if isinstance(request, protocol.Embed):
            raise EngineError("this model makes texts, not vectors")
        if isinstance(request, protocol.Generate):
            self._generate(context, cache, request, arrived_s)
            return None
        if isinstance(request, protocol.Tokenize):
            tokens = tokenize_prompt(context.model, request.text, request.guard)
            return protocol.Tokenized(id=request.id, tokens=tokens)
        return protocol.EngineStats(
            id=request.id,
            backend=self._survey.backend,
            model=str(context.model.path),
            n_ctx=context.n_ctx,
            context_tokens=cache.live_tokens,
            peak_rss_bytes=peak_rss_bytes(),
            memory=memory_breakdown(context),
            step_costs=self._speculation.step_costs() if self._speculation is not None else {},
        )

    def _embed(self, embedder: Embedder, request: protocol.AnyRequest) -> protocol.Event:
        model = embedder.model
        if isinstance(request, protocol.Tokenize):
            tokens = model.tokenize(request.text, add_special=True, parse_special=False)
            return protocol.Tokenized(id=request.id, tokens=tokens)
        if not isinstance(request, protocol.Embed):
            raise EngineError("this model makes vectors, not texts")
        vectors = []
        for tokens in request.inputs:
            check_tokens(tokens, model.n_vocab)
            if request.id in self._cancelled:
                raise EngineError("the request for vectors was cancelled; ask again for them")
            vectors.append(embedder.embed(tokens))
        return protocol.Embedded(id=request.id, embeddings=vectors)

    def _generate(self, context: Context, cache: PrefixCache, request: protocol.Generate, arrived_s: float) -> None:
        prompt = request.tokens
        if prompt is None:
            prompt = tokenize_prompt(context.model, request.text, request.guard)
        check_tokens([*prompt, *(request.forced_tokens or ()), *request.logit_bias], context.model.n_vocab)
        speculator = self._speculation.speculator_for(request) if self._speculation is not None else None
        generation = ActiveRequest(context, cache, request, prompt, self._send, arrived_s, speculator)
        if self._disk is not None:
            self._disk.pause()  # threads that compute wait for each other: one that is held up holds up all
        if self._batching is not None:
            self._batching.add(generation)

    def _generated(self, generation: ActiveRequest, event: protocol.Event) -> None:
        if self._speculation is not None:
            self._speculation.add_outputs(generation.request, generation.output_tokens)
        self._end(generation.request.id, event)

    def _load(self, request: protocol.Load) -> protocol.Loaded:
        self._unload()
        self._survey.close_model()
        native = self._survey.load_backend(request.id)
        plan, options = request.plan, request.plan.options
        started = time.monotonic()
        model = Model(native, Path(plan.model_path), options, on_progress=self._progress(request.id))
        if model.is_embedding:
            self._embedder = Embedder(model, plan)
            return self._loaded(
                request, model, started, n_ctx=self._embedder.n_ctx, can_truncate=False, n_embd=self._embedder.n_embd
            )
        context = Context(model, plan)
        self._disk = open_disk_tier(request, context, find_bundle())
        self._cache = PrefixCache(context, ram_cap_bytes=plan.prefix_ram_bytes, disk=self._disk)
        self._speculation = Drafting(context, request, self._survey.backend) if plan.speculation else None
        self._batching = Scheduler(context, self._cache, self._generated)
        with self._lock:
            self._context = context
        max_draft = min(context.max_rollback, MAX_DRAFT) if self._speculation is not None else 0
        return self._loaded(
            request, model, started, n_ctx=context.n_ctx, can_truncate=context.can_truncate, max_draft=max_draft
        )

    def _loaded(self, request: protocol.Load, model: Model, started: float, **more: Any) -> protocol.Loaded:
        return protocol.Loaded(
            id=request.id,
            backend=self._survey.backend,
            n_ctx_train=model.n_ctx_train,
            n_threads=request.plan.n_threads,
            is_embedding=model.is_embedding,
            n_params=model.n_params,
            n_vocab=model.n_vocab,
            size_bytes=model.size_bytes,
            chat_template=model.chat_template,
            bos=model.bos,
            eos=model.eos,
            control_tokens=list(model.control_tokens),
            load_s=time.monotonic() - started,
            **more,
        )

    def _progress(self, request_id: int) -> bindings.Progress:
        sent_s = 0.0

        def progressed(fraction: float) -> bool:
            nonlocal sent_s
            now = time.monotonic()
            if now - sent_s > 0.1:  # noqa: PLR2004  (ten events a second are enough to see it move)
                sent_s = now
                self._send(protocol.LoadProgressed(id=request_id, fraction=fraction))
            return not self._load_cancelled

        return progressed

    def _unload(self) -> None:
        if self._batching is not None:
            self._batching.cancel_all()
        with self._lock:
            context, self._context = self._context, None
        embedder, self._embedder = self._embedder, None
        cache, self._cache, self._disk, self._batching = self._cache, None, None, None
        speculation, self._speculation = self._speculation, None
        until_s = time.monotonic() + _SAVE_AT_END_S
        try:
            if cache is not None:
                cache.finish(_SAVE_AT_END_S)
            if speculation is not None:
                speculation.finish(max(until_s, time.monotonic() + _LEAST_SAVE_S))
        except (EdgechatError, MemoryError, OSError) as error:
            print(f"not all was saved: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        for holder in (context, embedder):
            if holder is not None:
                holder.close()
                holder.model.close()

    def _send(self, event: protocol.Event) -> None:
        self._channel.write(protocol.encode(event))  # if the client is gone, the reader ends the process


def check_tokens(tokens: list[int], n_vocab: int) -> None:
    """Refuse tokens that llama.cpp would read beyond its tables for."""
    wrong = [t for t in tokens if not 0 <= t < n_vocab]
    if wrong:
        raise EngineError(f"token {wrong[0]} is not in this model's vocabulary of {n_vocab}")
