"""Embedding requests in the engine: a cancelled one ends at once, and the next one is computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from edgechat.engine import embedding_model, protocol
from edgechat.engine.embedding_model import EmbeddingModel
from edgechat.engine.server import EngineServer
from edgechat.errors import RequestCancelledError
from tests.time_limit import HANG_S


class SlowEmbedder:
    """Embedder whose computation takes until it is aborted, unless the text is the token 0."""

    n_ctx = n_embd = 8

    def __init__(self, *_arguments: Any) -> None:
        self.is_aborted = threading.Event()
        self.is_computing = threading.Event()

    def abort(self) -> None:
        self.is_aborted.set()

    def clear_abort(self) -> None:
        self.is_aborted.clear()

    def check_length(self, tokens: list[int]) -> None:
        pass

    def split_batches(self, texts: list[list[int]]) -> Iterator[list[list[int]]]:
        return ([tokens] for tokens in texts)

    def embed(self, texts: list[list[int]]) -> list[list[float]]:
        self.is_computing.set()
        if texts != [[0]]:
            assert self.is_aborted.wait(HANG_S)
        if self.is_aborted.is_set():
            raise RequestCancelledError("aborted")
        return [[1.0]]


class FakeModel:
    n_vocab = 10
    n_ctx_train = 10
    is_reranker = False


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> EngineServer:
    monkeypatch.setattr(embedding_model, "Embedder", SlowEmbedder)
    engine_server = EngineServer()
    model: Any = FakeModel()
    engine_server._model = EmbeddingModel(model, model, engine_server._begin_embedding, engine_server._end_request)
    return engine_server


@pytest.mark.parametrize("has_other_request", [False, True])
def test_cancelled_request_ends_during_a_computation(server: EngineServer, *, has_other_request: bool) -> None:
    model = server._model
    assert isinstance(model, EmbeddingModel)
    embedder = cast("SlowEmbedder", model._embedder)
    if has_other_request:  # a text of another client is tokenised between the embeddings
        server._begin_request(1)
    server._begin_request(2)

    def cancel() -> None:
        assert embedder.is_computing.wait(HANG_S)
        server._cancel(7)  # another request
        assert not embedder.is_aborted.is_set()
        server._cancel(2)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(RequestCancelledError):
        model.execute(protocol.Embed(id=2, inputs=[[5], [0]]), 0.0)
    thread.join()
    server._begin_request(3)
    assert model.execute(protocol.Embed(id=3, inputs=[[0]]), 0.0) == protocol.EmbeddingsComputed(
        id=3, embeddings=[[1.0]]
    )


def test_request_that_was_cancelled_before_is_not_computed(server: EngineServer) -> None:
    model = server._model
    server._cancel(2)
    server._begin_request(2)
    with pytest.raises(RequestCancelledError, match="was cancelled"):
        model.execute(protocol.Embed(id=2, inputs=[[0]]), 0.0)
