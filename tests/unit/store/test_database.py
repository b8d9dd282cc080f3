"""The database file: permissions, versions, migrations, locks, read-only folders, and a full disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgechat.chat.messages import Message, new_id
from edgechat.errors import StoreError
from edgechat.store import database, open_store
from edgechat.store.database import Database
from edgechat.store.schema import MIGRATIONS, Migration, apply_migration
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import fill, texts


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_only_owner_can_read_database_and_log(path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(path)
        fill(store, 3)
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"history.db": 0o600, "history.db-wal": 0o600, "history.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    open_store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ephemeral_store_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    store = SqliteStore(Database(None))
    fill(store, 5, size=100_000)
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_newer_database_is_read_only_and_reports_it(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    store = open_store(path)
    assert "newer edgechat" in store.read_only_reason
    assert texts(store, conversation) == ["message 0", "message 1"]
    assert len(store.search("message")) == 2
    with pytest.raises(StoreError, match="newer edgechat"):
        fill(store, 1)
    store.close()
    assert path.read_bytes() == before


def test_database_of_another_program_is_not_changed(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        open_store(path)
    assert path.read_bytes() == before


def test_rewriting_migration_copies_database_first(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    harmless = Migration(["ALTER TABLE conversations ADD COLUMN extra TEXT"])
    rewriting = Migration(["UPDATE messages SET text = upper(text)"], rewrites_rows=True)
    Database(path, [*MIGRATIONS, harmless, rewriting]).close()
    store = SqliteStore(Database(path, [*MIGRATIONS, harmless, rewriting]))
    assert [m.text[:9] for m in store.messages(conversation.id)] == ["MESSAGE 0", "MESSAGE 1"]
    assert len(store.search("message 0")) == 1
    store.close()
    copies = [p for p in path.parent.iterdir() if ".before-" in p.name]
    assert [p.name for p in copies] == [f"history.db.before-v{len(MIGRATIONS) + 2}"]
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600 or sys.platform == "win32"
    with contextlib.closing(sqlite3.connect(copies[0])) as db:
        assert db.execute("SELECT text FROM messages ORDER BY key").fetchone()[0].startswith("message 0")


def test_failed_migration_changes_nothing(path: Path) -> None:
    store = open_store(path)
    fill(store, 2)
    store.close()
    failing = Migration(["DELETE FROM message_attachments", "UPDATE messages SET nothing = 1"])
    with pytest.raises(StoreError, match="nothing"):
        Database(path, [*MIGRATIONS, failing])
    assert len(open_store(path).search("message")) == 2


@pytest.mark.slow
def test_processes_can_create_same_database_at_once(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgechat.store import open_store; "
        "open_store(Path(sys.argv[1])).close()"
    )
    for number in range(2):
        file = path.with_name(f"{number}.db")
        children = [subprocess.Popen([sys.executable, "-c", code, str(file)], stderr=subprocess.PIPE) for _ in range(6)]
        assert [(c.communicate()[1], c.returncode) for c in children] == [(b"", 0)] * 6


def test_lock_of_another_program_fails_writes_and_allows_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)
    store = open_store(path)
    conversation = fill(store, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="Close it"):
            fill(store, 1)
        assert texts(store, conversation) == ["message 0"]
        other.execute("ROLLBACK")
    fill(store, 1)
    store.close()


def test_opening_for_reading_needs_no_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(path)
    conversation = fill(store, 1)
    root = store.messages(conversation.id)[0].id
    store.append(
        conversation, [Message(id=new_id(), parent_id=root, role="assistant", text="so far", finish_reason="streaming")]
    )
    with store.database.write_transaction():
        other = open_store(path)
        assert other.messages(conversation.id)[1].is_interrupted
        other.close()
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file names")
@pytest.mark.parametrize("name", [os.fsdecode(b"h\xe9me"), "a\nb ?#%&;", "\u00fc" * 100])
def test_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "history.db"
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    path.write_bytes(path.read_bytes()[:-5000])
    store = open_store(path)
    assert texts(store, conversation) == ["message 0", "message 1"]
    store.close()


@pytest.mark.parametrize("name", ["x" * 2600, "/".join(["d" * 200] * 10)])
def test_path_that_is_too_long_makes_an_unreadable_store(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path / name / "history.db")
    assert not store.is_persistent
    assert not store.is_readable
    assert "SQLite accepts at most" in store.read_only_reason
    assert store.list_conversations() == []
    store.close()


def test_folder_below_a_file_makes_an_unreadable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = open_store(tmp_path / "file" / "data" / "history.db")
    assert not store.is_readable  # an export of it would be an empty backup
    assert f"{tmp_path / 'file'} is not a folder" in store.read_only_reason
    store.close()


def test_database_that_cannot_be_read_makes_an_empty_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    fill(store, 2)
    store.close()
    before = path.read_bytes()

    def refuse(path: Path, parameters: str) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(database, "connect", refuse)
    store = open_store(path)
    assert not store.is_readable
    assert "Check the permissions" in store.read_only_reason
    assert store.list_conversations() == []
    store.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("error", "message"), [("disk I/O error", "reported an error"), ("is full", "is full")])
def test_faulty_disk_at_the_first_start_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    class FailingConnection(sqlite3.Connection):
        def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
            cursor = super().execute(sql, parameters)  # type: ignore[arg-type]
            if sql.startswith("PRAGMA user_version ="):
                super().execute("ROLLBACK")  # SQLite rolls back by itself after these errors
                raise sqlite3.OperationalError(f"database or disk {error}")
            return cursor

    def fail(connection: sqlite3.Connection, number: int, migration: Migration) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, factory=FailingConnection)) as failing:
            apply_migration(failing, number, migration)

    monkeypatch.setattr(database, "apply_migration", fail)
    with pytest.raises(StoreError, match=f"The disk that contains .* {message}"):
        open_store(path)
    monkeypatch.undo()
    store = open_store(path)
    fill(store, 1)
    store.close()


def test_free_space_of_a_large_file_is_returned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_MIN_FREE_BYTES", 1_000_000)
    store = open_store(path)
    conversation = fill(store, 3)
    question = Message(id=new_id(), parent_id=store.messages(conversation.id)[-1].id, role="user", text="x" * 8_000_000)
    store.append(conversation, [question])
    assert path.stat().st_size + path.with_name("history.db-wal").stat().st_size > 8_000_000
    store.discard_messages([question.id])
    assert path.stat().st_size + path.with_name("history.db-wal").stat().st_size < 2_000_000  # the search index
    assert texts(store, conversation) == ["message 0", "message 1", "message 2"]
    assert len(store.search("message")) == 3
    store.close()


def test_file_in_place_of_data_folder_makes_store_read_only(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    store = open_store(tmp_path / "data" / "history.db")
    assert "Cannot write to" in store.read_only_reason
    assert not store.is_readable
    assert list(store.list_conversations()) == []
    with pytest.raises(StoreError, match="Cannot write to"):
        fill(store, 1)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_makes_store_read_only(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        store = open_store(path)
        assert store.read_only_reason
        assert texts(store, conversation) == ["message 0", "message 1"]
        store.close()
    finally:
        path.parent.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX resource limits")
def test_full_disk_loses_no_acknowledged_message(path: Path) -> None:
    # The limit makes the kernel fail writes beyond 400 kB, as a full disk does.
    code = """
