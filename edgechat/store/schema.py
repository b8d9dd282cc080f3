"""Database schema as a list of migrations. Released migrations are never edited; new migrations are appended."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

APPLICATION_ID: Final = 0x65646763  # "edgc" in ASCII; identifies databases of edgechat

# Number of characters at the start of each message that are in the search index. Indexing 50 MB would block all writers
# for a minute.
INDEXED_CHARS: Final = 1_000_000


class Migration(NamedTuple):
    """One schema change; its position in `MIGRATIONS`, counted from 1, is the schema version that it creates."""

    statements: Sequence[str]
    rewrites_rows: bool = False
    """True if the migration changes existing rows; edgechat then backs up the database first."""


_TABLES: Final = (
    # Keys encode the creation time: (milliseconds since 1970) * 2^20 + counter. Rows in a table and in the search index
    # are therefore in the order of creation, even in imported conversations. Keys are internal; exports contain only
    # IDs.
    """
    CREATE TABLE conversations (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        model TEXT NOT NULL,
        settings TEXT NOT NULL,
        pinned INTEGER NOT NULL,
        archived INTEGER NOT NULL,
        tags TEXT NOT NULL,
        folder TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL,
        head_key INTEGER
    ) STRICT
    """,
    "CREATE INDEX conversations_listed ON conversations (archived, pinned DESC, updated_at_ms DESC)",
    "CREATE INDEX conversations_updated ON conversations (pinned DESC, updated_at_ms DESC)",
    # The key of a child is greater than the keys of its parent and older siblings, even if the clock was set back.
    # SQLite checks parent references at commit, so that a recovery can insert messages in any order.
    """
    CREATE TABLE messages (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        conversation_key INTEGER NOT NULL REFERENCES conversations (key),
        parent_key INTEGER REFERENCES messages (key) DEFERRABLE INITIALLY DEFERRED,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        reasoning TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        model TEXT NOT NULL,
        finish_reason TEXT NOT NULL,
        n_tokens INTEGER,
        stats TEXT,
        context_start_id TEXT,
        active_child_key INTEGER,
        writer TEXT NOT NULL,
        hidden_by INTEGER,
        hidden_at_ms INTEGER
    ) STRICT
    """,
    "CREATE INDEX messages_of ON messages (conversation_key)",
    "CREATE INDEX messages_below ON messages (parent_key)",
    "CREATE INDEX messages_unfinished ON messages (key) WHERE finish_reason = 'streaming'",
    "CREATE INDEX messages_hidden ON messages (hidden_by) WHERE hidden_by IS NOT NULL",
    "CREATE INDEX messages_timed ON messages (model, key) WHERE stats IS NOT NULL",
    "CREATE TABLE attachments (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT",
    """
    CREATE TABLE message_attachments (
        message_key INTEGER NOT NULL REFERENCES messages (key) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        sha256 TEXT NOT NULL REFERENCES attachments (sha256),
        name TEXT NOT NULL,
        media_type TEXT NOT NULL,
        PRIMARY KEY (message_key, position)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX attachments_used ON message_attachments (sha256)",
    """
    CREATE TRIGGER attachments_dropped AFTER DELETE ON message_attachments BEGIN
        DELETE FROM attachments WHERE sha256 = old.sha256
            AND NOT EXISTS (SELECT 1 FROM message_attachments WHERE sha256 = old.sha256);
    END
    """,
)

# A trigram index finds code, parts of words, and text without spaces. A streaming reply is not indexed, because each
# checkpoint (every two seconds) would remove the reply from the index and insert it again.
_SEARCH_INDEX: Final = (
    f"""
    CREATE VIEW searchable AS SELECT key, substr(text, 1, {INDEXED_CHARS}) AS text FROM messages
        WHERE hidden_by IS NULL AND finish_reason <> 'streaming'
    """,
    """
    CREATE VIRTUAL TABLE message_search USING fts5(
        text, content = 'searchable', content_rowid = 'key', tokenize = 'trigram'
    )
    """,
    f"""
    CREATE TRIGGER message_added AFTER INSERT ON messages
        WHEN new.hidden_by IS NULL AND new.finish_reason <> 'streaming' BEGIN
        INSERT INTO message_search (rowid, text) VALUES (new.key, substr(new.text, 1, {INDEXED_CHARS}));
    END
    """,
    f"""
    CREATE TRIGGER message_changed AFTER UPDATE OF text, finish_reason, hidden_by ON messages BEGIN
        INSERT INTO message_search (message_search, rowid, text)
            SELECT 'delete', old.key, substr(old.text, 1, {INDEXED_CHARS})
            WHERE old.hidden_by IS NULL AND old.finish_reason <> 'streaming';
        INSERT INTO message_search (rowid, text) SELECT new.key, substr(new.text, 1, {INDEXED_CHARS})
            WHERE new.hidden_by IS NULL AND new.finish_reason <> 'streaming';
    END
    """,
    f"""
    CREATE TRIGGER message_removed AFTER DELETE ON messages
        WHEN old.hidden_by IS NULL AND old.finish_reason <> 'streaming' BEGIN
        INSERT INTO message_search (message_search, rowid, text)
            VALUES ('delete', old.key, substr(old.text, 1, {INDEXED_CHARS}));
    END
    """,
    """
    CREATE VIRTUAL TABLE title_search USING fts5(
        title, content = 'conversations', content_rowid = 'key', tokenize = 'trigram'
    )
    """,
    """
    CREATE TRIGGER title_added AFTER INSERT ON conversations BEGIN
        INSERT INTO title_search (rowid, title) VALUES (new.key, new.title);
    END
    """,
    """
    CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversations BEGIN
        INSERT INTO title_search (title_search, rowid, title) VALUES ('delete', old.key, old.title);
        INSERT INTO title_search (rowid, title) VALUES (new.key, new.title);
    END
    """,
    """
    CREATE TRIGGER title_removed AFTER DELETE ON conversations BEGIN
        INSERT INTO title_search (title_search, rowid, title) VALUES ('delete', old.key, old.title);
    END
    """,
)

MIGRATIONS: Final[Sequence[Migration]] = (Migration((*_TABLES, *_SEARCH_INDEX)),)


def read_schema_version(connection: sqlite3.Connection) -> int:
    """Return the number of migrations that were applied to the database."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def apply_migration(connection: sqlite3.Connection, number: int, migration: Migration) -> None:
    """Migrate a database to version `number` in one transaction, unless another process has already migrated it."""
    connection.execute("BEGIN EXCLUSIVE")
    try:
        if read_schema_version(connection) == number - 1:
            for statement in migration.statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors, such as a full disk
            connection.execute("ROLLBACK")
        raise


def read_schema(connection: sqlite3.Connection) -> frozenset[tuple[str, str]]:
    """Return the name and the SQL statement, with single spaces, of all tables, indexes, triggers and views."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return frozenset((str(name), " ".join(str(sql).split())) for name, sql in rows)


@functools.cache
def current_schema() -> frozenset[tuple[str, str]]:
    """Return the schema of a new database, in the form that `read_schema` returns."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number, migration in enumerate(MIGRATIONS, start=1):
            apply_migration(connection, number, migration)
        return read_schema(connection)
