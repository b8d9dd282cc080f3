"""Hybrid search in collections: keywords and embeddings, fused by reciprocal rank, then optionally reranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.documents.collection import Collection, StoredChunk
from edgechat.documents.embedding import TextEmbedder, TextReranker
from edgechat.documents.keyword_search import find_coverage, search_keywords
from edgechat.documents.passages import PassageScores
from edgechat.documents.text import Chunk
from edgechat.documents.vector_scan import load_library
from edgechat.documents.vectors import read_model, search_vectors

# Constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009). Their 60 is for long lists of equally
# good systems: a chunk that both parts have at rank 40 then comes before the one with the part number of the question.
_FUSION_K: Final = 10
# Weight of the ranks by similarity: the maximum, if the best chunk has no word of the query, and the minimum, if it has
# all of them. With `edgechat bench documents`, recall@5 was 0.88 by keywords, 0.83 by embeddings and 0.91 with equal
# weights and the constant 60, and is 0.97; for queries in the words of the documents it was 0.92, 0.65 and 0.80, and is
# 0.93.
_MAX_SIMILARITY_WEIGHT: Final = 2.0
_MIN_SIMILARITY_WEIGHT: Final = 0.05
# Results of a hybrid search with less than this share of the best fused score are left out of prompts. For questions of
# `edgechat bench documents` (640 in generated documents, 800 in real ones), recall at 5, 10 and 20 results is the same
# with 0 and 0.3, while the mean number of results falls from 48 to 25. With 0.4, recall at 20 falls by up to 0.005.
_MIN_FUSED_SHARE: Final = 0.3
_MIN_CANDIDATES: Final = 100
_RERANKED: Final = 30

ChunkKey = tuple[int, int]
"""Index of a collection in the search, and id of a chunk in it."""


class FoundChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a search."""

    chunk: Chunk
    collection: str
    document: str
    """Name of the document."""
    path: str
    scores: PassageScores
    document_id: int
    ordinal: int
    """Number of the chunk in its document, from 0."""


def can_use_embeddings(collection: Collection, embedder: TextEmbedder | None) -> bool:
    """Return whether a search in the collection uses embeddings: there are some, of the same model."""
    if embedder is None or load_library() is None:
        return False
    with collection.database.read() as db:
        return read_model(db).id == embedder.model_id


def search(
    collections: Sequence[Collection],
    query: str,
    *,
    embedder: TextEmbedder | None = None,
    reranker: TextReranker | None = None,
    n_results: int,
) -> list[FoundChunk]:
    """Return the best chunks for a query, best first. The same index and query always give the same results.

    Without an embedder, or without embeddings of its model, only keywords are searched. Raises EdgechatError.
    """
    n_candidates = max(_MIN_CANDIDATES, n_results)
    keyword_hits: list[tuple[float, ChunkKey]] = []
    for i, collection in enumerate(collections):
        hits = search_keywords(collection.database, query, n_candidates)
        keyword_hits += [(score, (i, chunk_id)) for chunk_id, score in hits]
    similar: list[tuple[float, ChunkKey]] = []
    embedded = [i for i, collection in enumerate(collections) if can_use_embeddings(collection, embedder)]
    if embedder is not None and embedded and query.strip():
        query_embedding = embedder.embed([query], is_query=True)[0]
        for i in embedded:
            collection = collections[i]
            nearest = search_vectors(collection.database, collection.vector_cache, query_embedding, n_candidates)
            similar += [(cosine, (i, chunk_id)) for chunk_id, cosine in nearest]
    coverage = _find_coverage(collections, query, keyword_hits) if similar else 1.0
    scores = fuse(keyword_hits, similar, n_candidates, coverage)
    keys = sorted(scores, key=lambda key: (-(scores[key].fused or 0), key))
    keys = keys[: max(n_results, _RERANKED if reranker else 0)]
    chunks = _read_chunks(collections, keys)
    keys = [key for key in keys if key in chunks]  # others were removed by an update after the search
    if reranker is not None and keys:
        top = keys[:_RERANKED]
        relevances = reranker.score(query, [chunks[key].chunk.text for key in top])
        for key, relevance in zip(top, relevances, strict=True):
            scores[key] = msgspec.structs.replace(scores[key], relevance=relevance)
        keys = sorted(top, key=lambda key: (-(scores[key].relevance or 0), top.index(key))) + keys[_RERANKED:]
    return [_make_result(collections[key[0]].name, chunks[key], scores[key]) for key in keys[:n_results]]


def leave_out_weak(results: Sequence[FoundChunk]) -> list[FoundChunk]:
    """Return the results of a search without those far below the best fused score.

    Similarity always finds something: without this, one passage with a rare word of the query brings dozens of others.
    All results of a search by keywords only, or with a reranker, are returned.
    """
    if any(result.scores.relevance is not None for result in results) or not any(
        result.scores.similarity_rank for result in results
    ):
        return list(results)
    min_score = _MIN_FUSED_SHARE * max(result.scores.fused or 0 for result in results)
    return [result for result in results if (result.scores.fused or 0) >= min_score]


def _find_coverage(
    collections: Sequence[Collection], query: str, keyword_hits: Sequence[tuple[float, ChunkKey]]
) -> float:
    """Return the share of the words of a query that the best hit of the keyword search has; 0 without hits."""
    if not keyword_hits:
        return 0.0
    i, chunk_id = min(keyword_hits, key=_by_score)[1]
    return find_coverage(collections[i].database, query, chunk_id)


def fuse(
    keyword_hits: Sequence[tuple[float, ChunkKey]],
    similar: Sequence[tuple[float, ChunkKey]],
    n_candidates: int,
    coverage: float,
) -> dict[ChunkKey, PassageScores]:
    """Return the scores of the best hits of both parts; each hit is a pair of a score, higher is better, and a key.

    `coverage` is the share of the words of the query in the best hit by keywords. The less of the query the keywords
    find, the more the similarity counts.
    """
    weight = max(_MIN_SIMILARITY_WEIGHT, _MAX_SIMILARITY_WEIGHT * (1 - coverage) ** 2)
    scores: dict[ChunkKey, PassageScores] = {}
    for rank, (_, key) in enumerate(sorted(keyword_hits, key=_by_score)[:n_candidates], start=1):
        scores[key] = PassageScores(bm25_rank=rank, fused=1 / (_FUSION_K + rank))
    for rank, (cosine, key) in enumerate(sorted(similar, key=_by_score)[:n_candidates], start=1):
        others = scores.get(key, PassageScores())
        scores[key] = msgspec.structs.replace(
            others, similarity_rank=rank, similarity=cosine, fused=(others.fused or 0) + weight / (_FUSION_K + rank)
        )
    return scores


def _by_score(hit: tuple[float, ChunkKey]) -> tuple[float, ChunkKey]:
    return -hit[0], hit[1]


def _read_chunks(collections: Sequence[Collection], keys: Sequence[ChunkKey]) -> dict[ChunkKey, StoredChunk]:
    chunks: dict[ChunkKey, StoredChunk] = {}
    for i, collection in enumerate(collections):
        found = collection.read_chunks([chunk_id for index, chunk_id in keys if index == i])
        chunks |= {(i, chunk_id): chunk for chunk_id, chunk in found.items()}
    return chunks


def _make_result(collection: str, stored: StoredChunk, scores: PassageScores) -> FoundChunk:
    return FoundChunk(
        chunk=stored.chunk, collection=collection, document=stored.document, path=stored.path, scores=scores,
        document_id=stored.document_id, ordinal=stored.ordinal,
    )  # fmt: skip
