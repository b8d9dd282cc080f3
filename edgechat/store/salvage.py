"""Copy of all readable rows of a damaged database into another database, with repaired values and references."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.chat.messages import first_line
from edgechat.store import page_salvage, tree_sql
from edgechat.store.database import Database, connect
from edgechat.store.row_repair import COLUMNS, repair_row
from edgechat.store.sqlite_errors import is_locked_error, is_read_only_error

_SIGNATURE: Final = b"SQLite format 3\0"
"""First bytes of every database file (https://www.sqlite.org/fileformat2.html#magic_header_string)."""
_PAYLOAD_FRACTIONS: Final = b"\x40\x20\x20"
"""Payload fractions, constant header bytes that identify a database even if its signature is damaged (same source)."""
_PAYLOAD_FRACTIONS_OFFSET: Final = 21
_REPAIR_INFIX: Final = ".repair-"
"""Part of the name of the temporary folder that contains a copy with a repaired signature."""
# Limits for the time that SQLite may spend on a damaged database: damaged b-trees can make it read in circles.
_MIN_TIMEOUT_S: Final = 30.0
_TIMEOUT_S_PER_MB: Final = 1.0
_PROGRESS_INSTRUCTIONS: Final = 100_000
_SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeError, OverflowError)
_RowKey = tuple[str, object]
"""Name of a table, and key of a row in it."""


class SalvageResult(msgspec.Struct):
    """Numbers of rows that were copied, repaired and lost when a damaged database was salvaged."""

    n_messages: int = 0
    """Number of copied messages."""
    n_repaired: int = 0
    """Number of copied rows in which damaged values were replaced."""
    n_lost: int = 0
    """Number of rows that exist but could not be read, and of attachments without their message or their content."""


def salvage(damaged_file: Path, database: Database, database_name: str) -> SalvageResult:
    """Copy every readable row of `damaged_file` into `database`, in one transaction; the damaged file is not changed.

    Rows that the database already contains are skipped. Temporary files get names that start with `database_name`.
    Raises StoreError, sqlite3.Error and OSError.
    """
    if not damaged_file.stat().st_size:  # only the log was moved aside; SQLite would delete the log of an empty file
        with database.write_transaction(durable=True) as db:
            copier = _RowCopier(db, extends_messages=True)
            copier.copy_pages(damaged_file)
            return copier.finish()
    with (
        _copy_with_signature(damaged_file, database_name + _REPAIR_INFIX) as path,
        contextlib.closing(open_damaged_database(path)) as damaged,
        database.write_transaction(durable=True) as db,
    ):
        damaged.execute("PRAGMA writable_schema = ON")  # without this, SQLite refuses to read a truncated file
        copier = _RowCopier(db)
        for table in COLUMNS:
            copier.copy_readable_rows(damaged, table)
        has_log = path.with_name(path.name + "-wal").is_file()
        if has_log or copier.unread_keys or find_structural_damage(damaged):
            copier.copy_pages(damaged_file)
        return copier.finish()


