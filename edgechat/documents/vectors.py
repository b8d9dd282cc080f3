"""Embeddings of a collection as 8-bit vectors: storage in blocks of many vectors, and exact search.

A vector is stored as integers from -127 to 127 with one factor; a dot product then differs by about 0.002 from that of
the exact vectors, which have a Euclidean norm of 1. A block is one row of the database with up to `BLOCK_VECTORS`
vectors, because reading few large rows is many times faster than reading one row per vector.
"""

from __future__ import annotations

import math
import secrets
import sqlite3
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from edgechat.documents.database import CollectionDatabase, get_meta, set_meta
from edgechat.documents.vector_scan import ScannedBlock, find_nearest, load_library
from edgechat.errors import DocumentError

BLOCK_VECTORS: Final = 512
# Maximum size of the vectors of one collection that stay in memory between searches. Larger collections are read from
# the database in each search.
_MAX_CACHED_BYTES: Final = 96 << 20


class VectorModel(msgspec.Struct, frozen=True):
    """Embedding model of the vectors of a collection."""

    id: str
    """Identity of the model file; "" if there are no vectors."""
    name: str = ""
    n_embd: int = 0


class VectorCache:
    """Vectors of one collection in memory, for all its connections. Threads can share it."""

    def __init__(self) -> None:
        """Create an empty cache."""
        self._lock = threading.Lock()
        self._revision = ""
        self._blocks: list[ScannedBlock] | None = None

    def get(self, revision: str) -> list[ScannedBlock] | None:
        """Return the blocks of a revision of the vectors; None if they are not in memory."""
        with self._lock:
            return self._blocks if revision == self._revision else None

    def put(self, revision: str, blocks: list[ScannedBlock]) -> None:
        """Keep the blocks of a revision in place of those of an earlier one."""
        with self._lock:
            self._revision, self._blocks = revision, blocks


def read_model(db: sqlite3.Connection) -> VectorModel:
    """Return the embedding model of the vectors in a collection."""
    model_id = get_meta(db, "embedding_model")
    return VectorModel(model_id, get_meta(db, "embedding_name"), int(get_meta(db, "n_embd") or 0))


def select_model(db: sqlite3.Connection, model: VectorModel) -> None:
    """Delete the vectors of any other model, and store the model of those that follow."""
    if read_model(db) == model:
        return
    db.execute("DELETE FROM vector_blocks")
    db.execute("UPDATE chunks SET block = NULL WHERE block IS NOT NULL")
    set_meta(db, "embedding_model", model.id)
    set_meta(db, "embedding_name", model.name)
    set_meta(db, "n_embd", str(model.n_embd))
    _change_revision(db)


def add_vectors(db: sqlite3.Connection, vectors: Sequence[tuple[int, Sequence[float]]]) -> None:
    """Store the embeddings of chunks, given as pairs of a chunk id and `n_embd` numbers.

    Chunks that were removed meanwhile, or that have a vector, are left out. Raises DocumentError for a wrong length,
    and for values that are not finite.
    """
    model = read_model(db)
    n_embd = model.n_embd
    new = []
    for chunk_id, values in vectors:
        if len(values) != n_embd:
            raise DocumentError(f"The embedding has {len(values)} values instead of {n_embd}. Update the collection.")
        _check_finite(values, model.name)
        if db.execute("SELECT 1 FROM chunks WHERE id = ? AND block IS NULL", (chunk_id,)).fetchone():
            new.append((chunk_id, *quantize(values)))
    while new:
        last = db.execute("SELECT id, n_vectors FROM vector_blocks ORDER BY id DESC LIMIT 1").fetchone()
        if last is None or last[1] >= BLOCK_VECTORS:
            cursor = db.execute(
                "INSERT INTO vector_blocks (n_vectors, chunk_ids, factors, vectors) VALUES (0, x'', x'', x'')"
            )
            last = (cursor.lastrowid, 0)
        taken, new = new[: BLOCK_VECTORS - last[1]], new[BLOCK_VECTORS - last[1] :]
        ids, factors = array("q", [item[0] for item in taken]), array("f", [item[1] for item in taken])
        _, old_ids, old_factors, old_vectors = _read_block(db, last[0])
        db.execute(
            "UPDATE vector_blocks SET n_vectors = ?, chunk_ids = ?, factors = ?, vectors = ? WHERE id = ?",
            (
                last[1] + len(taken), old_ids + ids.tobytes(), old_factors + factors.tobytes(),
                old_vectors + b"".join(item[2] for item in taken), last[0],
            ),
        )  # fmt: skip
        db.executemany("UPDATE chunks SET block = ? WHERE id = ?", [(last[0], chunk_id) for chunk_id in ids])
    _change_revision(db)


