"""Embeddings of texts and scores of a reranker, computed with an embedding model or a reranker."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

from edgechat.errors import ComputeError, ContextOverflowError, PlanError, RequestCancelledError
from edgechat.planner.load_plan import LoadPlan
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.model import Model

_ABORTED: Final = 2  # return code of llama_decode and llama_encode after an abort
# Maximum number of texts and of tokens in a batch of several texts. Texts of 8 to 32 tokens compute 1.5 to 2 times
# faster in such batches; more tokens compute no faster, because every token is compared with all others of the batch.
_MAX_SEQS: Final = 32
_MAX_BATCH_TOKENS: Final = 256


class Embedder:
    """Owner of a llama_context that embeds texts, with the pooling that the model file specifies.

    Several short texts are computed in one batch, each as a sequence of its own. The values of a text then differ by
    about 1e-4 from those of the text alone, because flash attention computes very short batches in half precision.
    """

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Allocate a context for texts of at most `plan.options.n_ctx` tokens. Raises PlanError if llama.cpp fails."""
        self.model = model
        bindings = model.bindings
        llama = bindings.llama
        params = llama.llama_context_default_params()
        # Bidirectional attention needs the whole text in one batch.
        params.n_ctx = params.n_batch = params.n_ubatch = plan.options.n_ctx
        # Each sequence of a recurrent or hybrid model needs memory for a state.
        has_state = bool(llama.llama_model_is_recurrent(model.pointer) or llama.llama_model_is_hybrid(model.pointer))
        self.max_seqs = 1 if has_state else _MAX_SEQS
        params.n_seq_max = self.max_seqs
        params.kv_unified = True  # the sequences share the cells
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

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the embeddings of the texts of one batch: `n_embd` numbers each, with a Euclidean norm of 1.

        Raises the errors of `_compute`.
        """
        return [_normalize(values) for values in self._compute(texts, self.n_embd)]

    def score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Return the first output of a reranker for each text, which has the tokens of a query and a document.

        The outputs are not normalised. Raises the errors of `_compute`.
        """
        return [values[0] for values in self._compute(texts, 1)]

    def split_batches(self, texts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
        """Yield the texts in groups of consecutive texts that compute fast in one batch."""
        start, n_tokens, max_tokens = 0, 0, min(self.n_ctx, _MAX_BATCH_TOKENS)
        for i, tokens in enumerate(texts):
            if i > start and (n_tokens + len(tokens) > max_tokens or i - start == self.max_seqs):
                yield texts[start:i]
                start, n_tokens = i, 0
            n_tokens += len(tokens)
        if start < len(texts):
            yield texts[start:]

    def check_length(self, tokens: Sequence[int]) -> None:
        """Raise ContextOverflowError if a text is empty or longer than `n_ctx`."""
        if not tokens:
            raise ContextOverflowError("The text is empty. Embed a text of at least one token.")
        if len(tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"The text has {len(tokens)} tokens, but this model embeds at most {self.n_ctx}. Split the text."
            )

    def _compute(self, texts: Sequence[Sequence[int]], n_values: int) -> list[list[float]]:
        """Return the first values of the pooled output for each text of a batch.

        Raises ContextOverflowError if a text is empty or the batch is longer than `n_ctx`, RequestCancelledError after
        `abort`, and ComputeError if llama.cpp fails.
        """
        for tokens in texts:
            self.check_length(tokens)
        n_tokens = sum(map(len, texts))
        if n_tokens > self.n_ctx or len(texts) > self.max_seqs:
            raise ContextOverflowError(f"A batch of {len(texts)} texts has {n_tokens} tokens. Split the batch.")
        llama, batch = self.model.bindings.llama, self._batch
        i = 0
        for seq, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, True
                batch.seq_id[i][0] = seq
                i += 1
        batch.n_tokens = n_tokens
        if self._memory:
            llama.llama_memory_clear(self._memory, True)
        compute = llama.llama_decode if self._memory else llama.llama_encode
        with activity.during(Activity.COMPUTING):
            code = int(compute(self.pointer, batch))
        if code == _ABORTED:
            raise RequestCancelledError("The embedding request was cancelled. Send it again.")
        activity.set_has_computed(code == 0)
        embeddings = []
        for seq, tokens in enumerate(texts):
            embedding = llama.llama_get_embeddings_seq(self.pointer, seq) if code == 0 else None
            if not embedding:
                raise ComputeError(f"llama.cpp returned no embedding for {n_tokens} tokens (code {code}).")
            values: list[float] = embedding[:n_values]
            if not math.isfinite(math.fsum(x * x for x in values)):
                raise ComputeError(f"The embedding of a text of {len(tokens)} tokens contains NaN or infinity.")
            embeddings.append(values)
        return embeddings


def _normalize(values: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(x * x for x in values))
    return [x / norm for x in values] if norm else values


def _free(llama: Any, native: ctypes.CDLL, *, pointer: object, abort_flag: int, batch: object) -> None:
    llama.llama_free(pointer)
    llama.llama_batch_free(batch)
    native.edgechat_abort_flag_free(abort_flag)
