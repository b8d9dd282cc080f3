"""Prefixes that embedding models were trained with, for queries and for documents.

Without its prefixes, a model finds fewer of the right texts. The sources are the cards of the models on Hugging Face.
"""

from __future__ import annotations

from typing import Final, NamedTuple

VERSION: Final = 1
"""Increase it when a prefix changes: the embeddings of documents are then computed again."""


class EmbeddingPrompts(NamedTuple):
    """Text before each query and before each document."""

    query: str = ""
    document: str = ""


_RETRIEVAL_SENTENCE: Final = EmbeddingPrompts("Represent this sentence for searching relevant passages: ")
_INSTRUCTION: Final = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# The first entry whose text is a part of the model's name applies: special cases before general ones.
_PROMPTS_BY_NAME: Final = (
    ("nomic-embed", EmbeddingPrompts("search_query: ", "search_document: ")),  # nomic-ai/nomic-embed-text-v1.5
    ("qwen3-embedding", EmbeddingPrompts(_INSTRUCTION)),  # Qwen/Qwen3-Embedding-0.6B
    ("e5-large-instruct", EmbeddingPrompts(f"{_INSTRUCTION} ")),  # intfloat/multilingual-e5-large-instruct
    ("e5-mistral", EmbeddingPrompts(f"{_INSTRUCTION} ")),  # intfloat/e5-mistral-7b-instruct
    ("e5-", EmbeddingPrompts("query: ", "passage: ")),  # intfloat/e5-base-v2, intfloat/multilingual-e5-base
    ("embeddinggemma", EmbeddingPrompts("task: search result | query: ", "title: none | text: ")),
    ("embedding-gemma", EmbeddingPrompts("task: search result | query: ", "title: none | text: ")),
    ("arctic-embed-l-v2", EmbeddingPrompts("query: ")),  # Snowflake/snowflake-arctic-embed-l-v2.0
    ("arctic-embed-m-v2", EmbeddingPrompts("query: ")),  # Snowflake/snowflake-arctic-embed-m-v2.0
    ("arctic-embed", _RETRIEVAL_SENTENCE),  # Snowflake/snowflake-arctic-embed-m-v1.5
    ("mxbai-embed", _RETRIEVAL_SENTENCE),  # mixedbread-ai/mxbai-embed-large-v1
    ("bge-small-en", _RETRIEVAL_SENTENCE),  # BAAI/bge-small-en-v1.5
    ("bge-base-en", _RETRIEVAL_SENTENCE),
    ("bge-large-en", _RETRIEVAL_SENTENCE),
)


def find_prompts(*names: str) -> EmbeddingPrompts:
    """Return the prefixes for a model with these names, from its header and its file; empty ones for other models."""
    text = " ".join(names).lower().replace("_", "-").replace(" ", "-")
    return next((prompts for part, prompts in _PROMPTS_BY_NAME if part in text), EmbeddingPrompts())