class _RowCopier:
    """Inserts rows of a damaged database with repaired values."""

    def __init__(self, db: sqlite3.Connection, *, extends_messages: bool = False) -> None:
        """With `extends_messages`, replace the text of a stored message by a longer text that begins with it.

        The option is for rows that are newer than those in `db`.
        """
        self._db = db
        self._extends_messages = extends_messages
        db.execute("PRAGMA defer_foreign_keys = ON")
        self._result = SalvageResult()
        self._copied_keys: set[_RowKey] = set()
        self.unread_keys: set[_RowKey] = set()
        """Rows that SQLite could not read."""
        self._new_conversations: set[object] = set()
        """Keys of the conversations that were copied."""
        self._new_hashes: dict[str, str] = {}
        """Computed SHA-256 hashes of attachments, by the stored hash; only for attachments where the two differ."""

    def copy_readable_rows(self, damaged: sqlite3.Connection, table: str) -> None:
        """Copy the rows of a table that SQLite can read."""
        names = ", ".join(COLUMNS[table])
        if table == "message_attachments":  # this table has no rowid
            for direction in ("ASC", "DESC"):
                statement = f"SELECT {names} FROM {table} ORDER BY message_key {direction}"
                for row in _read_rows_until_damage(damaged, statement):
                    self._copy(table, row)
            return
        for rowid in sorted(_collect_rowids(damaged, table)):
            rows = list(_read_rows_until_damage(damaged, f"SELECT {names} FROM {table} WHERE rowid = {rowid}"))
            if rows:
                self._copy(table, rows[0])
            else:
                self.unread_keys.add((table, rowid))

    def copy_pages(self, damaged_file: Path) -> None:
        """Copy the rows in the pages of a damaged database and of its log."""
        for row in page_salvage.find_rows(damaged_file):
            has_key = "key" in COLUMNS[row.table]
            self._copy(row.table, (row.rowid, *row.values[1:]) if has_key else tuple(row.values))

    def _copy(self, table: str, stored_values: Iterable[Any]) -> None:
        """Copy a row, unless a row with the same key was copied before."""
        values, is_changed = repair_row(table, stored_values)
        if table == "attachments":
            content_hash = hashlib.sha256(values["data"]).hexdigest()
            if content_hash != values["sha256"]:
                self._new_hashes[values["sha256"]] = values["sha256"] = content_hash
                is_changed = True
        row_key = (table, _get_key(table, values))
        if row_key in self._copied_keys:
            return
        try:
            is_inserted = self._insert(table, values) or self._insert_with_new_key(table, values)
        except _SQLITE_ERRORS:
            self._result.n_lost += 1
            return
        self._copied_keys.add(row_key)
        self._result.n_repaired += is_inserted and is_changed
        self._result.n_messages += is_inserted and table == "messages"
        if is_inserted and table == "conversations":
            self._new_conversations.add(values["key"])
        elif is_inserted and table == "messages" and values["conversation_key"] not in self._new_conversations:
            self._continue_conversation(values)

    def _insert(self, table: str, values: Mapping[str, Any]) -> bool:
        """Insert a row; return False if its key or its ID is already in the table, or if its key is unknown."""
        if values.get("key") == 0:
            return False
        statement = f"INSERT OR IGNORE INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
        return self._db.execute(statement, tuple(values.values())).rowcount == 1

    def _insert_with_new_key(self, table: str, values: Mapping[str, Any]) -> bool:
        """Insert a row with a new key, because its key is unknown or in use; return False if the row exists."""
        text_column = {"conversations": "title", "messages": "text"}.get(table)
        if text_column is None:
            return False
        is_copied = self._db.execute(
            f"SELECT 1 FROM {table} WHERE id = ? OR (key = ? AND {text_column} = ?)",
            (values["id"], values["key"], values[text_column]),
        ).fetchone()
        if is_copied:
            if self._extends_messages and table == "messages":
                self._extend_message(values)
            return False
        key = tree_sql.find_free_key(self._db, table, values["created_at_ms"])
        new_values = {**values, "key": key}
        if values["id"] == f"{values['key']:016x}":  # the ID is damaged, too
            new_values["id"] = f"{key:016x}"
        return self._insert(table, new_values)

    def _continue_conversation(self, values: Mapping[str, Any]) -> None:
        """Make a message the head of a conversation that was in the database, if it is newer than the head."""
        self._db.execute(
            "UPDATE conversations SET head_key = ? WHERE key = ? AND head_key < ? AND ? IS NULL",
            (values["key"], values["conversation_key"], values["key"], values["hidden_by"]),
        )

    def _extend_message(self, values: Mapping[str, Any]) -> None:
        columns = {name: values[name] for name in ("text", "reasoning", "finish_reason", "n_tokens", "stats")}
        condition = "id = ? AND length(text) <= length(?) AND substr(?, 1, length(text)) = text"
        tree_sql.update_row(
            self._db, "messages", columns, condition, values["id"], values["text"], values["text"]
        )  # fmt: skip

    def finish(self) -> SalvageResult:
        """Repair references between the rows, and return the counts."""
        self._result.n_lost += len(self.unread_keys - self._copied_keys)
        for stored_hash, content_hash in self._new_hashes.items():
            self._db.execute(
                "UPDATE message_attachments SET sha256 = ? "
                "WHERE sha256 = ? AND sha256 NOT IN (SELECT sha256 FROM attachments)",
                (content_hash, stored_hash),
            )
        self._result.n_lost += _repair_references(self._db)
        return self._result


