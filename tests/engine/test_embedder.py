"""Embeddings of several texts in one batch equal those of single texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.errors import ContextOverflowError
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.embedder import Embedder
from edgechat.runtime.model import Model
from tests.models import write_tiny_bert, write_tiny_qwen_embedder, write_tiny_qwen_reranker

N_CTX = 128
PLAN: Any = SimpleNamespace(options=SimpleNamespace(n_ctx=N_CTX), n_threads=1, n_threads_batch=1)


def write_bert_reranker(path: Path) -> Path:
    return write_tiny_bert(path, is_reranker=True)


def make_texts(model: Model, lengths: list[int]) -> list[list[int]]:
    numbers = random.Random(1)
    return [[numbers.randrange(5, model.n_vocab) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize(
    "write", [write_tiny_bert, write_bert_reranker, write_tiny_qwen_embedder, write_tiny_qwen_reranker]
)
def test_batches_have_the_values_of_single_texts(
    native: Bindings, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    model = Model(native, write(tmp_path / "model.gguf"))
    embedder = Embedder(model, PLAN)
    # The random matrices after the pooling enlarge the differences of half-precision sums; models with trained weights
    # do not. Without flash attention, all values are equal to 1e-5.
    tolerance = 1e-4 if write is write_tiny_bert else 1e-3
    texts = make_texts(model, [3, 1, 20, 20, 7, 60, 5, 12])
    assert sum(map(len, texts)) == N_CTX
    if model.is_reranker:
        scores = embedder.score(texts)
        assert scores == pytest.approx([embedder.score([text])[0] for text in texts], abs=tolerance)
        assert len(set(scores)) == len(texts)
    else:
        for batched, text in zip(embedder.embed(texts), texts, strict=True):
            assert batched == pytest.approx(embedder.embed([text])[0], abs=tolerance)
            assert sum(x * x for x in batched) == pytest.approx(1, abs=1e-5)
    embedder.close()


def test_texts_are_split_into_batches_in_their_order(native: Bindings, tmp_path: Path) -> None:
    model = Model(native, write_tiny_bert(tmp_path / "model.gguf"))
    embedder = Embedder(model, PLAN)
    texts = make_texts(model, [100, 28, 1, 128, 127, 2, *([1] * 70)])
    batches: list[Sequence[Sequence[int]]] = list(embedder.split_batches(texts))
    assert [text for batch in batches for text in batch] == texts
    assert [len(batch) for batch in batches] == [2, 1, 1, 1, 32, 32, 7]
    assert list(embedder.split_batches([])) == []
    too_much: list[list[list[int]]] = [[[]], [[5] * 129], [[5] * 64, [5] * 65], [[5]] * 33]
    for batch in too_much:
        with pytest.raises(ContextOverflowError):
            embedder.embed(batch)
    embedder.close()
