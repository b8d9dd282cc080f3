"""Database schema of a collection. A collection can be rebuilt from its sources, so there are no migrations."""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x65646F63
"""SQLite application ID of a collection: "edoc"."""
SCHEMA_VERSION: Final = 2
"""Number of the schema, and of what extraction and splitting do with the same file. A collection with an older number
is rebuilt by its next update."""

# Chunk ids are never used again, so that a result of a search never refers to another chunk. Paths are BLOBs, because
# file names need not be UTF-8. `block` is the id of the vector block with the embedding of the chunk.
_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE sources (id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source_id INTEGER NOT NULL REFERENCES sources (id),
    path BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    hash BLOB NOT NULL,
    problem TEXT NOT NULL,
    notice TEXT NOT NULL,
    title TEXT NOT NULL,
    n_chunks INTEGER NOT NULL,
    n_text_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX documents_source ON documents (source_id);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document_id INTEGER NOT NULL REFERENCES documents (id),
    ordinal INTEGER NOT NULL,
    heading TEXT NOT NULL,
    page INTEGER,
    last_page INTEGER,
    first_line INTEGER,
    last_line INTEGER,
    block INTEGER,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX chunks_document ON chunks (document_id, ordinal);
CREATE INDEX chunks_without_vector ON chunks (id) WHERE block IS NULL;
CREATE TABLE vector_blocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    n_vectors INTEGER NOT NULL,
    chunk_ids BLOB NOT NULL,
    factors BLOB NOT NULL,
    vectors BLOB NOT NULL
) STRICT;
"""

# The texts of the index are those of the view, so that SQLite stores them once. The function `separate_text` (of
# `bigrams`) exists in connections of `database.connect` only.
_SEARCH: Final = """
CREATE VIEW chunk_texts AS
    SELECT c.id AS id, separate_text(d.name) AS name, separate_text(c.heading) AS heading, separate_text(c.text) AS text
    FROM chunks c JOIN documents d ON d.id = c.document_id;
CREATE VIRTUAL TABLE chunk_search USING fts5(
    name, heading, text, content='chunk_texts', content_rowid='id', tokenize='unicode61 remove_diacritics 2'
);
"""

SCHEMA: Final = (
    f"{_TABLES}{_SEARCH}PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA_VERSION};\n"
)
