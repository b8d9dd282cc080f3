"""llama.cpp context, which decodes tokens into sequences and computes logits."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgechat.errors import ComputeError, EngineError, PlanError
from edgechat.hardware.contention import Stopwatch, Timing
from edgechat.hardware.thread_count import AdaptiveThreadCount
from edgechat.planner.kv_memory import round_up_to_cells
from edgechat.planner.kv_types import split_kv_type
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import N_OUTPUTS
from edgechat.runtime import activity, attention_padding
from edgechat.runtime.activity import Activity
from edgechat.runtime.model import Model
from edgechat.runtime.native_handles import NativeHandles, ResizeError
from edgechat.runtime.sequences import SequenceMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray


_MAX_STEP_TOKENS: Final = 32
"""Maximum number of tokens in a batch with all logits that counts as a step; larger batches prefill with logprobs."""


class DecodeAborted(Exception):  # noqa: N818  (a requested stop, not an error)
    """Raised when `Context.abort` stops a decode. See `Context.decode` for the state of the sequence afterwards."""


class NoKvSlotError(Exception):
    """Raised when the context has too few free cells for a batch; all sequences are unchanged."""


class Context(SequenceMemory):
    """Owner of a llama_context, its thread pool and its abort flag, which `close` or garbage collection frees."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Create a context with the options of `plan`. Raises PlanError if llama.cpp fails.

        For recurrent models, the context stores `n_rs_seq` earlier states of each sequence, so that up to `n_rs_seq`
        tokens can be rolled back.
        """
        options, bindings = plan.options, model.bindings
        llama, native = bindings.llama, bindings.edgechat
        self._plan = plan
        self.max_n_ctx = round_up_to_cells(plan.max_n_ctx)
        """Length up to which the context may be resized, in tokens."""
        self._abort_flag = native.edgechat_abort_flag_new()
        self._is_aborted = False
        self._abort_callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        self._no_callback = llama.ggml_abort_callback()
        self.n_threads = plan.n_threads
        self._n_threads_batch = plan.n_threads_batch
        self._min_n_threads = min(plan.n_threads, plan.n_threads_batch)
        self._thread_count = AdaptiveThreadCount(plan.n_threads) if plan.adapts_n_threads else None
        self._is_cpu_bound = options.n_gpu_layers == 0
        self.kv_type, self.yarn_factor = options.kv_type, options.yarn_factor
        self._batch = llama.llama_batch_init(plan.n_batch, 0, 1)
        self._handles = NativeHandles(
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

    def _replace(self, n_ctx: int, data: mmap.mmap) -> str:
        """Open a context of `n_ctx` tokens with the sequences in `data`; return the reason for a failure, or ""."""
        self._close_context()
        try:
            self._attach(self._open(self.model, n_ctx))
        except PlanError as error:
            return str(error)
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

    # Decode

    def decode(self, tokens: Sequence[int], seq: int = 0, *, all_logits: bool = False) -> None:
        """Append at most `n_batch` tokens to `seq`, and compute the logits after the last token.

        With `all_logits`, append at most `max_outputs` tokens, and compute the logits after each token.

        Raises DecodeAborted after `abort`, NoKvSlotError if too few cells are free, and EngineError if llama.cpp fails.
        If an exception is raised, the sequence is unchanged, unless its memory cannot be truncated: then a failure or
        an abort within a batch of several tokens empties the sequence.
        """
        self._decode([(seq, token) for token in tokens], logits=all_logits)

    def decode_each(self, tokens: Mapping[int, int]) -> None:
        """Append one token to each sequence, and compute the logits after each token, in the order of `tokens`.

        `tokens` maps sequences to tokens. Raises the same exceptions as `decode`.
        """
        self._decode(list(tokens.items()), logits=True)

    def decode_chain(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Append at most 1 + `max_rollback` tokens to `seq`, and compute the logits after each token.

        Afterwards, `rollback` can remove rejected draft tokens. Raises the same exceptions as `decode`.
        """
        self._decode([(seq, token) for token in tokens], logits=True)

    def logits(self, index: int = -1) -> NDArray[Any]:
        """Return a view of llama.cpp's logits (float32 [n_vocab]) after the token at `index` of the last batch."""
        import numpy as np

        pointer = self.model.bindings.llama.llama_get_logits_ith(self.pointer, index)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def logprobs(self, token: int, index: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Return the logprob of `token`, and the `n_top` most likely tokens with their logprobs, before sampling.

        `index` is the position in the last batch whose logits are used.
        """
        import numpy as np

        logits = self.logits(index).astype(np.float64)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top_tokens = _find_largest(logprobs, n_top)
        return float(logprobs[token]), [(int(t), float(logprobs[t])) for t in top_tokens]

    @property
    def uses_all_threads(self) -> bool:
        """True if the last decode left no cores to other programs."""
        return self._current_thread_counts[0] == self.n_threads

    def start_stopwatch(self) -> Stopwatch:
        """Start a stopwatch for a decode of this context; it also detects disturbance by other programs."""
        return Stopwatch(self._min_n_threads, is_cpu_bound=self._is_cpu_bound)

    def time_decode(self, tokens: Sequence[int], seq: int | None = None) -> Timing:
        """Measure how long `decode_chain` takes for `tokens`, on a temporary copy of `seq`.

        Without `seq`, the tokens are decoded in an empty sequence. Raises the same exceptions as `decode`.
        """
        if seq is not None:
            self.copy(seq, self._scratch_seq, len(self._tokens[seq]))
        stopwatch = self.start_stopwatch()
        try:
            self._decode([(self._scratch_seq, token) for token in tokens], logits=True)
            self.synchronize()
            return stopwatch.stop()
        finally:
            self.drop(self._scratch_seq)

    def synchronize(self) -> None:
        """Wait until the last decode has finished, because GPU backends compute asynchronously."""
        with activity.during(Activity.COMPUTING):
            self.model.bindings.llama.llama_synchronize(self.pointer)

    @property
    def max_outputs(self) -> int:
        """Maximum number of tokens in a batch whose logits are computed."""
        return min(self.n_batch, N_OUTPUTS)

    @property
    def max_rollback(self) -> int:
        """Maximum number of tokens that `rollback` can remove."""
        if not self._has_state:
            return self.max_outputs - 1
        if not self.is_open:
            return 0
        return int(self.model.bindings.llama.llama_n_rs_seq(self.pointer))

    def _decode(self, entries: list[tuple[int, int]], *, logits: bool) -> None:
        """Decode (sequence, token) pairs, padded to a full attention tile if that is faster and cells are free."""
        start_lengths = {seq: len(self._tokens[seq]) for seq, _ in entries}
        n_padding = 0 if logits else self._count_padding(len(entries), max(start_lengths.values(), default=0))
        if n_padding:
            try:
                self._decode_batch(
                    [(self._scratch_seq, entries[0][1])] * n_padding + entries, start_lengths, logits=False
                )
            except NoKvSlotError:
                pass  # retry without padding
            else:
                return
            finally:
                self.drop(self._scratch_seq)
        self._decode_batch(entries, start_lengths, logits=logits)

    def _count_padding(self, count: int, depth: int) -> int:
        # llama.cpp computes attention in tiles only for keys and values in F16.
        if not self.can_truncate or self.n_batch < attention_padding.TILE_TOKENS or self.kv_type != "f16":
            return 0
        model = self.model
        return attention_padding.count_padding_tokens(
            count, depth, n_params=model.n_params, n_layer=model.n_layer, n_embd=model.n_embd
        )

    def _decode_batch(self, entries: list[tuple[int, int]], start_lengths: dict[int, int], *, logits: bool) -> None:
        """Decode one batch. If this fails, truncate each sequence to its length before the batch (`start_lengths`)."""
        batch, count = self._batch, len(entries)
        next_positions = {self._scratch_seq: 0} | start_lengths
        if not 0 < count <= self.n_batch:
            raise EngineError(f"Cannot decode {count} tokens in one batch: the limit is {self.n_batch}.")
        for i, (seq, token) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = next_positions[seq]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = logits
            next_positions[seq] += 1
        self._check_length(max(next_positions.values()))
        batch.logits[count - 1] = True
        batch.n_tokens = count
        self._adapt_thread_counts(is_step=len(start_lengths) == count or (logits and count <= _MAX_STEP_TOKENS))
        # A step of a recurrent model must not be aborted: it is short, and an abort would empty the whole sequence.
        code = self._run(batch, is_step=len(start_lengths) == count or (logits and self._has_state))
        if code == 0:
            for seq, token in entries:
                self._tokens[seq].append(token)
            self._uncommitted_seqs -= start_lengths.keys()
            return
        if code == 1:  # no slot for the batch; the context is unchanged (llama.h)
            raise NoKvSlotError
        for seq, start in start_lengths.items():
            self._truncate(seq, start)
        if code == 2:  # noqa: PLR2004  (llama.h: aborted)
            raise DecodeAborted
        position = max(start_lengths.values())
        raise ComputeError(f"llama.cpp failed to decode {count} tokens at position {position} (code {code}).")

    def _check_length(self, n_tokens: int) -> None:
        """Raise NoKvSlotError if a sequence of `n_tokens` needs a longer context, EngineError beyond the maximum."""
        self._check_open()
        if n_tokens > self.max_n_ctx:
            raise EngineError(f"Cannot decode {n_tokens} tokens: the context has at most {self.max_n_ctx} cells.")
        if n_tokens > self.n_ctx:
            raise NoKvSlotError

    def _adapt_thread_counts(self, *, is_step: bool) -> None:
        """Use fewer threads for a step while other programs are busy. Prefill is as fast with all threads."""
        if self._thread_count is None:
            return
        n_left = self.n_threads - self._thread_count.choose()
        counts = self.n_threads - n_left, max(1, self._n_threads_batch - n_left) if is_step else self._n_threads_batch
        if counts != self._current_thread_counts:
            self.model.bindings.llama.llama_set_n_threads(self.pointer, *counts)
            self._current_thread_counts = counts

    def _run(self, batch: object, *, is_step: bool) -> int:
        """Call llama_decode and return its code. If the memory cannot be truncated, a step cannot be aborted."""
        llama = self.model.bindings.llama
        if self._is_aborted:
            raise DecodeAborted
        if not is_step or self.can_truncate:
            return self._compute(batch)
        llama.llama_set_abort_callback(self.pointer, self._no_callback, None)
        try:
            return self._compute(batch)
        finally:
            llama.llama_set_abort_callback(self.pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))

    def _compute(self, batch: object) -> int:
        with activity.during(Activity.COMPUTING):
            code = int(self.model.bindings.llama.llama_decode(self.pointer, batch))
        if code == 0:
            activity.set_has_computed(True)
        return code


def _find_largest(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the indexes of the `count` largest values, largest first; equal values are in the order of their index."""
    import numpy as np

    if not 0 < count < len(values):
        return np.argsort(-values, kind="stable")[:count]
    smallest = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= smallest)
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]


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
    params.offload_kqv = params.op_offload = options.n_gpu_layers > 0
    params.kv_unified = True
    params.swa_full = False  # allocate cells only for the sliding window
    params.no_perf = True
    return params
