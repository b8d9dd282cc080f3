"""Embedding models and rerankers of the document index, in engine processes."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.config import Settings
from edgechat.documents.embedding import EngineEmbedder, EngineReranker, open_embedder, open_reranker
from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.search import search
from edgechat.documents.vector_scan import load_library
from edgechat.engine.client import EngineClient
from edgechat.models.loaded_model import LoadedModel
from tests.embedding_model import require_embedding_model
from tests.models import write_tiny_bert, write_tiny_qwen_embedder, write_tiny_qwen_reranker
from tests.unit.documents.collections import TextExtractor, make_reader

SETTINGS = Settings(n_threads=1)


def install(write: Callable[[Path], Path], name: str) -> Path:
    paths.models_dir().mkdir(parents=True, exist_ok=True)
    return write(paths.models_dir() / name)


@pytest.fixture
def open_one(warm: None) -> Iterator[Callable[[], EngineEmbedder]]:
    embedders: list[EngineEmbedder] = []

    def open_installed() -> EngineEmbedder:
        embedder = open_embedder(SETTINGS, lambda message: None)
        assert embedder is not None
        embedders.append(embedder)
        return embedder

    yield open_installed
    for embedder in embedders:
        embedder.close()


def get_client(embedder: EngineEmbedder) -> EngineClient:
    model: LoadedModel = embedder._model
    return model.engine


def test_without_installed_models_nothing_is_opened(home: Path) -> None:
    assert open_embedder(SETTINGS, lambda message: None) is None
    assert open_reranker(SETTINGS, lambda message: None) is None


@pytest.mark.parametrize("write", [write_tiny_bert, write_tiny_qwen_embedder])
def test_texts_of_any_length_are_embedded(
    open_one: Callable[[], EngineEmbedder], write: Callable[[Path], Path]
) -> None:
    install(write, "tiny.gguf")
    embedder = open_one()
    texts = ["hello world", "hello", "", "the world " * 3000, "hello world"]
    embeddings = embedder.embed(texts, is_query=False)
    assert [len(embedding) for embedding in embeddings] == [embedder.n_embd] * 5
    assert all(math.isclose(sum(x * x for x in embedding), 1, abs_tol=1e-3) for embedding in embeddings[:2])
    assert embeddings[0].tolist() == pytest.approx(embeddings[4].tolist(), abs=1e-3)
    assert embedder.embed([], is_query=False) == []


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_embedder_continues_after_the_end_of_its_engine(open_one: Callable[[], EngineEmbedder]) -> None:
    install(write_tiny_bert, "tiny.gguf")
    embedder = open_one()
    before = embedder.embed(["hello world"], is_query=True)
    pid = get_client(embedder).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    after = embedder.embed(["hello world"], is_query=True)
    assert get_client(embedder).pid != pid
    assert after[0].tolist() == pytest.approx(before[0].tolist(), abs=1e-6)


def test_reranker_scores_texts_of_any_length(warm: None) -> None:
    install(write_tiny_qwen_reranker, "tiny-reranker.gguf")
    reranker = open_reranker(SETTINGS, lambda message: None)
    assert isinstance(reranker, EngineReranker)
    scores = reranker.score("hello", ["the world", "hello " * 5000, ""])
    assert len(scores) == 3
    assert reranker.score("hello " * 9000, ["world"])
    reranker.close()


def test_model_of_the_embeddings_in_use_is_kept(open_one: Callable[[], EngineEmbedder], tmp_path: Path) -> None:
    install(write_tiny_bert, "first.gguf")
    (tmp_path / "a.txt").write_text("hello world")
    library = DocumentLibrary(paths.documents_dir())
    with library.create("notes") as collection:
        update(collection, add=[tmp_path / "a.txt"], embedder=open_one(), reader=make_reader(TextExtractor()))
    install(write_tiny_qwen_embedder, "second-and-larger.gguf")
    assert open_one().model_name == "first"
    library.remove("notes")
    assert open_one().model_name == "second-and-larger"


@pytest.mark.long
@pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")
def test_meaning_is_found_without_common_words(open_one: Callable[[], EngineEmbedder], tmp_path: Path) -> None:
    install(lambda path: Path(shutil.copy(require_embedding_model(), path)), "all-MiniLM-L6-v2-F16.gguf")
    texts = ["A man is eating food.", "A cheetah is running behind its prey.", "A woman is playing violin."]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    embedder = open_one()
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        update(collection, add=[tmp_path / "a.txt"], embedder=embedder, reader=make_reader(TextExtractor()))
        for query, text in {"spaghetti lunch": texts[0], "big cats hunting": texts[1], "musician": texts[2]}.items():
            found = search([collection], query, embedder=embedder, n_results=1)
            assert found[0].chunk.text == text
