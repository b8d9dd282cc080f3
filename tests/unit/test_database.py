"""The database itself: rights, versions, damage, locks, and a disk that is full."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.errors import DamagedError, StoreError
from edgechat.store import database, open_store, recovery
from edgechat.store.database import Database
from edgechat.store.schema import MIGRATIONS, Migration
from edgechat.store.sqlite import SqliteStore


def fill(store: SqliteStore, n: int, size: int = 10) -> Conversation:
    conversation = Conversation(id=new_id(), title="A talk", created_at_ms=1)
    parent = None
    for number in range(n):
        message = Message(id=new_id(), parent_id=parent, role="user", text=f"message {number} " + "x" * size)
        store.append(conversation, [message])
        parent = message.id
    return conversation


def texts(store: SqliteStore, conversation: Conversation) -> list[str]:
    return [m.text.split(" x")[0] for m in store.messages(conversation.id)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history.db"


@pytest.mark.skipif(sys.platform == "win32", reason="rights are POSIX's")
def test_only_the_owner_can_read_it_and_its_log(path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(path)
        fill(store, 3)
        found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert found == {"history.db": 0o600, "history.db-wal": 0o600, "history.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    open_store(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_of_an_ephemeral_store_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    store = SqliteStore(Database(None))
    fill(store, 5, size=100_000)
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_a_newer_database_is_read_not_written_and_says_so(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    store = open_store(path)
    assert "newer edgechat" in store.problem
    assert texts(store, conversation) == ["message 0", "message 1"]
    assert len(store.search("message")) == 2
    with pytest.raises(StoreError, match="newer edgechat"):
        fill(store, 1)
    store.close()
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        open_store(path)
    assert path.read_bytes() == before


def test_migrations_that_rewrite_are_preceded_by_a_copy(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    harmless = Migration(["ALTER TABLE conversations ADD COLUMN extra TEXT"])
    rewriting = Migration(["UPDATE messages SET text = upper(text)"], rewrites=True)
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


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    store = open_store(path)
    fill(store, 2)
    store.close()
    failing = Migration(["DELETE FROM message_attachments", "UPDATE messages SET nothing = 1"])
    with pytest.raises(StoreError, match="nothing"):
        Database(path, [*MIGRATIONS, failing])
    assert len(open_store(path).search("message")) == 2


def test_two_processes_opening_a_new_database_at_once(path: Path) -> None:
    code = "import sys; from pathlib import Path; from edgechat.store import open_store; open_store(Path(sys.argv[1])).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE) for _ in range(4)]
    assert [(c.communicate()[1], c.returncode) for c in children] == [(b"", 0)] * 4


def test_a_database_that_another_program_holds_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    store = open_store(path)
    conversation = fill(store, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="close it"):
            fill(store, 1)
        assert texts(store, conversation) == ["message 0"]  # reading goes on
        other.execute("ROLLBACK")
    fill(store, 1)
    store.close()


def test_a_read_only_home(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    store = open_store(tmp_path / "data" / "history.db")
    assert "cannot be written" in store.problem
    assert list(store.list()) == []
    with pytest.raises(StoreError, match="cannot be written"):
        fill(store, 1)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_without_the_right_to_write(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        store = open_store(path)
        assert store.problem
        assert texts(store, conversation) == ["message 0", "message 1"]
        store.close()
    finally:
        path.parent.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_full_disk_loses_nothing_that_was_acknowledged(path: Path) -> None:
    # The kernel refuses to let any file of the child grow further, as a full disk does.
    code = """
import resource, signal, sys
from pathlib import Path
from edgechat.errors import StoreError
from edgechat.store import open_store
from tests.unit.test_database import fill
store = open_store(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
done = 0
try:
    while done < 1000:
        fill(store, 1, size=5000)
        done += 1
except StoreError as error:
    print(done, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
fill(store, 1)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    done, _, words = result.stdout.partition(" ")
    assert 0 < int(done) < 1000
    assert str(path) in words
    store = open_store(path)
    assert len(store.search("message", limit=2000)) == int(done) + 1
    store.close()


def test_sqlites_own_full_is_one_clear_error(path: Path) -> None:
    store = open_store(path)
    store.database.connection.execute("PRAGMA max_page_count = 60")
    with pytest.raises(StoreError, match=r"disk of .* is full"):
        fill(store, 200, size=5000)
    assert texts(store, store.list()[0].conversation)
    store.close()


# Damage


def damaged(path: Path, data: bytes, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def test_a_file_that_is_no_database_any_more_is_kept_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but maybe somebody's words" * 100)
    store = open_store(path)
    aside = [p for p in path.parent.iterdir() if ".damaged-" in p.name and not p.name.endswith(".recovered")]
    assert [p.read_bytes()[:14] for p in aside] == [b"not a database"]
    assert str(aside[0]) in store.notes[0]
    fill(store, 1)
    store.close()
    assert open_store(path).notes == []  # it is said once


def test_what_can_be_read_of_a_damaged_database_is_recovered(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 400, size=2000)
    store.close()
    size = path.stat().st_size
    damaged(path, os.urandom(40_000), size // 2)
    original = path.read_bytes()
    assert not recovery.is_sound(path)
    store = recovery.recover(path)
    kept = texts(store, conversation)
    assert 370 < len(kept) < 400  # ten pages of some 250 are gone
    assert "message 0" in kept
    assert "message 399" in kept  # on both sides of the damage
    assert len(store.search("message", limit=1000)) == len(kept)
    fill(store, 1)
    store.close()
    [aside] = [p for p in path.parent.iterdir() if ".damaged-" in p.name and p.suffix != ".recovered"]
    assert aside.read_bytes() == original
    assert recovery.is_sound(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_error_or_recovered_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "history.db"
    store = open_store(path)
    fill(store, 20, size=500)
    store.close()
    size = path.stat().st_size
    damaged(path, data.draw(st.binary(min_size=1, max_size=2000)), data.draw(st.integers(0, size - 1)))
    try:
        store = open_store(path)
        for summary in store.list():
            store.messages(summary.conversation.id)
        store.search("message")
        fill(store, 1)
    except StoreError as error:
        assert isinstance(error, DamagedError) or str(path) in str(error)  # noqa: PT017
    else:
        store.close()
    recovery.recover(path).close()
    assert recovery.is_sound(path)


def test_a_recovery_that_was_cut_off_is_finished_at_the_next_start(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    store.close()
    path.rename(path.with_name("history.db.damaged-20260101-000000"))  # killed right after it was put aside
    store = open_store(path)
    assert texts(store, conversation) == ["message 0", "message 1", "message 2"]
    store.close()


# Threads


def test_threads_share_a_store(path: Path) -> None:
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
