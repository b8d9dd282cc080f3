"""A context: the tokens a model has seen, their KV cells, and the next token's logits."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

from edgechat.errors import EngineError, PlanError
from edgechat.runtime.bindings import MemoryEntry
from edgechat.runtime.model import Model

_SEQ_ID = 0


class DecodeAborted(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """A decode was stopped by the abort flag; the context is back where it was before it."""


class Context:
    """Owns a llama_context, its thread pool and its abort flag; holds one sequence of tokens.

    `tokens` always says exactly what the KV cells hold, also after a failed or aborted decode.
    """

    def __init__(self, model: Model, *, n_ctx: int, n_threads: int, n_batch: int = 512, n_ubatch: int = 512) -> None:
        """Allocate for `n_ctx` tokens. Raises PlanError if llama.cpp cannot."""
        self.model = model
        self.tokens: list[int] = []
        bindings = model.bindings
        llama = bindings.llama
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = min(n_batch, n_ctx)
        params.n_ubatch = min(n_ubatch, n_ctx)
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True
        params.no_perf = True
        bindings.log.take_errors()
        pointer = llama.llama_init_from_model(model.pointer, params)
        if not pointer:
            errors = bindings.log.take_errors()
            raise PlanError(f"a context of {n_ctx} tokens cannot be made: {errors[0] if errors else 'out of memory'}")
        self.pointer = pointer
        self.n_ctx = int(llama.llama_n_ctx(pointer))
        self.n_batch = int(llama.llama_n_batch(pointer))
        self.n_threads = n_threads
        self._memory = llama.llama_get_memory(pointer)
        native = bindings.edgechat
        self._flag = native.edgechat_abort_flag_new()
        self._pool = native.edgechat_threadpool_new(n_threads)
        if self._pool:
            native.edgechat_threadpool_attach(self._pool, pointer)
        callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(pointer, callback, ctypes.c_void_p(self._flag))
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
            self.model.bindings.edgechat.edgechat_abort_flag_set(self._flag, 1)

    def clear_abort(self) -> None:
        """Allow decoding again after `abort`."""
        self.model.bindings.edgechat.edgechat_abort_flag_set(self._flag, 0)

    def decode(self, tokens: Sequence[int]) -> None:
        """Append at most `n_batch` tokens; then logits of the last one are ready for a sampler.

        Raises DecodeAborted after `abort`, and EngineError if llama.cpp fails; in both cases the context is
        rewound to where it was.
        """
        batch, start = self._batch, len(self.tokens)
        count = len(tokens)
        if not 0 < count <= self.n_batch or start + count > self.n_ctx:
            raise EngineError(f"cannot append {count} tokens to {start} in a context of {self.n_ctx}")
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = _SEQ_ID
            batch.logits[i] = False
        batch.logits[count - 1] = True
        batch.n_tokens = count
        code = self.model.bindings.llama.llama_decode(self.pointer, batch)
        if code == 0:
            self.tokens.extend(tokens)
            return
        self.rewind(start)
        if code == 2:  # noqa: PLR2004  (llama.h: aborted)
            raise DecodeAborted
        raise EngineError(f"llama.cpp could not decode {count} tokens after {start} of {self.n_ctx} (code {code})")

    def rewind(self, n_tokens: int) -> int:
        """Forget all but the first `n_tokens`; returns how many really stay (none, if memory cannot rewind)."""
        llama = self.model.bindings.llama
        if not llama.llama_memory_seq_rm(self._memory, _SEQ_ID, n_tokens, -1):
            llama.llama_memory_clear(self._memory, False)
            n_tokens = 0
        del self.tokens[n_tokens:]
        return n_tokens

    @property
    def can_rewind(self) -> bool:
        """True if `rewind` keeps what it is asked to; recurrent and hybrid models only have their last state."""
        llama, model = self.model.bindings.llama, self.model.pointer
        return not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))

    def synchronize(self) -> None:
        """Wait until the last decode is really done (backends may work in the background)."""
        self.model.bindings.llama.llama_synchronize(self.pointer)

    def memory_breakdown(self) -> dict[str, dict[str, int]]:
        """Bytes by buffer type, split into model, context and compute."""
        entries = (MemoryEntry * 32)()
        count = self.model.bindings.edgechat.edgechat_memory_breakdown(self.pointer, entries, len(entries))
        return {
            entry.buffer_type.decode(): {
                "model_bytes": entry.model_bytes,
                "context_bytes": entry.context_bytes,
                "compute_bytes": entry.compute_bytes,
            }
            for entry in entries[: min(count, len(entries))]
        }


def _free(llama: object, native: ctypes.CDLL, *, pointer: object, flag: int, pool: int, batch: object) -> None:
    """Free in the order that llama.cpp asks for: the context before what it points to."""
    llama.llama_free(pointer)  # type: ignore[attr-defined]
    llama.llama_batch_free(batch)  # type: ignore[attr-defined]
    native.edgechat_threadpool_free(pool)
    native.edgechat_abort_flag_free(flag)
