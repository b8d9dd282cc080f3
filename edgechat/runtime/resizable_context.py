"""llama.cpp context that can be replaced by one of another length, together with the native objects around it."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from edgechat.errors import PlanError
from edgechat.planner.kv_memory import round_up_to_cells
from edgechat.planner.kv_types import split_kv_type
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import N_OUTPUTS, LoadOptions
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.model import Model
from edgechat.runtime.sequences import SequenceMemory

_Result = TypeVar("_Result")


class ResizeError(Exception):
    """Raised when a context cannot be opened with another length; its message is the reason."""

    def __init__(self, reason: str, *, lost_sequences: bool) -> None:
        """If `lost_sequences` is True, all sequences are empty; otherwise they and the context are unchanged."""
        super().__init__(reason)
        self.lost_sequences = lost_sequences


class DependentContext(Protocol):
    """Interface of contexts that use native objects of another context, their target, and must be freed before it."""

    @property
    def reads_target(self) -> bool:
        """True if the context reads the llama_context of the target, which can be replaced; else only its threads."""

    def free(self) -> None:
        """Free the context. A second call does nothing."""


class ResizableContext(SequenceMemory):
    """Owner of a llama_context, its thread pool and its abort flag, which `close` or garbage collection frees."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Open a context with the options of `plan`, and its initial length. Raises PlanError if llama.cpp fails."""
        options, bindings = plan.options, model.bindings
        llama, native = bindings.llama, bindings.edgechat
        self._plan = plan
        self.max_n_ctx = round_up_to_cells(plan.max_n_ctx)
        """Length up to which the context may be resized, in tokens."""
        self.n_threads = plan.n_threads
        self._n_threads_batch = plan.n_threads_batch
        self.kv_type, self.yarn_factor = options.kv_type, options.yarn_factor
        self._abort_flag = native.edgechat_abort_flag_new()
        self._is_aborted = False
        self._abort_callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        self._no_callback = llama.ggml_abort_callback()
        self._batch = llama.llama_batch_init(plan.n_batch, 0, 1)
        self._handles = _NativeHandles(
            llama, native, self._abort_flag, native.edgechat_threadpool_new(max(plan.n_threads, plan.n_threads_batch)),
            self._batch,
        )  # fmt: skip
        self._finalizer = weakref.finalize(self, self._handles.free)
        try:
            with activity.during(Activity.LOADING):
                pointer = self._open(model, plan.initial_n_ctx)
        except PlanError:
            self._finalizer()
            raise
        super().__init__(model, pointer, options.n_seqs)

    def _open(self, model: Model, n_ctx: int) -> Any:
        """Create an empty llama_context of `n_ctx` tokens and return its pointer. Raises PlanError if it fails."""
        bindings, plan = model.bindings, self._plan
        llama, handles = bindings.llama, self._handles
        options = msgspec.structs.replace(plan.options, n_ctx=n_ctx)
        params = _create_context_params(llama, msgspec.structs.replace(plan, options=options))
        bindings.log.take_errors()
        pointer = llama.llama_init_from_model(model.pointer, params)
        if not pointer:
            errors = bindings.log.take_errors()
            reason = errors[0] if errors else "out of memory"
            raise PlanError(f"Cannot create a context of {n_ctx} tokens: {reason}")
        handles.pointer = pointer
        if handles.thread_pool:
            bindings.edgechat.edgechat_threadpool_attach(handles.thread_pool, pointer)
        llama.llama_set_abort_callback(pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))
        self.n_ctx = int(llama.llama_n_ctx(pointer))
        self.n_batch = int(llama.llama_n_batch(pointer))
        self._current_thread_counts = plan.n_threads, plan.n_threads_batch
        return pointer

    def add_dependant(self, dependant: DependentContext) -> None:
        """Free `dependant` before the native objects that it uses."""
        self._handles.dependants = [d for d in self._handles.dependants if d is not dependant] + [dependant]

    def remove_dependant(self, dependant: DependentContext) -> None:
        """Forget a context of `add_dependant` that was freed."""
        self._handles.dependants = [d for d in self._handles.dependants if d is not dependant]

    def share_threads(self, pointer: Any) -> None:
        """Let the llama_context at `pointer` use the threads and the abort flag of this context."""
        bindings, handles = self.model.bindings, self._handles
        if handles.thread_pool:
            bindings.edgechat.edgechat_threadpool_attach(handles.thread_pool, pointer)
        bindings.llama.llama_set_abort_callback(pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))

    @property
    def thread_counts(self) -> tuple[int, int]:
        """Numbers of threads that the next decode uses for one token and for several."""
        return self._current_thread_counts

    @property
    def is_aborted(self) -> bool:
        """True from `abort` to `clear_abort`."""
        return self._is_aborted

    @property
    def options(self) -> LoadOptions:
        """Options with which the model was loaded."""
        return self._plan.options

    @property
    def is_resizable(self) -> bool:
        """True if the length of the context can change."""
        return self._plan.growth is not None

    def resize(self, n_ctx: int) -> None:
        """Replace the llama_context with one of `n_ctx` tokens that has the same sequences.

        The logits of the last batch are lost. Raises ResizeError if the larger context cannot be opened, or if the
        sequences do not fit in the smaller one; MemoryError and EngineError if the sequences cannot be saved, or if no
        context is open.
        """
        self._check_open()
        with activity.during(Activity.RESIZING):
            old_n_ctx, data = self.n_ctx, self._save_all()
            try:
                reason = self._replace(n_ctx, data)
                if not reason:
                    return
                lost_sequences = bool(self._replace(old_n_ctx, data))
            finally:
                data.close()
            if lost_sequences:
                self._close_context()
                self._clear_token_lists()
        raise ResizeError(reason, lost_sequences=lost_sequences)

    def keep_sequences(self, work: Callable[[], _Result]) -> _Result:
        """Run `work`, in which llama.cpp forgets which cells are in use; restore all sequences, and return the result.

        The logits of the last batch are lost. Raises MemoryError and EngineError if the sequences cannot be saved, and
        what `work` raises. If they cannot be restored, all sequences are empty, the context is closed, and EngineError
        is raised.
        """
        self._check_open()
        if not any(self._tokens):
            return work()
        data = self._save_all()
        try:
            try:
                return work()
            finally:
                self.model.bindings.llama.llama_memory_clear(self._memory, False)
                if not self._restore_all(data):
                    self._close_context()
                    self._clear_token_lists()
                    self._check_open()
        finally:
            data.close()

    def _replace(self, n_ctx: int, data: mmap.mmap) -> str:
        """Open a context of `n_ctx` tokens with the sequences in `data`; return the reason for a failure, or "".

        The cells of the new context take memory only when they are used, so that they and the copy of the sequences
        need no more memory than all cells.
        """
        native = self.model.bindings.edgechat
        self._close_context()
        native.edgechat_set_lazy_clear(1)
        try:
            self._attach(self._open(self.model, n_ctx))
        except PlanError as error:
            return str(error)
        finally:
            native.edgechat_set_lazy_clear(0)
        return "" if self._restore_all(data) else f"The sequences do not fit in a context of {n_ctx} tokens."

    def _close_context(self) -> None:
        self._attach(None)
        self._handles.free_context()

    def reopen(self) -> None:
        """Open a context again after the sequences were lost. Raises PlanError if there is too little memory."""
        with activity.during(Activity.RESIZING):
            self._attach(self._open(self.model, self._plan.initial_n_ctx))

    def close(self) -> None:
        """Free the context now. A second call does nothing."""
        self._finalizer()

    def abort(self) -> None:
        """Stop the current decode, or the next one if none is running. Can be called from any thread."""
        if self._finalizer.alive:
            self._is_aborted = True
            self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 1)

    def clear_abort(self) -> None:
        """Reset the abort flag, so that decoding works again after `abort`."""
        self._is_aborted = False
        self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 0)


