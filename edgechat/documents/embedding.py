"""Embedding models and rerankers for documents: their interfaces."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol


class TextEmbedder(Protocol):
    """Embedding model that is ready for use."""

    @property
    def model_name(self) -> str:
        """Name for the user."""

    @property
    def model_id(self) -> str:
        """Identity of the model file and of the form of its input. Embeddings of another id are not comparable."""

    @property
    def n_embd(self) -> int:
        """Number of values of an embedding."""

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        """Return the embeddings of texts, each with a Euclidean norm of 1. Raises EdgechatError."""


class TextReranker(Protocol):
    """Reranker that is ready for use."""

    @property
    def name(self) -> str:
        """Name for the user."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return how relevant each text is to the query, from 0 to 1. Raises EdgechatError."""
