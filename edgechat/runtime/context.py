"""llama.cpp context: decodes tokens into sequences and returns logits."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgechat.errors import ComputeError, EngineError, PlanError
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import N_OUTPUTS
from edgechat.runtime import attention_padding
from edgechat.runtime.model import Model
from edgechat.runtime.sequences import SequenceMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DecodeAborted(Exception):  # noqa: N818  (a requested stop, not an error)
    """Raised when `Context.abort` stopped a decode; `Context.decode` documents the state of the sequence."""


class NoKvSlotError(Exception):
    """Raised when the context has too few free cells for a batch; all sequences are unchanged."""


class Context(SequenceMemory):
    """Owns a llama_context, its thread pool and its abort flag. Freed by `close`, or when no longer referenced."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Allocate `n_ctx` cells for `n_seqs` sequences as planned. Raises PlanError if llama.cpp fails.

        For recurrent models, `n_rs_seq` earlier states are kept per sequence: that number of tokens can be rolled back.
        """
        options, bindings = plan.options, model.bindings
        llama, native = bindings.llama, bindings.edgechat
        bindings.log.take_errors()
        pointer = llama.llama_init_from_model(model.pointer, _context_params(llama, plan))
        if not pointer:
            errors = bindings.log.take_errors()
            reason = errors[0] if errors else "out of memory"
            raise PlanError(f"Cannot create a context of {options.n_ctx} tokens: {reason}")
        super().__init__(model, pointer, options.n_seqs)
        self.n_ctx = int(llama.llama_n_ctx(pointer))
        self.n_batch = int(llama.llama_n_batch(pointer))
        self.n_threads = plan.n_threads
        self.kv_type = options.kv_type
        self._abort_flag = native.edgechat_abort_flag_new()
        self._is_aborted = False
        thread_pool = native.edgechat_threadpool_new(max(plan.n_threads, plan.n_threads_batch))
        if thread_pool:
            native.edgechat_threadpool_attach(thread_pool, pointer)
        self._abort_callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        self._no_callback = llama.ggml_abort_callback()
        llama.llama_set_abort_callback(pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))
        self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._finalizer = weakref.finalize(
            self, _free, llama, native, pointer=pointer, flag=self._abort_flag, pool=thread_pool, batch=self._batch
        )

    def close(self) -> None:
        """Free the context now. A second call does nothing."""
        self._finalizer()

    def abort(self) -> None:
        """Stop the running decode, or the next one. Safe to call from any thread."""
        if self._finalizer.alive:
            self._is_aborted = True
            self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 1)

    def clear_abort(self) -> None:
        """Allow decoding again after `abort`."""
        self._is_aborted = False
        self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 0)

    # Decode

    def decode(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Append at most `n_batch` tokens to `seq`; the logits of the last one are ready for a sampler afterwards.

        Raises DecodeAborted after `abort`, NoKvSlotError if other sequences use the cells, and EngineError if llama.cpp
        fails. The sequence is unchanged then, with one exception: if its memory cannot be truncated, a failure or an
        abort within a batch of several tokens empties the sequence.
        """
        self._decode([(seq, token) for token in tokens], logits=False)

    def decode_each(self, tokens: Mapping[int, int]) -> None:
        """Append one token to each sequence in `tokens`; the logits have the same order. Raises as `decode` does."""
        self._decode(list(tokens.items()), logits=True)

    def decode_chain(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Append at most 1 + `max_rollback` tokens and compute the logits of each.

        `rollback` removes rejected tokens. Raises the same exceptions as `decode`.
        """
        self._decode([(seq, token) for token in tokens], logits=True)

    def logits(self, index: int = -1) -> NDArray[Any]:
        """Return a view of llama.cpp's logits (float32 [n_vocab]) after the token at `index` of the last batch."""
        import numpy as np

        pointer = self.model.bindings.llama.llama_get_logits_ith(self.pointer, index)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def logprobs(self, token: int, index: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Return the logprob of `token` before sampling, and the `n_top` most likely tokens with their logprobs."""
        import numpy as np

        logits = self.logits(index).astype(np.float64)
        values = logits - logits.max()
        values -= np.log(np.exp(values).sum())
        top = np.argsort(-values, kind="stable")[:n_top]
        return float(values[token]), [(int(t), float(values[t])) for t in top]

    def time_decode(self, tokens: Sequence[int], seq: int | None = None) -> float:
        """Measure `decode_chain` of `tokens` appended to a scratch copy of `seq`, in seconds.

        Without `seq`, the scratch sequence is empty at first. Raises DecodeAborted, NoKvSlotError and EngineError.
        """
        if seq is not None:
            self.copy(seq, self._scratch_seq, len(self._tokens[seq]))
        started_at = time.monotonic()
        try:
            self._decode([(self._scratch_seq, token) for token in tokens], logits=True)
            self.synchronize()
            return time.monotonic() - started_at
        finally:
            self.drop(self._scratch_seq)

    def synchronize(self) -> None:
        """Wait for the last decode: GPU backends compute asynchronously."""
        self.model.bindings.llama.llama_synchronize(self.pointer)

    @cached_property
    def max_rollback(self) -> int:
        """Maximum number of tokens that `rollback` can remove."""
        if not self._has_state:
            return min(self.n_batch, N_OUTPUTS) - 1
        return int(self.model.bindings.llama.llama_n_rs_seq(self.pointer))

    def _decode(self, entries: list[tuple[int, int]], *, logits: bool) -> None:
        """Decode (sequence, token) pairs, padded to a full attention tile where that is faster and cells are free."""
        starts = {seq: len(self._tokens[seq]) for seq, _ in entries}
        padding = 0 if logits else self._padding(len(entries), max(starts.values(), default=0))
        if padding:
            try:
                self._decode_batch([(self._scratch_seq, entries[0][1])] * padding + entries, starts, logits=False)
            except NoKvSlotError:
                pass  # retry without padding
            else:
                return
            finally:
                self.drop(self._scratch_seq)
        self._decode_batch(entries, starts, logits=logits)

    def _padding(self, count: int, depth: int) -> int:
        if not self.can_truncate or self.n_batch < attention_padding.TILE_TOKENS:
            return 0
        model = self.model
        return attention_padding.padding_tokens(
            count, depth, n_params=model.n_params, n_layer=model.n_layer, n_embd=model.n_embd
        )

    def _decode_batch(self, entries: list[tuple[int, int]], starts: dict[int, int], *, logits: bool) -> None:
        """Decode one batch; `starts` maps each sequence to its length, and failures truncate it to that length."""
        batch, count = self._batch, len(entries)
        ends = {self._scratch_seq: 0} | starts
        if not 0 < count <= self.n_batch:
            raise EngineError(f"Cannot decode {count} tokens at once: a batch holds {self.n_batch}.")
        for i, (seq, token) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = ends[seq]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = logits
            ends[seq] += 1
        if max(ends.values()) > self.n_ctx:
            raise EngineError(f"Cannot append {count} tokens: the context has {self.n_ctx} cells.")
        batch.logits[count - 1] = True
        batch.n_tokens = count
        # One step is short, and aborting it would lose the whole sequence of a recurrent model.
        code = self._run(batch, is_step=len(starts) == count or (logits and self._has_state))
        if code == 0:
            for seq, token in entries:
                self._tokens[seq].append(token)
            self._uncommitted_seqs -= starts.keys()
            return
        if code == 1:  # llama.h: no slot for the batch, nothing was changed
            raise NoKvSlotError
        for seq, start in starts.items():
            self._truncate(seq, start)
        if code == 2:  # noqa: PLR2004  (llama.h: aborted)
            raise DecodeAborted
        raise ComputeError(f"llama.cpp failed to decode {count} tokens after {starts} of {self.n_ctx} (code {code}).")

    def _run(self, batch: object, *, is_step: bool) -> int:
        """Call llama_decode; a step is not abortable if the memory cannot be truncated."""
        llama = self.model.bindings.llama
        if self._is_aborted:
            raise DecodeAborted
        if not is_step or self.can_truncate:
            return int(llama.llama_decode(self.pointer, batch))
        llama.llama_set_abort_callback(self.pointer, self._no_callback, None)
        try:
            return int(llama.llama_decode(self.pointer, batch))
        finally:
            llama.llama_set_abort_callback(self.pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))


def _context_params(llama: Any, plan: LoadPlan) -> Any:
    options = plan.options
    params = llama.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = min(plan.n_batch, options.n_ctx)
    params.n_ubatch = min(options.n_ubatch, options.n_ctx)
    params.n_seq_max = options.n_seqs + 1  # one more for the scratch sequence
    params.n_threads, params.n_threads_batch = plan.n_threads, plan.n_threads_batch
    params.n_outputs_max = max(N_OUTPUTS, options.n_seqs + 1)
    params.type_k = params.type_v = llama.GGML_TYPE_Q8_0 if options.kv_type == "q8_0" else llama.GGML_TYPE_F16
    params.n_rs_seq = options.n_rs_seq
    params.offload_kqv = params.op_offload = options.n_gpu_layers > 0
    params.kv_unified = True
    params.swa_full = False  # allocate only the cells of the window
    params.no_perf = True
    return params


def _free(llama: Any, native: ctypes.CDLL, *, pointer: object, flag: int, pool: int, batch: object) -> None:
    """Free all objects in the order that llama.cpp requires: the context before the objects that it points to."""
    llama.llama_free(pointer)
    llama.llama_batch_free(batch)
    native.edgechat_threadpool_free(pool)
    native.edgechat_abort_flag_free(flag)
