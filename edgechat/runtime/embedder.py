"""Vectors for texts, by models that are made for that."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

from edgechat.errors import ComputeError, ContextOverflowError, PlanError
from edgechat.planner.plan import LoadPlan
from edgechat.runtime.model import Model


class Embedder:
    """Owns a llama_context that reads one text at a time, as a whole, and pools it as the model says."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Texts may have as many tokens as the plan's context. Raises PlanError if there is no memory for it."""
        self.model = model
        bindings = model.bindings
        llama = bindings.llama
        params = llama.llama_context_default_params()
        # A model that looks both ways must see a text at once.
        params.n_ctx = params.n_batch = params.n_ubatch = plan.options.n_ctx
        params.n_seq_max = 1
        params.n_threads, params.n_threads_batch = plan.n_threads, plan.n_threads_batch
        params.embeddings = True
        params.no_perf = True
        bindings.log.take_errors()
        pointer = llama.llama_init_from_model(model.pointer, params)
        if not pointer:
            errors = bindings.log.take_errors()
            raise PlanError(f"a context for vectors cannot be made: {errors[0] if errors else 'out of memory'}")
        self.pointer = pointer
        self.n_ctx = plan.options.n_ctx
        self.n_embd = int(llama.llama_model_n_embd_out(model.pointer))
        self._memory = llama.llama_get_memory(pointer)
        self._batch = llama.llama_batch_init(self.n_ctx, 0, 1)
        self._finalizer = weakref.finalize(self, _free, llama, pointer=pointer, batch=self._batch)

    def close(self) -> None:
        """Free everything now. A second call does nothing."""
        self._finalizer()

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The vector of a text, `n_embd` numbers, of length 1. Raises ContextOverflowError and ComputeError."""
        if not 0 < len(tokens) <= self.n_ctx:
            raise ContextOverflowError(
                f"the text has {len(tokens)} tokens; this model reads 1 to {self.n_ctx} at a time: split it"
            )
        llama, batch = self.model.bindings.llama, self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        if self._memory:
            llama.llama_memory_clear(self._memory, True)
        run = llama.llama_decode if self._memory else llama.llama_encode
        code = int(run(self.pointer, batch))
        vector = llama.llama_get_embeddings_seq(self.pointer, 0) if code == 0 else None
        if not vector:
            raise ComputeError(f"llama.cpp made no vector of {len(tokens)} tokens (code {code})")
        numbers = vector[: self.n_embd]
        length = math.sqrt(math.fsum(x * x for x in numbers))
        if not math.isfinite(length):
            raise ComputeError("the model's vector is not a number")
        return [x / length for x in numbers] if length else numbers


def _free(llama: object, *, pointer: object, batch: object) -> None:
    llama.llama_free(pointer)  # type: ignore[attr-defined]
    llama.llama_batch_free(batch)  # type: ignore[attr-defined]
