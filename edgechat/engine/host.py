"""The engine process: `edgechat _engine READ WRITE`. Owns everything native.

The main thread works; a second one reads requests, so that Cancel reaches a running decode through the
abort flag, and so that the end of file (the client is gone, however it died) ends this process at once.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path

from edgechat.engine import protocol
from edgechat.engine.generation import Generation
from edgechat.engine.pipe import Channel, inherited
from edgechat.engine.prompts import tokenize_prompt
from edgechat.errors import EdgechatError, EngineError
from edgechat.hardware.memory import peak_rss_bytes
from edgechat.runtime import bindings, probe
from edgechat.runtime.bundle import find_bundle
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model

_REMEMBERED = 100


def main(arguments: list[str]) -> int:
    """Serve one client until it shuts the engine down or goes away."""
    go_first_when_memory_runs_out()
    Host(inherited(arguments)).serve()
    return 0


def go_first_when_memory_runs_out() -> None:
    """Let the kernel take this process before others: the conversation lives elsewhere."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        except OSError:
            pass  # not allowed in some containers, and only a preference


class Host:
    """Executes requests one after another; Cancel may overtake."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[tuple[protocol.AnyRequest, float]] = queue.SimpleQueue()
        self._context: Context | None = None
        self._backend = ""
        self._lock = threading.Lock()  # guards the three below, which the reader thread shares
        self._running: int | None = None
        self._cancelled: set[int] = set()
        self._load_cancelled = False

    def serve(self) -> None:
        """Work until Shutdown."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            request, arrived_s = self._requests.get()
            if isinstance(request, protocol.Shutdown):
                self._unload()
                return
            self._begin(request.id)
            try:
                self._send(self._execute(request, arrived_s))
            except EdgechatError as error:
                self._send(protocol.Failed(id=request.id, error=type(error).__name__, message=str(error)))
            except MemoryError:
                words = "the engine ran out of memory"
                self._send(protocol.Failed(id=request.id, error="PlanError", message=words))
            finally:
                self._end(request.id)

    def _read(self) -> None:
        while (body := self._channel.read()) is not None:
            try:
                request = protocol.decode_request(body)
            except EngineError:
                break  # a client that breaks the protocol is as good as gone
            if isinstance(request, protocol.Cancel):
                self._cancel(request.target)
            else:
                if isinstance(request, protocol.Shutdown):
                    self._stop_running()
                self._requests.put((request, time.monotonic()))
        # The client is gone. Nothing here is worth an orderly end: conversations are not kept in this process.
        os._exit(0)

    def _cancel(self, target: int) -> None:
        with self._lock:
            self._cancelled.add(target)
            running = self._running == target
        if running:
            self._stop_running()

    def _stop_running(self) -> None:
        with self._lock:
            self._load_cancelled = True
            if self._context is not None:
                self._context.abort()

    def _begin(self, request_id: int) -> None:
        with self._lock:
            self._running = request_id
            self._load_cancelled = request_id in self._cancelled
            if self._context is not None:
                self._context.clear_abort()
                if request_id in self._cancelled:
                    self._context.abort()

    def _end(self, request_id: int) -> None:
        with self._lock:
            self._running = None
            # Ids grow, but a later one may be executed first: only what is long past is forgotten.
            self._cancelled = {t for t in self._cancelled - {request_id} if t > request_id - _REMEMBERED}

    def _execute(self, request: protocol.AnyRequest, arrived_s: float) -> protocol.Event:
        if isinstance(request, protocol.Load):
            return self._load(request)
        context = self._context
        if context is None:
            raise EngineError("no model is loaded")
        if isinstance(request, protocol.Generate):
            prompt = request.tokens
            if prompt is None:
                prompt = tokenize_prompt(context.model, request.text, request.guard)
            check_tokens(prompt, context.model.n_vocab)
            return Generation(context, request, prompt, self._send, arrived_s).run()
        if isinstance(request, protocol.Tokenize):
            tokens = tokenize_prompt(context.model, request.text, request.guard)
            return protocol.Tokenized(id=request.id, tokens=tokens)
        return protocol.EngineStats(
            id=request.id,
            backend=self._backend,
            model=str(context.model.path),
            n_ctx=context.n_ctx,
            context_tokens=len(context.tokens),
            peak_rss_bytes=peak_rss_bytes(),
            memory=context.memory_breakdown(),
        )

    def _load(self, request: protocol.Load) -> protocol.Loaded:
        self._unload()
        bundle = find_bundle()
        module, _ = probe.choose(bundle, lambda words: self._send(protocol.BackendTesting(id=request.id, words=words)))
        self._backend = module.name
        self._send(protocol.BackendChosen(id=request.id, backend=module.name))
        native = bindings.load(bundle, module)
        started = time.monotonic()
        model = Model(
            native, Path(request.path),
            use_mmap=request.use_mmap, use_extra_bufts=request.use_extra_bufts, progress=self._progress(request.id),
        )  # fmt: skip
        context = Context(
            model, n_ctx=request.n_ctx, n_threads=request.n_threads,
            n_batch=request.n_batch, n_ubatch=request.n_ubatch,
        )  # fmt: skip
        with self._lock:
            self._context = context
        return protocol.Loaded(
            id=request.id,
            backend=module.name,
            n_ctx=context.n_ctx,
            n_ctx_train=model.n_ctx_train,
            n_threads=context.n_threads,
            n_params=model.n_params,
            size_bytes=model.size_bytes,
            chat_template=model.chat_template,
            bos=model.bos,
            eos=model.eos,
            control_tokens=list(model.control_tokens),
            can_rewind=context.can_rewind,
            load_s=time.monotonic() - started,
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
        with self._lock:
            context, self._context = self._context, None
        if context is not None:
            context.close()
            context.model.close()

    def _send(self, event: protocol.Event) -> None:
        self._channel.write(protocol.encode(event))  # if the client is gone, the reader ends the process


def check_tokens(tokens: list[int], n_vocab: int) -> None:
    """Refuse tokens that llama.cpp would read beyond its tables for."""
    wrong = [t for t in tokens if not 0 <= t < n_vocab]
    if wrong:
        raise EngineError(f"token {wrong[0]} is not in this model's vocabulary of {n_vocab}")