def _get_key(table: str, values: Mapping[str, Any]) -> object:
    if table == "attachments":
        return values["sha256"]
    if table == "message_attachments":
        return values["message_key"], values["position"]
    return values["key"] or values["id"]


@contextlib.contextmanager
def _copy_with_signature(damaged_file: Path, prefix: str) -> Iterator[Path]:
    """Yield the damaged file, or a temporary file with a repaired signature if its signature is damaged.

    The temporary file is in the folder of the database, not in the system's folder for temporary files, because it
    contains conversations. It is in a new folder whose name starts with `prefix`. Raises OSError.
    """
    with damaged_file.open("rb") as file:
        header = file.read(_PAYLOAD_FRACTIONS_OFFSET + len(_PAYLOAD_FRACTIONS))
    if header.startswith(_SIGNATURE) or header[_PAYLOAD_FRACTIONS_OFFSET:] != _PAYLOAD_FRACTIONS:
        yield damaged_file
        return
    for old_folder in damaged_file.parent.glob(prefix + "*"):  # left by a recovery that was killed
        shutil.rmtree(old_folder, ignore_errors=True)
    # A failed cleanup must not make a committed recovery fail, because a second recovery would restore messages that
    # the user deleted after the first one.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=damaged_file.parent, ignore_cleanup_errors=True) as folder:
        repaired_file = Path(folder, "history.db")
        shutil.copyfile(damaged_file, repaired_file)
        wal = damaged_file.with_name(damaged_file.name + "-wal")
        if wal.is_file():
            shutil.copyfile(wal, repaired_file.with_name(repaired_file.name + "-wal"))
        with repaired_file.open("r+b") as file:
            file.write(_SIGNATURE)
        yield repaired_file


def open_damaged_database(path: Path) -> sqlite3.Connection:
    """Open a damaged database read-only; texts are bytes. Raises sqlite3.OperationalError.

    Queries fail after a time limit that depends on the size of the file.
    """
    # If there is no write-ahead log, `immutable` prevents SQLite from creating files next to the database.
    has_wal = path.with_name(path.name + "-wal").is_file()
    mode = "mode=ro" if has_wal else "mode=ro&immutable=1"
    connection = connect(path, mode)
    connection.text_factory = bytes
    deadline = time.monotonic() + _MIN_TIMEOUT_S + _TIMEOUT_S_PER_MB * path.stat().st_size / 1e6
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_INSTRUCTIONS)
    return connection


def find_structural_damage(damaged: sqlite3.Connection) -> bool:
    """Return whether a database from `open_damaged_database` fails SQLite's integrity check.

    Raises sqlite3.OperationalError if the database is locked or cannot be opened.
    """
    try:
        return [row[0] for row in damaged.execute("PRAGMA integrity_check")] != [b"ok"]
    except _SQLITE_ERRORS as error:
        if is_locked_error(error) or is_read_only_error(error):
            raise
        return True


def _collect_rowids(damaged: sqlite3.Connection, table: str) -> set[int]:
    """Return the rowids of a table that can be read from its two ends and from its indexes."""
    statements = [f"SELECT rowid FROM {table} NOT INDEXED ORDER BY rowid {direction}" for direction in ("ASC", "DESC")]
    # With ORDER BY, SQLite would read the table instead of the index.
    indexes = [
        row[1].decode("utf-8", "replace") for row in _read_rows_until_damage(damaged, f"PRAGMA index_list({table})")
    ]
    statements += [f'SELECT rowid FROM {table} INDEXED BY "{index}"' for index in indexes]
    return {row[0] for statement in statements for row in _read_rows_until_damage(damaged, statement)}