def delete_vectors(db: sqlite3.Connection, document_ids: Sequence[int]) -> None:
    """Delete the vectors of all chunks of documents, before the chunks are deleted. Each block is written once."""
    removed_ids: dict[int, set[int]] = {}
    for document_id in document_ids:
        for chunk_id, block in db.execute(
            "SELECT id, block FROM chunks WHERE document_id = ? AND block IS NOT NULL", (document_id,)
        ):
            removed_ids.setdefault(block, set()).add(chunk_id)
    if not removed_ids:
        return
    n_embd = read_model(db).n_embd
    for block, block_ids in sorted(removed_ids.items()):
        _, id_bytes, factor_bytes, vectors = _read_block(db, block)
        ids, factors = array("q", id_bytes), array("f", factor_bytes)
        kept = [i for i, chunk_id in enumerate(ids) if chunk_id not in block_ids]
        if not kept:
            db.execute("DELETE FROM vector_blocks WHERE id = ?", (block,))
            continue
        db.execute(
            "UPDATE vector_blocks SET n_vectors = ?, chunk_ids = ?, factors = ?, vectors = ? WHERE id = ?",
            (
                len(kept), array("q", [ids[i] for i in kept]).tobytes(),
                array("f", [factors[i] for i in kept]).tobytes(),
                b"".join(vectors[i * n_embd : (i + 1) * n_embd] for i in kept), block,
            ),
        )  # fmt: skip
    _change_revision(db)


def search_vectors(
    database: CollectionDatabase, cache: VectorCache, query: Sequence[float], n_results: int
) -> list[tuple[int, float]]:
    """Return the ids of the chunks with the most similar embeddings, best first, with their cosines.

    `query` is an embedding of the model of the collection. Returns nothing if the native bundle is of an earlier
    version and has no vector search. Raises DocumentError.
    """
    library = load_library()
    if library is None:
        return []
    with database.read() as db:
        model, revision = read_model(db), get_meta(db, "vector_revision")
        if model.n_embd != len(query):
            raise DocumentError(f"The query's embedding has {len(query)} values instead of {model.n_embd}.")
        _check_finite(query, model.name)
        blocks: Iterable[ScannedBlock] | None = cache.get(revision)
        if blocks is None:
            size = db.execute("SELECT ifnull(sum(n_vectors), 0) FROM vector_blocks").fetchone()[0] * model.n_embd
            blocks = _read_blocks(db, model.n_embd)
            if size <= _MAX_CACHED_BYTES:
                blocks = list(blocks)
                cache.put(revision, blocks)
        return find_nearest(library, blocks, query, n_results)


def quantize(values: Sequence[float]) -> tuple[float, bytes]:
    """Return a vector as a factor and 8-bit integers, whose products with the factor approximate the values."""
    largest = max(map(abs, values), default=0.0)
    if not largest:
        return 0.0, bytes(len(values))
    scale = 127 / largest
    return largest / 127, array("b", [round(value * scale) for value in values]).tobytes()


def _read_block(db: sqlite3.Connection, block: int) -> tuple[int, bytes, bytes, bytes]:
    row: tuple[int, bytes, bytes, bytes] | None = db.execute(
        "SELECT n_vectors, chunk_ids, factors, vectors FROM vector_blocks WHERE id = ?", (block,)
    ).fetchone()
    if row is None:
        raise sqlite3.DatabaseError(f"malformed: vector block {block} is missing")
    return row


def _read_blocks(db: sqlite3.Connection, n_embd: int) -> Iterator[ScannedBlock]:
    for n_vectors, ids, factors, vectors in db.execute(
        "SELECT n_vectors, chunk_ids, factors, vectors FROM vector_blocks ORDER BY id"
    ):
        if len(ids) != 8 * n_vectors or len(factors) != 4 * n_vectors or len(vectors) != n_embd * n_vectors:
            raise sqlite3.DatabaseError("malformed: a vector block has the wrong size")
        yield ScannedBlock(n_vectors, n_embd, ids, factors, vectors)


def _check_finite(values: Sequence[float], model_name: str) -> None:
    """Raise DocumentError if an embedding has infinite values or values that are no numbers."""
    if not all(map(math.isfinite, values)):
        raise DocumentError(
            f"The embedding model {model_name} computed values that are not finite numbers. Its file may be damaged, "
            "or its type of numbers too small for it: install another model or another quantisation of it."
        )


def _change_revision(db: sqlite3.Connection) -> None:
    # A random token, because a counter would be the same again in a collection that was removed and added.
    set_meta(db, "vector_revision", secrets.token_hex(16))