def _create_context_params(llama: Any, plan: LoadPlan) -> Any:
    options = plan.options
    params = llama.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = min(plan.n_batch, options.n_ctx)
    params.n_ubatch = min(options.n_ubatch, options.n_ctx)
    params.n_seq_max = options.n_seqs + 1  # one more for the scratch sequence
    params.n_threads, params.n_threads_batch = plan.n_threads, plan.n_threads_batch
    params.n_outputs_max = max(N_OUTPUTS, options.n_seqs + 1)
    params.type_k, params.type_v = (
        getattr(llama, f"GGML_TYPE_{name.upper()}") for name in split_kv_type(options.kv_type)
    )
    if options.yarn_factor != 1.0:
        params.rope_scaling_type = llama.LLAMA_ROPE_SCALING_TYPE_YARN
        params.rope_freq_scale = 1.0 / options.yarn_factor
        params.yarn_orig_ctx = 0  # the training length in the model file
    params.n_rs_seq = options.n_rs_seq
    params.offload_kqv = params.op_offload = options.uses_gpu
    params.kv_unified = True
    params.swa_full = False  # allocate cells only for the sliding window
    params.no_perf = True
    return params


class _NativeHandles:
    """Native objects of a context. The llama_context can be replaced; the others exist as long as their owner."""

    def __init__(self, llama: Any, native: ctypes.CDLL, abort_flag: int, thread_pool: int, batch: object) -> None:
        self.pointer: Any = None
        self.thread_pool = thread_pool
        self.dependants: list[DependentContext] = []
        self._llama = llama
        self._native = native
        self._abort_flag = abort_flag
        self._batch = batch

    def free_context(self) -> None:
        """Free the llama_context, if there is one, and before it the contexts that read from it."""
        for dependant in self.dependants:
            if dependant.reads_target:
                dependant.free()
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._llama.llama_free(pointer)

    def free(self) -> None:
        """Free all objects in the order that llama.cpp requires: first the contexts, which point to the others."""
        for dependant in self.dependants:
            dependant.free()
        self.free_context()
        self._llama.llama_batch_free(self._batch)
        self._native.edgechat_threadpool_free(self.thread_pool)
        self._native.edgechat_abort_flag_free(self._abort_flag)