def _read_rows_until_damage(damaged: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(*_SQLITE_ERRORS):
        yield from damaged.execute(statement)


_HAS_DAMAGED_PARENT: Final = """
    parent_key IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM messages p WHERE p.key = messages.parent_key AND p.key < messages.key
            AND p.conversation_key = messages.conversation_key
    )
"""
_HAS_DAMAGED_CHILD: Final = """
    active_child_key IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM messages c WHERE c.key = messages.active_child_key AND c.parent_key = messages.key
    )
"""
_IS_HIDDEN_BY_DAMAGE: Final = (
    "(hidden_by IS NULL) <> (hidden_at_ms IS NULL) OR hidden_by NOT IN (SELECT key FROM messages)"
)
_HAS_DAMAGED_HEAD: Final = """
    head_key IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM messages m WHERE m.key = head_key AND m.conversation_key = conversations.key AND hidden_by IS NULL
    )
"""
_IS_ATTACHED_TO_NOTHING: Final = (
    "message_key NOT IN (SELECT key FROM messages) OR sha256 NOT IN (SELECT sha256 FROM attachments)"
)
DAMAGED_REFERENCES: Final = (
    "SELECT 1 FROM messages WHERE conversation_key NOT IN (SELECT key FROM conversations)",
    *(f"SELECT 1 FROM messages WHERE {c}" for c in (_HAS_DAMAGED_PARENT, _HAS_DAMAGED_CHILD, _IS_HIDDEN_BY_DAMAGE)),
    f"SELECT 1 FROM conversations WHERE {_HAS_DAMAGED_HEAD}",
    f"SELECT 1 FROM message_attachments WHERE {_IS_ATTACHED_TO_NOTHING}",
)
"""Statements that return a row if references between rows are damaged."""


def _repair_references(db: sqlite3.Connection) -> int:
    """Create conversations for messages whose conversation was lost, and replace references to lost messages.

    Returns the number of attachments that were removed because their bytes or their message were lost.
    """
    orphans = db.execute(
        "SELECT conversation_key, min(key), min(created_at_ms), max(created_at_ms), text FROM messages "
        "WHERE conversation_key NOT IN (SELECT key FROM conversations) GROUP BY conversation_key"
    ).fetchall()
    for key, _, created_at_ms, updated_at_ms, text in orphans:
        db.execute(
            "INSERT INTO conversations VALUES (?, ?, ?, '', '{}', 0, 0, '[]', '', ?, ?, NULL)",
            (key, f"{key:016x}", first_line(text) or "Recovered", created_at_ms, updated_at_ms),
        )
    # The parent of a message in a conversation without branches is the message before it. A parent has a smaller key.
    db.execute(
        f"""
        UPDATE messages SET parent_key = (
            SELECT max(p.key) FROM messages p
            WHERE p.conversation_key = messages.conversation_key AND p.key < min(messages.parent_key, messages.key)
        ) WHERE {_HAS_DAMAGED_PARENT}
        """
    )
    db.execute(
        "UPDATE messages SET active_child_key = (SELECT max(c.key) FROM messages c WHERE c.parent_key = messages.key) "
        f"WHERE {_HAS_DAMAGED_CHILD}"
    )
    db.execute(f"UPDATE messages SET hidden_by = NULL, hidden_at_ms = NULL WHERE {_IS_HIDDEN_BY_DAMAGE}")
    db.execute(
        f"""
        UPDATE conversations SET head_key = (
            SELECT max(key) FROM messages m WHERE m.conversation_key = conversations.key AND hidden_by IS NULL
        ) WHERE head_key IS NULL OR {_HAS_DAMAGED_HEAD}
        """
    )
    return db.execute(f"DELETE FROM message_attachments WHERE {_IS_ATTACHED_TO_NOTHING}").rowcount
