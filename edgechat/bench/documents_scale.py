"""Times of searches in a large collection of generated passages with random embeddings."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.documents.collection import Collection, DocumentRecord
from edgechat.documents.database import set_meta
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.retrieval import find_passages
from edgechat.documents.text import Chunk
from edgechat.documents.vectors import BLOCK_VECTORS, VectorModel, select_model

N_DIMS: Final = 384
_N_WORDS: Final = 60_000
_N_PARAGRAPHS: Final = 20_000
_PARAGRAPHS_PER_CHUNK: Final = 3
_WORDS_PER_PARAGRAPH: Final = 55
_CHUNKS_PER_DOCUMENT: Final = 50
_N_REPETITIONS: Final = 9
_MAX_TOKENS: Final = 3072
# Ranks of the words of each query by frequency, which falls with the rank as in natural languages (Zipf's law).
_QUERIES: Final = {
    "rare words": (30_000, 40_000, 50_000),
    "usual words": (500, 900, 2_000, 5_000),
    "frequent words": (20, 40, 60, 90, 130),
    "words of nearly all passages": (0, 1, 2, 3),
    "30 words": tuple(range(5, 395, 13)),
}


class SearchTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the search for one query, in milliseconds."""

    query: str
    first_ms: float
    """Time of the first search after the collection was opened, which reads the embeddings into memory."""
    median_ms: float
    """Median time of nine searches that follow."""
    cpu_ms: float
    """Median CPU time of these searches, which other programs influence less."""


class SearchScale(msgspec.Struct, frozen=True, kw_only=True):
    """Times of searches in one collection, without those of the embedding model."""

    n_chunks: int
    n_bytes: int
    times: tuple[SearchTimes, ...]


class RandomEmbedder:
    """Returns the same random embedding for every text."""

    model_name = model_id = "random"
    n_embd = N_DIMS

    def __init__(self, numbers: random.Random) -> None:
        values = [numbers.gauss(0, 1) for _ in range(N_DIMS)]
        norm = math.sqrt(sum(value * value for value in values))
        self._embedding = array("f", [value / norm for value in values])

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:  # noqa: ARG002
        return [self._embedding for _ in texts]


def measure_search_times(root: Path, n_chunks: int, seed: int, on_progress: Callable[[str], None]) -> SearchScale:
    """Make a collection in the folder `root`, search in it, and return the times. Raises DocumentError."""
    numbers = random.Random(seed)  # noqa: S311  (no secret)
    words = ["".join(numbers.choices("abcdefghijklmnopqrstuvwxyz", k=numbers.randint(2, 11))) for _ in range(_N_WORDS)]
    library = DocumentLibrary(root)
    with library.create("scale") as collection:
        _add_documents(collection, _make_paragraphs(words, numbers), n_chunks, numbers, on_progress)
        _add_vectors(collection, numbers)
        n_bytes = collection.path.stat().st_size
    embedder = RandomEmbedder(numbers)
    times = []
    for name, ranks in _QUERIES.items():
        on_progress(f"Searching for {name}")
        query = " ".join(words[rank] for rank in ranks)
        opened = DocumentLibrary(root)
        pairs = [_time_search(opened, query, embedder) for _ in range(_N_REPETITIONS + 1)]
        times.append(SearchTimes(
            query=name, first_ms=pairs[0][0],
            median_ms=statistics.median(wall for wall, _ in pairs[1:]),
            cpu_ms=statistics.median(cpu for _, cpu in pairs[1:]),
        ))  # fmt: skip
    return SearchScale(n_chunks=n_chunks, n_bytes=n_bytes, times=tuple(times))


def format_scale(scale: SearchScale) -> str:
    """Format the times as a table in Markdown."""
    lines = [
        f"{scale.n_chunks:,} generated passages with embeddings of {N_DIMS} values, {scale.n_bytes / 1e6:.0f} MB",
        "",
        "| query | first search | median | CPU time |",
        "|---|--:|--:|--:|",
        *(f"| {t.query} | {t.first_ms:.1f} ms | {t.median_ms:.1f} ms | {t.cpu_ms:.1f} ms |" for t in scale.times),
    ]
    return "\n".join(lines)


def _time_search(library: DocumentLibrary, query: str, embedder: RandomEmbedder) -> tuple[float, float]:
    """Return the time and the CPU time of a search, in milliseconds."""
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    find_passages(
        library, ["scale"], query, count_tokens=lambda text: len(text) // 4, max_tokens=_MAX_TOKENS, embedder=embedder
    )
    return (time.perf_counter() - started_at) * 1e3, (time.process_time() - cpu_started_at) * 1e3


def _make_paragraphs(words: Sequence[str], numbers: random.Random) -> list[str]:
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return [" ".join(numbers.choices(words, cum_weights=weights, k=_WORDS_PER_PARAGRAPH)) for _ in range(_N_PARAGRAPHS)]


def _add_documents(
    collection: Collection, paragraphs: Sequence[str], n_chunks: int, numbers: random.Random,
    on_progress: Callable[[str], None],
) -> None:  # fmt: skip
    collection.add_sources([Path("/generated")])
    ((source_id, _),) = collection.sources()
    for start in range(0, n_chunks, _CHUNKS_PER_DOCUMENT):
        on_progress(f"Making {start:,} of {n_chunks:,} passages")
        record = DocumentRecord(
            source_id=source_id, path=f"/generated/{start}".encode(), name=f"{start}.txt", size_bytes=0, mtime_ns=0
        )
        texts = [
            "\n\n".join(numbers.choices(paragraphs, k=_PARAGRAPHS_PER_CHUNK))
            for _ in range(min(_CHUNKS_PER_DOCUMENT, n_chunks - start))
        ]
        collection.replace_documents([(record, [Chunk(text=text) for text in texts])])


def _add_vectors(collection: Collection, numbers: random.Random) -> None:
    """Store random vectors for all chunks, many times faster than with an embedding model."""
    with collection.database.write() as db:
        select_model(db, VectorModel("random", "random", N_DIMS))
        ids = [row[0] for row in db.execute("SELECT id FROM chunks ORDER BY id").fetchall()]
        for start in range(0, len(ids), BLOCK_VECTORS):
            block = ids[start : start + BLOCK_VECTORS]
            cursor = db.execute(
                "INSERT INTO vector_blocks (n_vectors, chunk_ids, factors, vectors) VALUES (?, ?, ?, ?)",
                (
                    len(block), array("q", block).tobytes(), array("f", [0.001] * len(block)).tobytes(),
                    numbers.randbytes(N_DIMS * len(block)),
                ),
            )  # fmt: skip
            db.executemany("UPDATE chunks SET block = ? WHERE id = ?", [(cursor.lastrowid, i) for i in block])
        set_meta(db, "vector_revision", "1")
