"""Embeddings of texts and scores of a reranker, computed with an embedding model or a reranker."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any, Final

from edgechat.errors import ComputeError, ContextOverflowError, PlanError, RequestCancelledError
from edgechat.planner.load_plan import LoadPlan
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.model import Model

_ABORTED: Final = 2  # return code of llama_decode and llama_encode after an abort


class Embedder:
    """Owner of a llama_context that embeds one text per call, with the pooling that the model file specifies."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Allocate a context for texts of at most `plan.options.n_ctx` tokens. Raises PlanError if llama.cpp fails."""
        self.model = model
        bindings = model.bindings
        llama = bindings.llama
        params = llama.llama_context_default_params()
        # Bidirectional attention needs the whole text in one batch.
        params.n_ctx = params.n_batch = params.n_ubatch = plan.options.n_ctx
        params.n_seq_max = 1
        params.n_threads, params.n_threads_batch = plan.n_threads, plan.n_threads_batch
        params.embeddings = True
        params.no_perf = True
        bindings.log.take_errors()
        with activity.during(Activity.LOADING):
            pointer = llama.llama_init_from_model(model.pointer, params)
        if not pointer:
            errors = bindings.log.take_errors()
            reason = errors[0] if errors else "out of memory"
            raise PlanError(f"Cannot create an embedding context of {plan.options.n_ctx} tokens: {reason}")
        self.pointer = pointer
        self.n_ctx = plan.options.n_ctx
        self.n_embd = 0 if model.is_reranker else int(llama.llama_model_n_embd_out(model.pointer))
        self._memory = llama.llama_get_memory(pointer)
        self._batch = llama.llama_batch_init(self.n_ctx, 0, 1)
        native = bindings.edgechat
        self._abort_flag = native.edgechat_abort_flag_new()
        callback = ctypes.cast(native.edgechat_abort_callback, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(pointer, callback, ctypes.c_void_p(self._abort_flag))
        self._finalizer = weakref.finalize(
            self, _free, llama, native, pointer=pointer, abort_flag=self._abort_flag, batch=self._batch
        )

    def close(self) -> None:
        """Free the context now. A second call does nothing."""
        self._finalizer()

    def abort(self) -> None:
        """Stop the current embedding, or the next one if none is running. Can be called from any thread."""
        if self._finalizer.alive:
            self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 1)

    def clear_abort(self) -> None:
        """Reset the abort flag, so that embedding works again after `abort`."""
        self.model.bindings.edgechat.edgechat_abort_flag_set(self._abort_flag, 0)

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """Return the embedding of a text: `n_embd` numbers with a Euclidean norm of 1.

        Raises the errors of `_compute`.
        """
        values = self._compute(tokens, self.n_embd)
        norm = math.sqrt(math.fsum(x * x for x in values))
        return [x / norm for x in values] if norm else values

    def score(self, tokens: Sequence[int]) -> float:
        """Return the first output of a reranker for the tokens of a query and a document, before any normalisation.

        Raises the errors of `_compute`.
        """
        return self._compute(tokens, 1)[0]

    def _compute(self, tokens: Sequence[int], n_values: int) -> list[float]:
        """Return the first values of the pooled output for a text.

        Raises ContextOverflowError if `tokens` is empty or longer than `n_ctx`, RequestCancelledError after `abort`,
        and ComputeError if llama.cpp fails.
        """
        if not tokens:
            raise ContextOverflowError("The text is empty. Embed a text of at least one token.")
        if len(tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"The text has {len(tokens)} tokens, but this model embeds at most {self.n_ctx}. Split the text."
            )
        llama, batch = self.model.bindings.llama, self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        if self._memory:
            llama.llama_memory_clear(self._memory, True)
        compute = llama.llama_decode if self._memory else llama.llama_encode
        with activity.during(Activity.COMPUTING):
            code = int(compute(self.pointer, batch))
        if code == _ABORTED:
            raise RequestCancelledError("The embedding request was cancelled. Send it again.")
        activity.set_has_computed(code == 0)
        embedding = llama.llama_get_embeddings_seq(self.pointer, 0) if code == 0 else None
        if not embedding:
            raise ComputeError(f"llama.cpp returned no embedding for {len(tokens)} tokens (code {code}).")
        values: list[float] = embedding[:n_values]
        if not math.isfinite(math.fsum(x * x for x in values)):
            raise ComputeError(f"The embedding of a text of {len(tokens)} tokens contains NaN or infinity.")
        return values


def _free(llama: Any, native: ctypes.CDLL, *, pointer: object, abort_flag: int, batch: object) -> None:
    llama.llama_free(pointer)
    llama.llama_batch_free(batch)
    native.edgechat_abort_flag_free(abort_flag)
