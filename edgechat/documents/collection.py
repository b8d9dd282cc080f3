"""One collection: its sources, documents and chunks in a database. The index always equals the documents table."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.documents.bigrams import separate_text
from edgechat.documents.database import CollectionDatabase, get_meta, lock_updates, set_meta
from edgechat.documents.saved_sources import save_sources
from edgechat.documents.text import Chunk
from edgechat.documents.vectors import VectorCache, delete_vectors
from edgechat.prefix.shared_prefix import clear_pinned

_CHUNK_COLUMNS: Final = "text, heading, page, last_page, first_line, last_line"
_PREFIXED_CHUNK_COLUMNS: Final = "c.text, c.heading, c.page, c.last_page, c.first_line, c.last_line"
_MAX_BOUND_VALUES: Final = 500  # SQLite before 3.32 accepts 999 values in a statement


class DocumentProblem(msgspec.Struct, frozen=True):
    """File or folder that could not be read, or was read only in part, with the reason."""

    path: str
    reason: str


class CollectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a collection for lists."""

    name: str
    sources: tuple[str, ...] = ()
    n_documents: int = 0
    """Number of documents whose text is in the index."""
    n_chunks: int = 0
    n_bytes: int = 0
    """Total size of the files."""
    n_text_bytes: int = 0
    """Total size of the text in the index, in UTF-8."""
    n_embedded: int = 0
    """Number of chunks with embeddings."""
    embedding_model: str = ""
    """Name of the model of the embeddings; "" without embeddings."""
    updated_at_ms: int = 0
    """Time of the last complete update, in milliseconds since 1970; 0 before the first one."""
    problems: tuple[DocumentProblem, ...] = ()
    notices: tuple[DocumentProblem, ...] = ()
    """Documents of which parts could not be read, such as scanned pages."""
    is_damaged: bool = False
    """True if the collection must be rebuilt by an update; then the counts are 0, and the problems have the reason."""


class DocumentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Row of the documents table without the text."""

    id: int = 0
    """0 for a document that is not in the table yet."""
    source_id: int
    path: bytes
    """Absolute path as the system encodes it (`os.fsencode`)."""
    name: str
    size_bytes: int
    mtime_ns: int
    """Modification time; 0 if the next update must compare the hash in any case."""
    hash: bytes = b""
    """Hash of the content from which the text was extracted (`file_states.FileState`). With a problem, it is that of
    the content that cannot be read; empty if the next update must try again."""
    problem: str = ""
    notice: str = ""
    title: str = ""


class StoredChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Chunk with its place in the collection."""

    id: int
    document_id: int
    ordinal: int
    """Number of the chunk in its document, from 0."""
    document: str
    """Name of the document."""
    path: str
    """Absolute path of the document."""
    chunk: Chunk


