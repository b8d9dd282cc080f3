"""Text model in the engine process, with its context, prefix cache, drafters and scheduler."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from edgechat.engine import protocol
from edgechat.engine.cache_identity import open_disk_tier
from edgechat.engine.cache_miss import CacheMissFinder
from edgechat.engine.computing_mark import ComputingMark
from edgechat.engine.context_sizing import ContextSizer
from edgechat.engine.drafting import DraftManager, OpenDrafter
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.failures import create_failure_event
from edgechat.engine.grammar_compiler import CompiledGrammar, GrammarCompiler
from edgechat.engine.idle_selftests import IdleSelftests
from edgechat.engine.reply_speeds import SpeedRecorder
from edgechat.engine.request import ActiveRequest, create_cancelled_event
from edgechat.engine.scheduler import Scheduler
from edgechat.engine.tokenization import TokenizationQueue, check_tokens, detokenize, iterate_prompt, iterate_request
from edgechat.errors import ComputeError, EdgechatError, EngineError, RequestCancelledError
from edgechat.hardware.contention import Stopwatch
from edgechat.hardware.memory import read_peak_rss_bytes
from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.throughput import StopTimer
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.context import Context
from edgechat.runtime.grammar import Grammar, compile_grammar
from edgechat.runtime.memory_report import read_memory_breakdown
from edgechat.runtime.model import Model
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.runtime.triggered_grammar import TriggeredGrammar, start_tool_grammar
from edgechat.speculation.controller import MAX_DRAFT_LENGTH

# Delay before the next idle task while the disk tier is writing.
_DISK_BUSY_DELAY_S: Final = 0.02
# Interval at which idle work checks whether another engine computes, and maximum time that it waits for other engines.
_OTHER_ENGINE_DELAY_S: Final = 0.5
_MAX_OTHER_ENGINE_S: Final = 120.0
# Number of requests whose reasoning was ended before they arrived, or after their end; older ones are discarded.
_MAX_EARLY_ENDS: Final = 100
# Duration of a step that only waits for a grammar. A request that arrives during such a step waits until the step ends.
_COMPILE_WAIT_S: Final = 0.005
# Maximum time for saving prefixes when the engine shuts down. Unsaved prefixes are computed again later.
_MAX_PREFIX_SAVE_S: Final = 1.5
# Minimum time for saving the draft corpus on shutdown, even if saving prefixes took its maximum time.
_MIN_CORPUS_SAVE_S: Final = 0.2


def _start_restore_timer() -> StopTimer:
    """Start a timer for restoring a segment, which waits for memory and disk rather than computing."""
    stopwatch = Stopwatch(1, is_cpu_bound=False)

    def stop() -> tuple[float, bool]:
        timing = stopwatch.stop()
        return timing.elapsed_s, timing.is_disturbed

    return stop


class TextModel(EngineModel):
    """Loaded text model, which executes several Generate requests at once, in steps."""

    def __init__(
        self,
        model: Model,
        load: protocol.Load,
        backend: str,
        send: Callable[[protocol.Event], None],
        on_finished: Callable[[int, protocol.Event], None],
        open_drafter: OpenDrafter | None = None,
    ) -> None:
        """Create the context and caches, and open the model drafter of the plan with `open_drafter`.

        `on_finished` receives the id and the final event of each Generate request and each Tokenize request. Raises
        PlanError if llama.cpp cannot create the context, and MemoryError.
        """
        plan = load.plan
        self._model = model
        self._backend = backend
        self._uses_gpu = plan.options.uses_gpu
        self._send = send
        self._on_finished = on_finished
        self._context = context = Context(model, plan)
        self._draft_manager = DraftManager(context, load, backend, open_drafter) if plan.speculation else None
        self._speed_recorder = SpeedRecorder(plan, backend)
        self._disk = open_disk_tier(load, context, find_bundle())
        may_write = load.prefix_dir and plan.prefix_disk_bytes > 0
        self._selftests = IdleSelftests() if plan.options.uses_gpu else None
        self._mark = ComputingMark(Path(load.prefix_dir) / "computing.lock" if may_write else None)
        self._idle_since: float | None = None
        """Monotonic time at which idle work began to wait for other engines; None while a reply is being generated."""
        self._cache = PrefixCache(
            context, ram_cap_bytes=plan.prefix_ram_bytes, disk=self._disk, start_timer=_start_restore_timer
        )
        self._cache_miss_finder = CacheMissFinder(model)
        manager = self._draft_manager
        free_drafter = manager.free_drafter_memory if manager is not None and manager.has_model else None
        self._sizer = ContextSizer(context, self._cache, plan.growth, send, free_drafter=free_drafter)
        if manager is not None:
            manager.has_memory = self._sizer.has_memory
        batch_speculator = manager.batch_speculator if manager is not None else None
        self._scheduler = Scheduler(context, self._cache, self._finish_request, self._sizer, batch_speculator)
        self._grammar_compiler = GrammarCompiler(partial(compile_grammar, model))
        self._compiling_requests: list[tuple[ActiveRequest, Future[CompiledGrammar]]] = []
        self._failure = ""
        """Message of the computation that failed on a GPU; "" if none has failed."""
        self._early_thinking_ends: deque[int] = deque(maxlen=_MAX_EARLY_ENDS)
        """Ids of requests whose reasoning was ended while no such request was running or waiting."""
        self._tokenizations = TokenizationQueue(context.max_n_ctx, model.n_ctx_train)
        self.n_ctx = context.max_n_ctx
        self.can_truncate = context.can_truncate
        self.max_draft = min(context.max_rollback, MAX_DRAFT_LENGTH) if self._draft_manager is not None else 0
        if self._draft_manager is not None:
            self.drafter_error = self._draft_manager.drafter_error
            if plan.drafter is not None and self._draft_manager.has_model:
                self.drafter = plan.drafter.kind

    @property
    def is_busy(self) -> bool:
        return not (self._scheduler.is_idle and self._tokenizations.is_empty)

    def execute(self, request: protocol.AnyRequest, arrived_at: float) -> protocol.Event | None:
        if isinstance(request, protocol.Generate):
            self._start_generate(request, arrived_at)
            return None
        if isinstance(request, protocol.Tokenize):
            parts = iterate_request(self._model, request, is_embedding=False)
            self._tokenizations.add_request(request, parts, self._on_finished)
            return None
        if isinstance(request, protocol.Detokenize):
            return detokenize(self._model, request)
        if isinstance(request, protocol.Stats):
            return self._create_stats(request.id)
        raise EngineError("This is a text model, which cannot compute embeddings. Load an embedding model.")

    def _start_generate(self, request: protocol.Generate, arrived_at: float) -> None:
        if request.tokens is not None:
            self._generate(request, request.tokens, arrived_at)
            return

        def fail(error: Exception) -> None:
            event: protocol.Event = create_failure_event(request.id, error)
            if isinstance(error, RequestCancelledError):
                event = create_cancelled_event(request.id)
            self._on_finished(request.id, event)

        parts = iterate_prompt(self._model, request.text, request.guard)
        self._tokenizations.add(
            request.id, parts, lambda tokens: self._generate(request, tokens, arrived_at), fail, self.n_ctx
        )

    def _generate(self, request: protocol.Generate, prompt: list[int], arrived_at: float) -> None:
        if self.has_failed:
            raise ComputeError(self._failure)
        check_tokens([*prompt, *(request.forced_tokens or ()), *request.logit_bias], self._model.n_vocab)
        make_speculator = self._draft_manager.open_request(request) if self._draft_manager is not None else None
        active_request = ActiveRequest(
            self._context, self._cache, request, prompt, self._send, arrived_at, make_speculator
        )  # fmt: skip
        if request.id in self._early_thinking_ends:
            active_request.end_thinking()
        self._mark.set(True)
        self._idle_since = None
        if self._selftests is not None:
            self._selftests.pause()
        if self._disk is not None:
            # The compute threads wait for each other at barriers: if the disk writer delays one thread, it delays all.
            self._disk.pause()
        if request.grammars:
            active_request.await_grammar()
            result = self._grammar_compiler.submit(request.grammars, request.visible_control_tokens)
            self._compiling_requests.append((active_request, result))
        self._cache_miss_finder.add(active_request)
        self._scheduler.add(active_request)

    def _finish_request(self, request: ActiveRequest, event: protocol.Event) -> None:
        for compiling in [c for c in self._compiling_requests if c[0] is request]:
            self._compiling_requests.remove(compiling)
            self._grammar_compiler.cancel(compiling[1])
        if self._draft_manager is not None:
            self._draft_manager.add_outputs(request.params, request.output_tokens)
        self._speed_recorder.add(request.speeds)
        # A model on the CPU stays in use, because another load would use the same CPU.
        if isinstance(event, protocol.RequestFailed) and event.error_type == ComputeError.__name__ and self._uses_gpu:
            self.has_failed, self._failure = True, event.message
            self._cache.drop_lost_sequences()  # the failed computation may have damaged all of them
        miss = self._cache_miss_finder.find(request, event)
        if isinstance(event, protocol.RequestFinished):
            drafter = self._draft_manager.describe_drafter() if self._draft_manager is not None else None
            event = msgspec.structs.replace(event, peak_n_ctx=self._sizer.peak_n_ctx, cache_miss=miss, drafter=drafter)
        self._on_finished(request.params.id, event)

    def _create_stats(self, request_id: int) -> protocol.EngineStats:
        return protocol.EngineStats(
            id=request_id,
            backend=self._backend,
            model=str(self._model.path),
            n_ctx=self.n_ctx,
            context_tokens=self._cache.live_tokens,
            peak_rss_bytes=read_peak_rss_bytes(),
            memory=read_memory_breakdown(self._context) if self._context.is_open else {},
            current_n_ctx=self._context.n_ctx,
            step_costs=self._draft_manager.step_costs() if self._draft_manager is not None else {},
            drafter=self._draft_manager.describe_drafter() if self._draft_manager is not None else None,
        )

    def step(self, cancelled_ids: set[int]) -> None:
        self._tokenizations.cancel(cancelled_ids)
        self._scheduler.cancel(cancelled_ids)
        self._set_grammars()
        self._tokenizations.step()
        if not self._scheduler.is_idle:
            self._scheduler.step()
        if self.has_failed:
            self._scheduler.fail_all(ComputeError(self._failure))

    def end_thinking(self, request_id: int) -> None:
        if not self._scheduler.end_thinking(request_id):
            self._early_thinking_ends.append(request_id)

    def _set_grammars(self) -> None:
        """Set the grammars that have been compiled; the prefill of their requests has begun and can now end."""
        if self._compiling_requests and self._scheduler.is_blocked and self._tokenizations.is_empty:
            wait([result for _, result in self._compiling_requests], _COMPILE_WAIT_S, "FIRST_COMPLETED")
        for request, result in [c for c in self._compiling_requests if c[1].done()]:
            self._compiling_requests.remove((request, result))
            try:
                request.set_grammar(self._start_grammar(request, result.result()))
            except (EdgechatError, MemoryError) as error:
                self._scheduler.fail(request, error)

    def _start_grammar(self, request: ActiveRequest, compiled: CompiledGrammar) -> Grammar | TriggeredGrammar:
        """Return the grammar of a request. Raises GrammarError."""
        if isinstance(compiled.source, ToolGrammar):
            return start_tool_grammar(
                self._model, compiled.grammar, compiled.source, request.params.visible_control_tokens
            )
        return compiled.grammar

    def idle_step(self, allow_abort: Callable[[bool], None]) -> float | None:
        if self._idle_since is None:
            self._mark.set(False)
            self._idle_since = time.monotonic()
        if self.has_failed:  # all idle work computes with damaged memory, or saves it
            return None
        # First, because other engines may need the memory for which they wait.
        sizing_delay_s = self._sizer.idle_step(time.monotonic() - self._idle_since)
        if time.monotonic() - self._idle_since < _MAX_OTHER_ENGINE_S and self._mark.is_set_by_others():
            return _OTHER_ENGINE_DELAY_S
        self._speed_recorder.save()
        if self._disk is not None:
            self._disk.resume()
        # Read before `idle_step` of the cache, which does nothing while the disk is busy: the write may end meanwhile.
        is_disk_busy = self._disk is not None and self._disk.is_busy
        if self._cache.idle_step():
            return 0.0
        if is_disk_busy:
            return _DISK_BUSY_DELAY_S
        if self._draft_manager is not None and self._draft_manager.idle_step(allow_abort):
            return 0.0
        test_delay_s = (
            self._selftests.step(time.monotonic() - self._idle_since) if self._selftests is not None else None
        )
        return min((d for d in (sizing_delay_s, test_delay_s) if d is not None), default=None)

    def cancel_sequences(self, request_id: int, indexes: Collection[int]) -> None:
        self._scheduler.cancel_sequences(request_id, indexes)

    def abort(self) -> None:
        self._context.abort()

    def clear_abort(self) -> None:
        self._context.clear_abort()

    def close(self) -> None:
        self._scheduler.cancel_all()
        self._grammar_compiler.close()
        self._speed_recorder.save()
        deadline = time.monotonic() + _MAX_PREFIX_SAVE_S
        try:
            if not self.has_failed:
                self._cache.finish(_MAX_PREFIX_SAVE_S)
            if self._draft_manager is not None and not self.has_failed:
                self._draft_manager.finish(max(deadline, time.monotonic() + _MIN_CORPUS_SAVE_S))
        except (EdgechatError, MemoryError, OSError) as error:
            print(f"Cannot save all caches: {error}", file=sys.stderr, flush=True)  # noqa: T201  (the engine's log)
        if self._selftests is not None:
            self._selftests.pause()
        self._mark.close()
        if self._draft_manager is not None:
            self._draft_manager.close()
        self._context.close()
        self._model.close()