import resource, signal, sys
from pathlib import Path
from edgechat.errors import StoreError
from edgechat.store import open_store
from tests.unit.store.examples import fill
store = open_store(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
n_saved = 0
try:
    while n_saved < 1000:
        fill(store, 1, size=5000)
        n_saved += 1
except StoreError as error:
    print(n_saved, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
fill(store, 1)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    n_saved, _, message = result.stdout.partition(" ")
    assert 0 < int(n_saved) < 1000
    assert str(path) in message
    store = open_store(path)
    assert len(store.search("message", limit=2000)) == int(n_saved) + 1
    store.close()


def test_full_error_of_sqlite_is_one_clear_message(path: Path) -> None:
    store = open_store(path)
    store.database.connection.execute("PRAGMA max_page_count = 60")
    with pytest.raises(StoreError, match=r"disk that contains .* is full"):
        fill(store, 200, size=5000)
    assert texts(store, store.list_conversations()[0].conversation)
    store.close()


def test_old_sqlite_is_one_clear_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MIN_SQLITE_VERSION", (99, 0, 0))
    with pytest.raises(StoreError, match=r"edgechat needs"):
        open_store(path)


def test_threads_can_share_a_store(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 1)
    root = store.messages(conversation.id)[0].id
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(20):
                store.append(conversation, [Message(id=new_id(), parent_id=root, role="user", text=f"t {number}")])
                store.messages(conversation.id)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.messages(conversation.id)) == 81
    store.close()
