"""Scores of rerankers: those of llama.cpp for the input that llama-server composes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import ContextOverflowError, EngineError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.embedder import Embedder
from edgechat.runtime.model import Model
from edgechat.runtime.reranker_input import PairTokenizer
from tests.models import write_tiny_bert, write_tiny_qwen_reranker

PAIRS = [("hello world", "the world"), ("hello", ""), ("", "hello"), ("a b", "the hello " * 9), ("hello", "hello")]
Writer = Callable[[Path], Path]


def write_bert(path: Path) -> Path:
    return write_tiny_bert(path, is_reranker=True)


def tokenize(native: Bindings, model: Model, text: str, *, parse_special: bool) -> list[int]:
    tokens = (ctypes.c_int32 * 512)()
    data = text.encode()
    count = native.llama.llama_tokenize(model.vocab, data, len(data), tokens, 512, False, parse_special)
    return list(tokens[:count])


def compose(native: Bindings, model: Model, query: str, document: str) -> list[int]:
    """Return the input of a pair as `format_prompt_rerank` of llama-server composes it."""
    template = native.llama.llama_model_chat_template(model.pointer, b"rerank")
    if template:
        text = template.decode().replace("{query}", query).replace("{document}", document)
        return tokenize(native, model, text, parse_special=True)
    start, separator = 2, 3  # [CLS] and [SEP] of write_tiny_bert, whose vocabulary adds no EOS
    plain_query, plain_document = (tokenize(native, model, t, parse_special=False) for t in (query, document))
    return [start, *plain_query, separator, *plain_document]


def compute_score(native: Bindings, model: Model, tokens: list[int]) -> float:
    """Compute a score with the functions of llama.cpp alone."""
    llama = native.llama
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.embeddings = True
    params.pooling_type = llama.LLAMA_POOLING_TYPE_RANK
    context = llama.llama_init_from_model(model.pointer, params)
    array = (ctypes.c_int32 * len(tokens))(*tokens)
    batch = llama.llama_batch_get_one(array, len(tokens))
    compute = llama.llama_decode if llama.llama_get_memory(context) else llama.llama_encode
    assert compute(context, batch) == 0
    score = float(llama.llama_get_embeddings_seq(context, 0)[0])
    llama.llama_free(context)
    return score


@pytest.mark.parametrize("write", [write_bert, write_tiny_qwen_reranker])
def test_scores_and_inputs_are_those_of_llama_cpp(native: Bindings, tmp_path: Path, write: Writer) -> None:
    model = Model(native, write(tmp_path / "reranker.gguf"))
    plan: Any = SimpleNamespace(options=SimpleNamespace(n_ctx=256), n_threads=1, n_threads_batch=1)
    assert (model.is_reranker, model.is_embedding) == (True, True)
    assert model.n_labels == (2 if write is write_tiny_qwen_reranker else 1)
    assert model.has_softmax == (write is write_tiny_qwen_reranker)
    pair_tokenizer, embedder = PairTokenizer(model, 256), Embedder(model, plan)
    for query, document in PAIRS:
        tokens = compose(native, model, query, document)
        assert pair_tokenizer.tokenize(query, document) == tokens
        assert embedder.score([tokens]) == pytest.approx([compute_score(native, model, tokens)], abs=1e-5)
    embedder.close()


@pytest.mark.parametrize("write", [write_bert, write_tiny_qwen_reranker])
def test_texts_of_control_tokens_are_plain_text(native: Bindings, tmp_path: Path, write: Writer) -> None:
    model = Model(native, write(tmp_path / "reranker.gguf"))
    pair_tokenizer = PairTokenizer(model, 256)
    control_tokens = set(model.control_tokens.values()) - {1}  # the unknown token of BERT is no control token

    def count(query: str, document: str) -> int:
        return sum(token in control_tokens for token in pair_tokenizer.tokenize(query, document))

    texts = "".join(model.control_tokens)
    assert count(texts, f"{texts} {{query}} {{document}}") == count("a", "a")


@pytest.fixture(params=[write_bert, write_tiny_qwen_reranker])
def reranker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineClient]:
    client = EngineClient()
    path = request.param(tmp_path / "reranker.gguf")
    client.load(protocol.Load(id=client.next_id(), plan=make_manual_plan(str(path), n_ctx=128, n_threads=1)))
    yield client
    client.close()


def rerank(client: EngineClient, query: str, documents: list[str]) -> protocol.Reranked:
    request = protocol.Rerank(id=client.next_id(), query=query, documents=documents)
    return client._call(request, protocol.Reranked)


def test_engine_scores_each_document_by_itself(reranker: EngineClient) -> None:
    documents = ["the world", "hello", "the world"]
    reranked = rerank(reranker, "hello world", documents)
    assert reranked.scores[0] == pytest.approx(reranked.scores[2], abs=1e-3)
    assert abs(reranked.scores[0] - reranked.scores[1]) > 0.01
    assert reranked.n_tokens > 6
    if reranked.are_probabilities:
        assert all(0 <= score <= 1 for score in reranked.scores)
    assert reranked.scores[1] == pytest.approx(rerank(reranker, "hello world", ["hello"]).scores[0], abs=1e-3)
    with pytest.raises(ContextOverflowError, match=r"documents\[1\]: The query and the document have .* at most 128"):
        rerank(reranker, "hello", ["hello", "hello " * 500])
    with pytest.raises(EngineError, match="is a reranker"):
        reranker._call(protocol.Embed(id=reranker.next_id(), inputs=[[5]]), protocol.EmbeddingsComputed)
    assert rerank(reranker, "hello", []).scores == []


def test_embedding_model_does_not_rerank(tmp_path: Path) -> None:
    client = EngineClient()
    path = write_tiny_bert(tmp_path / "bert.gguf")
    client.load(protocol.Load(id=client.next_id(), plan=make_manual_plan(str(path), n_ctx=128, n_threads=1)))
    with pytest.raises(EngineError, match="cannot rerank"):
        rerank(client, "hello", ["hello"])
    client.close()
