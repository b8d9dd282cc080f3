"""Embedding model in the engine process, which executes Embed, Rerank, Tokenize and Detokenize requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from edgechat.engine import protocol
from edgechat.engine.engine_model import EngineModel
from edgechat.engine.tokenization import TokenizationQueue, check_tokens, detokenize, iterate_request
from edgechat.errors import ContextOverflowError, EngineError, RequestCancelledError
from edgechat.planner.load_plan import LoadPlan
from edgechat.runtime.embedder import Embedder
from edgechat.runtime.model import Model
from edgechat.runtime.reranker_input import PairTokenizer


class EmbeddingModel(EngineModel):
    """Loaded embedding model or reranker, which executes one request at a time."""

    def __init__(
        self,
        model: Model,
        plan: LoadPlan,
        is_cancelled: Callable[[int], bool],
        on_finished: Callable[[int, protocol.Event], None],
    ) -> None:
        """Create the embedder.

        `is_cancelled(request_id)` returns whether an Embed request was cancelled. `on_finished` receives the id and the
        final event of each Tokenize request.
        """
        self._model = model
        self._embedder = Embedder(model, plan)
        self._is_cancelled = is_cancelled
        self._on_finished = on_finished
        self.n_ctx = self._embedder.n_ctx
        self.n_embd = self._embedder.n_embd
        self.n_labels = model.n_labels if model.is_reranker else 0
        self._pair_tokenizer = PairTokenizer(model, self.n_ctx) if model.is_reranker else None
        self._tokenizations = TokenizationQueue(self.n_ctx, model.n_ctx_train)
        self._embed_id: int | None = None
        """ID of the Embed or Rerank request that is being executed."""

    @property
    def is_busy(self) -> bool:
        return not self._tokenizations.is_empty

    def execute(self, request: protocol.AnyRequest, arrived_at: float) -> protocol.Event | None:  # noqa: ARG002
        if isinstance(request, protocol.Tokenize):
            parts = iterate_request(self._model, request, is_embedding=True)
            self._tokenizations.add_request(request, parts, self._on_finished)
            return None
        if isinstance(request, protocol.Detokenize):
            return detokenize(self._model, request)
        if isinstance(request, protocol.Embed):
            return self._execute_embed(request)
        if isinstance(request, protocol.Rerank):
            return self._execute_rerank(request)
        raise EngineError("This is an embedding model, which cannot generate text. Load a chat model.")

    def step(self, cancelled_ids: set[int]) -> None:
        self._tokenizations.cancel(cancelled_ids)
        self._tokenizations.step()

    def _execute_embed(self, request: protocol.Embed) -> protocol.EmbeddingsComputed:
        if self._pair_tokenizer is not None:
            raise EngineError("This is a reranker, which cannot compute embeddings. Load an embedding model.")
        with self._begin(request.id):
            for tokens in request.inputs:
                check_tokens(tokens, self._model.n_vocab)
                self._embedder.check_length(tokens)
            embeddings = []
            for texts in self._embedder.split_batches(request.inputs):
                self._check_not_cancelled(request.id)
                embeddings += self._embedder.embed(texts)
        return protocol.EmbeddingsComputed(id=request.id, embeddings=embeddings)

    def _execute_rerank(self, request: protocol.Rerank) -> protocol.Reranked:
        if self._pair_tokenizer is None:
            raise EngineError("This is an embedding model, which cannot rerank. Load a reranker.")
        with self._begin(request.id):
            pairs = []
            for i, document in enumerate(request.documents):
                self._check_not_cancelled(request.id)
                try:
                    pairs.append(self._pair_tokenizer.tokenize(request.query, document))
                    self._embedder.check_length(pairs[-1])
                except ContextOverflowError as error:
                    raise ContextOverflowError(f"documents[{i}]: {error}") from error
            scores = []
            for texts in self._embedder.split_batches(pairs):
                self._check_not_cancelled(request.id)
                scores += self._embedder.score(texts)
        return protocol.Reranked(
            id=request.id, scores=scores, n_tokens=sum(map(len, pairs)), are_probabilities=self._model.has_softmax
        )

    @contextlib.contextmanager
    def _begin(self, request_id: int) -> Iterator[None]:
        # A cancellation before this line is noticed by `_is_cancelled`, and a later one also aborts the computation.
        self._embed_id = request_id
        self._embedder.clear_abort()
        try:
            yield
        finally:
            self._embed_id = None

    def _check_not_cancelled(self, request_id: int) -> None:
        if self._is_cancelled(request_id):
            raise RequestCancelledError("The embedding request was cancelled. Send it again.")

    def cancel(self, request_id: int) -> None:
        if request_id == self._embed_id:
            self._embedder.abort()

    def abort(self) -> None:
        self._embedder.abort()

    def close(self) -> None:
        self._embedder.close()
        self._model.close()
