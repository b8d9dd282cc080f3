"""A context: the tokens a model has seen, their KV cells, and the next token's logits."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgechat.errors import ComputeError, EngineError, PlanError
from edgechat.planner.memory import N_OUTPUTS
from edgechat.planner.plan import LoadPlan
from edgechat.runtime import attention_padding
from edgechat.runtime.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DecodeAborted(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """A decode was stopped by the abort flag; the context is back where it was before it."""


class NoKvSlotError(Exception):
    """The cells are full; nothing was changed."""


class Context:
    """Owns a llama_context, its thread pool and its abort flag; holds sequences of tokens that share cells.

    `tokens` always says exactly what the cells of a sequence hold, also after a failed or aborted decode.
    """

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Allocate what a plan says: cells for `n_ctx` tokens in `n_seqs` sequences. Raises PlanError if llama.cpp cannot.

        Where memory is a state, `n_rs_seq` more of it are kept for each sequence, so that as many tokens can be undone.
        """
        options = plan.options
        self.model = model
        self.n_seqs = options.n_seqs
        self._tokens: list[list[int]] = [[] for _ in range(self.n_seqs + 1)]
        self._scratch = self.n_seqs  # where parts of sequences are put together and taken apart
        self._gap_ends = [0] * (self.n_seqs + 1)
        self._unsealed: set[int] = set()
        bindings = model.bindings
        llama = bindings.llama
        params = llama.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_batch = min(plan.n_batch, options.n_ctx)
        params.n_ubatch = min(options.n_ubatch, options.n_ctx)
        params.n_seq_max = self.n_seqs + 1
        params.n_threads, params.n_threads_batch = plan.n_threads, plan.n_threads_batch
        params.n_outputs_max = max(N_OUTPUTS, self.n_seqs + 1)
        params.type_k = params.type_v = llama.GGML_TYPE_Q8_0 if options.kv_type == "q8_0" else llama.GGML_TYPE_F16
        params.n_rs_seq = options.n_rs_seq
        params.offload_kqv = params.op_offload = options.n_gpu_layers > 0
        params.kv_unified = True
        params.swa_full = False  # a window's cells are for the window
        params.no_perf = True
        bindings.log.take_errors()
        pointer = llama.llama_init_from_model(model.pointer, params)
        if not pointer:
            errors = bindings.log.take_errors()
            raise PlanError(
                f"a context of {options.n_ctx} tokens cannot be made: {errors[0] if errors else 'out of memory'}"
            )
        self.pointer = pointer
        self.n_ctx = int(llama.llama_n_ctx(pointer))
        self.n_batch = int(llama.llama_n_batch(pointer))
        self.n_threads = plan.n_threads
        self.kv_type = options.kv_type
        self._memory = llama.llama_get_memory(pointer)
        self._has_state = bool(
            llama.llama_model_is_recurrent(model.pointer) or llama.llama_model_is_hybrid(model.pointer)
        )
        self._has_cells = not llama.llama_model_is_recurrent(model.pointer)
        self._window = int(llama.llama_model_n_swa(model.pointer))
        native = bindings.edgechat
        self._flag = native.edgechat_abort_flag_new()
        self._aborted = False
        self._pool = native.edgechat_threadpool_new(max(plan.n_threads, plan.n_threads_batch))
        if self._pool:
            native.edgechat_threadpool_attach(self._pool, pointer)
        self._callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        self._no_callback = llama.ggml_abort_callback()
        llama.llama_set_abort_callback(pointer, self._callback, ctypes.c_void_p(self._flag))
        self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._finalizer = weakref.finalize(
            self, _free, llama, native, pointer=pointer, flag=self._flag, pool=self._pool, batch=self._batch
        )

    def close(self) -> None:
        """Free everything now. A second call does nothing."""
        self._finalizer()

    def abort(self) -> None:
        """Stop the running decode, or the next one; from any thread."""
        if self._finalizer.alive:
            self._aborted = True
            self.model.bindings.edgechat.edgechat_abort_flag_set(self._flag, 1)

    def clear_abort(self) -> None:
        """Allow decoding again after `abort`."""
        self._aborted = False
        self.model.bindings.edgechat.edgechat_abort_flag_set(self._flag, 0)

    # Decoding

    def tokens(self, seq: int = 0) -> Sequence[int]:
        """What a sequence holds."""
        return self._tokens[seq]

    def decode(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Append at most `n_batch` tokens; then logits of the last one are ready for a sampler.

        Raises DecodeAborted after `abort`, NoKvSlotError if other sequences have the cells, and EngineError if llama.cpp
        fails. In all three cases the sequence is where it was; but after a fault or an abort in the middle of
        several tokens it is empty, if its memory cannot rewind.
        """
        self._decode([(seq, token) for token in tokens], logits=False)

    def decode_each(self, tokens: Mapping[int, int]) -> None:
        """Append one token to each of several sequences; then their logits are ready, in this order.

        Raises as `decode` does.
        """
        self._decode(list(tokens.items()), logits=True)

    def decode_chain(self, tokens: Sequence[int], seq: int = 0) -> None:
        """Append tokens of which the last ones may turn out wrong; then the logits of each are ready.

        At most 1 + `max_undo`: `undo` takes back what was wrong. Raises as `decode` does.
        """
        self._decode([(seq, token) for token in tokens], logits=True)

    def logits(self, index: int = -1) -> NDArray[Any]:
        """What the last batch says of the token after the one at `index`: float32 of shape [n_vocab], llama.cpp's own memory."""
        import numpy as np

        pointer = self.model.bindings.llama.llama_get_logits_ith(self.pointer, index)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def logprobs(self, token: int, index: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Natural logarithm of a token's probability before any sampling, and of the `n_top` likeliest ones, best first."""
        import numpy as np

        logits = self.logits(index).astype(np.float64)
        values = logits - logits.max()
        values -= np.log(np.exp(values).sum())
        top = np.argsort(-values, kind="stable")[:n_top]
        return float(values[token]), [(int(t), float(values[t])) for t in top]

    def time_decode(self, tokens: Sequence[int], seq: int | None = None) -> float:
        """How many seconds `decode_chain` of these tokens takes after what `seq` holds. Nothing of it stays.

        Raises DecodeAborted, NoKvSlotError and EngineError.
        """
        if seq is not None:
            self.copy(seq, self._scratch, len(self._tokens[seq]))
        started = time.monotonic()
        try:
            self._decode([(self._scratch, token) for token in tokens], logits=True)
            self.synchronize()
            return time.monotonic() - started
        finally:
            self.drop(self._scratch)

    def _decode(self, entries: list[tuple[int, int]], *, logits: bool) -> None:
        starts = {seq: len(self._tokens[seq]) for seq, _ in entries}
        padding = 0 if logits else self._padding(len(entries), max(starts.values(), default=0))
        if padding:
            try:
                self._decode_batch([(self._scratch, entries[0][1])] * padding + entries, starts, logits=False)
            except NoKvSlotError:
                pass  # there may be enough without them
            else:
                return
            finally:
                self.drop(self._scratch)
        self._decode_batch(entries, starts, logits=logits)

    def _padding(self, count: int, depth: int) -> int:
        if not self.can_truncate or self.n_batch < attention_padding.TILE_TOKENS:
            return 0
        model = self.model
        return attention_padding.padding_tokens(
            count, depth, n_params=model.n_params, n_layer=model.n_layer, n_embd=model.n_embd
        )

    def _decode_batch(self, entries: list[tuple[int, int]], starts: dict[int, int], *, logits: bool) -> None:
        batch, count = self._batch, len(entries)
        ends = {self._scratch: 0} | starts
        if not 0 < count <= self.n_batch:
            raise EngineError(f"cannot decode {count} tokens at once: a batch holds {self.n_batch}")
        for i, (seq, token) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = ends[seq]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = logits
            ends[seq] += 1
        if max(ends.values()) > self.n_ctx:
            raise EngineError(f"cannot append {count} tokens to {starts} in a context of {self.n_ctx}")
        batch.logits[count - 1] = True
        batch.n_tokens = count
        # One step, or with drafts: soon done, and of a state stopping in the middle would cost all that came before.
        code = self._run(batch, is_step=len(starts) == count or (logits and self._has_state))
        if code == 0:
            for seq, token in entries:
                self._tokens[seq].append(token)
            self._unsealed -= starts.keys()
            return
        if code == 1:  # llama.h: no slot was found, and nothing was done
            raise NoKvSlotError
        for seq, start in starts.items():
            self._cut(seq, start)
        if code == 2:  # noqa: PLR2004  (llama.h: aborted)
            raise DecodeAborted
        raise ComputeError(f"llama.cpp could not decode {count} tokens after {starts} of {self.n_ctx} (code {code})")

    def _run(self, batch: object, *, is_step: bool) -> int:
        llama = self.model.bindings.llama
        if self._aborted:
            raise DecodeAborted
        if not is_step or self.can_truncate:
            return int(llama.llama_decode(self.pointer, batch))
        llama.llama_set_abort_callback(self.pointer, self._no_callback, None)
        try:
            return int(llama.llama_decode(self.pointer, batch))
        finally:
            llama.llama_set_abort_callback(self.pointer, self._callback, ctypes.c_void_p(self._flag))

    # What the memory can do

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be cut, copied and saved at any position; else only where it ends."""
        return not self._has_state and not self._window

    @property
    def saves_full_state(self) -> bool:
        """True if a state is all there is, so that what `save` returns needs nothing before it."""
        return not self._has_cells

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """True if the first `n_tokens` can be gone on from."""
        if n_tokens in (0, len(self._tokens[seq])):
            return True
        return not self._has_state and self._reaches_back(seq, n_tokens)

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """True if the first `n_tokens`, with a piece after them that ends at `end`, can be gone on from."""
        if self._has_state:  # the piece brings the state; of a window it may lack the beginning
            return not self._window
        return n_tokens <= len(self._tokens[seq]) and self._reaches_back(seq, end)

    def _reaches_back(self, seq: int, n_tokens: int) -> bool:
        """True if what a token after the first `n_tokens` attends to is still there."""
        if not self._window:
            return True
        first = self._first(seq)
        return first >= 0 and max(first, self._gap_ends[seq]) <= max(0, n_tokens - self._window)

    def _first(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_min(self._memory, seq))

    @cached_property
    def max_rollback(self) -> int:
        """How many of the last tokens `undo` can take back."""
        if not self._has_state:
            return min(self.n_batch, N_OUTPUTS) - 1
        return int(self.model.bindings.llama.llama_n_rs_seq(self.pointer))

    # Sequences

    def rollback(self, seq: int, n_tokens: int) -> None:
        """Take back the last `n_tokens` of those that `decode_chain` just appended.

        Where memory is a state, `seal` must be called before the sequence is copied or saved. Raises EngineError if
        llama.cpp refuses; then the sequence is empty.
        """
        if not n_tokens:
            return
        wanted = len(self._tokens[seq]) - n_tokens
        if self._cut(seq, wanted) != wanted:
            raise EngineError(f"llama.cpp could not take back {n_tokens} drafted tokens; try --no-speculation")
        if self._has_state:
            self._unsealed.add(seq)

    def commit_rollback(self, seq: int) -> None:
        """Make what `undo` left of a state the sequence's own; until then it is one of several that llama.cpp keeps."""
        if seq not in self._unsealed:
            return
        self._unsealed.discard(seq)
        llama, partial = self.model.bindings.llama, self.model.bindings.llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = int(llama.llama_state_seq_get_size_ext(self.pointer, seq, partial))
        view = (ctypes.c_uint8 * size)()
        if (
            int(llama.llama_state_seq_get_data_ext(self.pointer, view, size, seq, partial)) != size
            or int(llama.llama_state_seq_set_data_ext(self.pointer, view, size, seq, partial)) != size
        ):
            self.drop(seq)

    def rewind(self, n_tokens: int, seq: int = 0) -> int:
        """Forget all but the first `n_tokens`; returns how many really stay (none, if that is not possible)."""
        return self._cut(seq, n_tokens if self.can_rewind(seq, n_tokens) else 0)

    def _cut(self, seq: int, n_tokens: int) -> int:
        llama = self.model.bindings.llama
        if not llama.llama_memory_seq_rm(self._memory, seq, n_tokens, -1):
            llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            n_tokens = 0
        del self._tokens[seq][n_tokens:]
        if not n_tokens:
            self._gap_ends[seq] = 0
            self._unsealed.discard(seq)
        return n_tokens

    def drop(self, seq: int) -> None:
        """Forget a sequence; cells that others share stay."""
        self._cut(seq, 0)

    def clear(self) -> None:
        """Forget all sequences, and begin with the first cell again: where cells lie decides how sums are rounded."""
        for seq in range(self.n_seqs + 1):
            self.drop(seq)
        self.model.bindings.llama.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source`, in the same cells. `can_rewind` or `can_join` allow it."""
        llama = self.model.bindings.llama
        self.drop(target)
        llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        self._tokens[target] = self._tokens[source][:n_tokens]
        self._gap_ends[target] = self._gap_ends[source]

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """The memory of positions from `start` to `end`; to the end of the sequence, unless `any_position`.

        Memory that is a state of the whole sequence is saved whole. Raises MemoryError.
        """
        llama = self.model.bindings.llama
        llama.llama_memory_seq_cp(self._memory, seq, self._scratch, start, end)
        try:
            size = int(llama.llama_state_seq_get_size(self.pointer, self._scratch))
            data = bytearray(size)
            view = (ctypes.c_uint8 * size).from_buffer(data)
            written = int(llama.llama_state_seq_get_data(self.pointer, view, size, self._scratch))
        finally:
            self.drop(self._scratch)
        if written != size:
            raise EngineError(f"llama.cpp saved {written} of {size} bytes")
        return data

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens`, which `save` wrote as `data` from `start` on; `start` may be before the sequence's end.

        False, and nothing is changed, if there is no room or llama.cpp does not take the data.
        """
        llama = self.model.bindings.llama
        held, end = len(self._tokens[seq]), start + len(tokens)
        view = (ctypes.c_uint8 * len(data)).from_buffer(data)
        try:
            taken = int(llama.llama_state_seq_set_data(self.pointer, view, len(data), self._scratch))
            if taken != len(data) or self._end(self._scratch) < end:
                return False
            first = self._first(self._scratch)
            if self._window and first > held:
                # What was saved is a window, and what is here already ended before it: between them is nothing.
                self._gap_ends[seq] = first
            llama.llama_memory_seq_cp(self._memory, self._scratch, seq, held, end)
        finally:
            self.drop(self._scratch)
        self._tokens[seq].extend(tokens[held - start :])
        return True

    def _end(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def synchronize(self) -> None:
        """Wait until the last decode is really done (backends may work in the background)."""
        self.model.bindings.llama.llama_synchronize(self.pointer)


def _free(llama: object, native: ctypes.CDLL, *, pointer: object, flag: int, pool: int, batch: object) -> None:
    """Free in the order that llama.cpp asks for: the context before what it points to."""
    llama.llama_free(pointer)  # type: ignore[attr-defined]
    llama.llama_batch_free(batch)  # type: ignore[attr-defined]
    native.edgechat_threadpool_free(pool)
    native.edgechat_abort_flag_free(flag)