class Collection:
    """Open collection. Threads of this process can share it."""

    def __init__(self, path: Path, *, is_new: bool = False, vector_cache: VectorCache | None = None) -> None:
        """Open or create the database at `path`. Raises DocumentError and DamagedCollectionError."""
        self.name = path.stem
        self.path = path
        self.database = CollectionDatabase(path, is_new=is_new)
        self.vector_cache = vector_cache or VectorCache()

    def close(self) -> None:
        """Close the database. Further calls have no effect."""
        self.database.close()

    def __enter__(self) -> Collection:  # noqa: PYI034  (typing.Self needs Python 3.11)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def lock_for_update(self) -> Iterator[None]:
        """Hold the lock of updates, so that two updates never run at the same time.

        Raises DocumentError if another update runs, or if the file was removed or replaced since it was opened.
        """
        with lock_updates(self.path):
            self.database.check_identity()
            yield

    # Sources

    def sources(self) -> list[tuple[int, Path]]:
        """Return the ids and paths of the sources in the order in which they were added."""
        with self.database.read() as db:
            rows = db.execute("SELECT id, path FROM sources ORDER BY id").fetchall()
        return [(row[0], Path(os.fsdecode(row[1]))) for row in rows]

    def add_sources(self, paths: Iterable[Path]) -> None:
        """Add folders and files, which the next update reads. Paths that are sources already are ignored."""
        with self.database.write() as db:
            db.executemany("INSERT OR IGNORE INTO sources (path) VALUES (?)", [(os.fsencode(path),) for path in paths])

    def remove_source(self, path: Path) -> bool:
        """Remove a source with its documents and the cached prompts; return False if `path` is not a source.

        Raises DocumentError. Files that are in another source, too, are added again by the next update.
        """
        with self.lock_for_update():
            with self.database.write() as db:
                row = db.execute("SELECT id FROM sources WHERE path = ?", (os.fsencode(path),)).fetchone()
                if row is None:
                    return False
                ids = [document[0] for document in db.execute("SELECT id FROM documents WHERE source_id = ?", row)]
                _delete_documents(db, ids)
                db.execute("DELETE FROM sources WHERE id = ?", row)
            self.save_sources()
        clear_pinned(paths.prefix_dir(), self.name)
        return True

    def save_sources(self) -> None:
        """Write the list of the sources beside the database, for a rebuild, while the caller holds the lock."""
        save_sources(self.path, (path for _, path in self.sources()))

    # Documents

    def read_records(self) -> dict[bytes, DocumentRecord]:
        """Return the records of all documents by path."""
        names = list(DocumentRecord.__struct_fields__)
        with self.database.read() as db:
            rows = db.execute(f"SELECT {', '.join(names)} FROM documents").fetchall()
        return {row[names.index("path")]: DocumentRecord(**dict(zip(names, row, strict=True))) for row in rows}

    def replace_documents(self, documents: Iterable[tuple[DocumentRecord, Sequence[Chunk]]]) -> None:
        """Store documents with their chunks in one transaction, each in place of the document with the same path."""
        with self.database.write() as db:
            pairs = list(documents)
            old_ids = {record.path: _find_id(db, record.path) for record, _ in pairs}
            delete_vectors(db, [document_id for document_id in old_ids.values() if document_id is not None])
            for record, chunks in pairs:
                _replace_document(db, record, chunks, old_ids[record.path])

    def set_file_times(self, records: Iterable[DocumentRecord]) -> None:
        """Store the sizes and times of files whose content has not changed."""
        with self.database.write() as db:
            db.executemany(
                "UPDATE documents SET size_bytes = ?, mtime_ns = ? WHERE id = ?",
                [(record.size_bytes, record.mtime_ns, record.id) for record in records],
            )

    def remove_documents(self, document_ids: Iterable[int]) -> None:
        """Remove documents with their chunks and vectors in one transaction."""
        with self.database.write() as db:
            _delete_documents(db, list(document_ids))

    def finish_update(self, extraction: str) -> None:
        """Store the time of a complete update, and the versions of what extracted the text."""
        with self.database.write() as db:
            set_meta(db, "updated_at_ms", str(time.time_ns() // 1_000_000))
            set_meta(db, "extraction", extraction)

    def read_extraction(self) -> str:
        """Return the versions of what extracted the text in the last complete update; "" before the first one."""
        with self.database.read() as db:
            return get_meta(db, "extraction")

    # Chunks

    def read_chunks(self, chunk_ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Return the chunks with the given ids; ids of removed chunks are left out."""
        found: dict[int, StoredChunk] = {}
        with self.database.read() as db:
            for start in range(0, len(chunk_ids), _MAX_BOUND_VALUES):
                ids = chunk_ids[start : start + _MAX_BOUND_VALUES]
                marks = ", ".join("?" * len(ids))
                found |= {chunk.id: chunk for chunk in _select_chunks(db, f"c.id IN ({marks})", ids)}
        return found

    def iterate_chunks(self) -> Iterator[StoredChunk]:
        """Yield all chunks. Documents are in the order in which they were added, which later additions keep."""
        with self.database.read() as db:
            yield from _select_chunks(db, "TRUE ORDER BY c.document_id, c.ordinal")

    def describe(self) -> CollectionInfo:
        """Return the description of the collection."""
        with self.database.read() as db:
            sources = db.execute("SELECT path FROM sources ORDER BY id").fetchall()
            totals = db.execute(
                "SELECT ifnull(sum(problem = ''), 0), ifnull(sum(n_chunks), 0), ifnull(sum(size_bytes), 0), "
                "ifnull(sum(n_text_bytes), 0) FROM documents"
            ).fetchone()
            n_embedded = db.execute("SELECT ifnull(sum(n_vectors), 0) FROM vector_blocks").fetchone()[0]
            rows = db.execute(
                "SELECT path, problem, notice FROM documents WHERE problem <> '' OR notice <> '' ORDER BY id"
            ).fetchall()
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        return CollectionInfo(
            name=self.name,
            sources=tuple(os.fsdecode(row[0]) for row in sources),
            n_documents=totals[0], n_chunks=totals[1], n_bytes=totals[2], n_text_bytes=totals[3],
            n_embedded=n_embedded,
            embedding_model=meta.get("embedding_name", "") if n_embedded else "",
            updated_at_ms=int(meta.get("updated_at_ms", "0")),
            problems=tuple(DocumentProblem(os.fsdecode(row[0]), row[1]) for row in rows if row[1]),
            notices=tuple(DocumentProblem(os.fsdecode(row[0]), row[2]) for row in rows if row[2]),
        )  # fmt: skip


def _select_chunks(db: sqlite3.Connection, condition: str, values: Sequence[int] = ()) -> Iterator[StoredChunk]:
    rows = db.execute(
        f"SELECT c.id, c.document_id, c.ordinal, d.name, d.path, {_PREFIXED_CHUNK_COLUMNS} "
        f"FROM chunks c JOIN documents d ON d.id = c.document_id WHERE {condition}",
        values,
    )
    for row in rows:
        text, heading, page, last_page, first_line, last_line = row[5:]
        chunk = Chunk(
            text=text, heading=heading, page=page, last_page=last_page, first_line=first_line, last_line=last_line
        )
        yield StoredChunk(
            id=row[0], document_id=row[1], ordinal=row[2], document=row[3], path=os.fsdecode(row[4]), chunk=chunk
        )  # fmt: skip


def _find_id(db: sqlite3.Connection, path: bytes) -> int | None:
    row = db.execute("SELECT id FROM documents WHERE path = ?", (path,)).fetchone()
    return row[0] if row is not None else None


def _replace_document(
    db: sqlite3.Connection, record: DocumentRecord, chunks: Sequence[Chunk], old_id: int | None
) -> None:
    """Store a document; it keeps the id of the one with the same path, and so its place in the order."""
    if old_id is not None:
        _delete_chunks(db, old_id)
    texts = [(make_valid_text(chunk.text), make_valid_text(chunk.heading)) for chunk in chunks]
    values = {
        **msgspec.structs.asdict(record), "id": old_id,
        "name": make_valid_text(record.name), "title": make_valid_text(record.title),
        "problem": make_valid_text(record.problem), "notice": make_valid_text(record.notice),
        "n_chunks": len(chunks), "n_text_bytes": sum(len(text.encode()) for text, _ in texts),
    }  # fmt: skip
    names = list(values)
    assignments = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    (document_id,) = db.execute(
        f"INSERT INTO documents ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT (path) DO UPDATE SET {assignments} RETURNING id",
        list(values.values()),
    ).fetchone()
    name = separate_text(make_valid_text(record.name))
    for ordinal, (chunk, (text, heading)) in enumerate(zip(chunks, texts, strict=True)):
        cursor = db.execute(
            f"INSERT INTO chunks (document_id, ordinal, {_CHUNK_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (document_id, ordinal, text, heading, chunk.page, chunk.last_page, chunk.first_line, chunk.last_line),
        )
        db.execute(
            "INSERT INTO chunk_search (rowid, name, heading, text) VALUES (?, ?, ?, ?)",
            (cursor.lastrowid, name, separate_text(heading), separate_text(text)),
        )


def _delete_documents(db: sqlite3.Connection, document_ids: Sequence[int]) -> None:
    delete_vectors(db, document_ids)
    for document_id in document_ids:
        _delete_chunks(db, document_id)
    db.executemany("DELETE FROM documents WHERE id = ?", [(document_id,) for document_id in document_ids])


def _delete_chunks(db: sqlite3.Connection, document_id: int) -> None:
    """Delete the chunks of a document, whose vectors were deleted before, from the chunks and their index."""
    # An FTS5 table with external content has to be told the texts that it loses.
    db.execute(
        "INSERT INTO chunk_search (chunk_search, rowid, name, heading, text) "
        "SELECT 'delete', t.id, t.name, t.heading, t.text FROM chunk_texts t JOIN chunks c ON c.id = t.id "
        "WHERE c.document_id = ?",
        (document_id,),
    )
    db.execute("DELETE FROM chunks WHERE document_id = ?", (document_id,))


def make_valid_text(text: str) -> str:
    """Return `text` as text that SQLite can store: without NUL characters, and with "?" in place of surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
