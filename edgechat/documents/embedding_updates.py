"""Embeddings of chunks that have none yet. Each batch is one transaction, so that an interrupted update resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgechat.documents.collection import Collection
from edgechat.documents.embedding import TextEmbedder
from edgechat.documents.vectors import VectorModel, add_vectors, select_model

# Number of chunks in a request to the engine and in a transaction: less than a second of work on a slow computer for
# the small models that are usual.
_BATCH_CHUNKS: Final = 32


def embed_chunks(
    collection: Collection,
    embedder: TextEmbedder,
    on_progress: Callable[[int, int], None],
    is_cancelled: Callable[[], bool],
) -> int:
    """Compute the missing embeddings of a collection and return their number.

    Embeddings of another model are deleted first. `on_progress` receives the number of computed embeddings and of all
    that were missing. Raises EdgechatError.
    """
    model = VectorModel(embedder.model_id, embedder.model_name, embedder.n_embd)
    with collection.database.write() as db:
        select_model(db, model)
    with collection.database.read() as db:
        total = db.execute("SELECT count(*) FROM chunks WHERE block IS NULL").fetchone()[0]
    done, last_id = 0, 0
    while not is_cancelled():
        on_progress(done, total)
        with collection.database.read() as db:
            rows = db.execute(
                "SELECT id, heading, text FROM chunks WHERE block IS NULL AND id > ? ORDER BY id LIMIT ?",
                (last_id, _BATCH_CHUNKS),
            ).fetchall()
        if not rows:
            break
        texts = [f"{heading}\n{text}" if heading else text for _, heading, text in rows]
        embeddings = embedder.embed(texts, is_query=False)
        with collection.database.write() as db:
            add_vectors(db, [(row[0], embedding) for row, embedding in zip(rows, embeddings, strict=True)])
        done += len(rows)
        last_id = rows[-1][0]
    return done
