"""Choice of the embedding model, prefixes of queries and documents, and cut inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.documents.embedding import choose_embedding_model, truncate_tokens
from edgechat.documents.embedding_prompts import EmbeddingPrompts, find_prompts
from tests.models import write_tiny, write_tiny_bert, write_tiny_qwen_embedder


@pytest.mark.parametrize(
    ("names", "query", "document"),
    [
        (("nomic-embed-text-v1.5", "x.gguf"), "search_query: ", "search_document: "),
        (("", "Nomic Embed Text v1.5-Q8_0.gguf"), "search_query: ", "search_document: "),
        (("multilingual-e5-small",), "query: ", "passage: "),
        (("Multilingual E5 Large Instruct",), "Instruct: Given a web search query", ""),
        (("Qwen3 Embedding 0.6B",), "Instruct: Given a web search query", ""),
        (("bge-small-en-v1.5",), "Represent this sentence", ""),
        (("bge-m3",), "", ""),
        (("embeddinggemma-300m-qat",), "task: search result | query: ", "title: none | text: "),
        (("snowflake-arctic-embed-l-v2.0",), "query: ", ""),
        (("all-MiniLM-L6-v2",), "", ""),
    ],
)
def test_prefixes_by_name(names: tuple[str, ...], query: str, document: str) -> None:
    prompts = find_prompts(*names)
    assert prompts.query.startswith(query)
    assert (not prompts.query, prompts.document) == (not query, document)


def test_unknown_models_have_no_prefixes() -> None:
    assert find_prompts("model", "file.gguf") == EmbeddingPrompts("", "")


@pytest.mark.parametrize(
    ("tokens", "expected"), [([2, 5, 3], [2, 5, 3]), ([2, 5, 6, 7, 3], [2, 5, 6, 3]), ([2, 5, 6, 7, 8], [2, 5, 6, 7])]
)
def test_long_inputs_are_cut_before_their_end_token(tokens: list[int], expected: list[int]) -> None:
    assert truncate_tokens(tokens, 4, [2, 3]) == expected


def test_models_for_chats_are_not_chosen(home: Path) -> None:
    folder = home / "data" / "models"
    folder.mkdir(parents=True)
    write_tiny(folder / "chat.gguf", "llama")
    assert choose_embedding_model() is None
    write_tiny_bert(folder / "reranker.gguf", is_reranker=True)
    assert choose_embedding_model() is None
    write_tiny_bert(folder / "bert.gguf")
    write_tiny_qwen_embedder(folder / "qwen.gguf")
    chosen = choose_embedding_model()
    assert chosen is not None
    assert (chosen.name, chosen.facts.purpose) == ("qwen", "embedding")
