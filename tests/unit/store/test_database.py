"""The database itself: rights, versions, damage, locks, and a disk that is full."""

from __future__ import annotations

import contextlib
import hashlib
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

from edgechat.chat.messages import Attachment, Conversation, Message, new_id, now_ms
from edgechat.errors import DamagedDatabaseError, StoreError
from edgechat.store import database, open_store, recovery, sqlite
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
    assert "newer edgechat" in store.read_only_reason
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
    for number in range(5):
        file = path.with_name(f"{number}.db")
        children = [subprocess.Popen([sys.executable, "-c", code, str(file)], stderr=subprocess.PIPE) for _ in range(6)]
        assert [(c.communicate()[1], c.returncode) for c in children] == [(b"", 0)] * 6


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
    assert "cannot be written" in store.read_only_reason
    assert list(store.list_conversations()) == []
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
        assert store.read_only_reason
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
from tests.unit.store.test_database import fill
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
        cwd=Path(__file__).parents[3],
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
    assert texts(store, store.list_conversations()[0].conversation)
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
    assert str(aside[0]) in store.notices[0]
    fill(store, 1)
    store.close()
    assert open_store(path).notices == []  # it is said once


def test_what_can_be_read_of_a_damaged_database_is_recovered(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 400, size=2000)
    store.close()
    size = path.stat().st_size
    damaged(path, os.urandom(40_000), size // 2)
    original = path.read_bytes()
    assert not recovery.is_intact(path)
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
    assert recovery.is_intact(path)


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
        for summary in store.list_conversations():
            store.messages(summary.conversation.id)
        store.search("message")
        fill(store, 1)
    except StoreError as error:
        assert isinstance(error, DamagedDatabaseError) or str(path) in str(error)  # noqa: PT017
    else:
        store.close()
    recovery.recover(path).close()
    assert recovery.is_intact(path)


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


def test_a_lost_attachment_costs_no_message(path: Path) -> None:
    store = open_store(path)
    conversation = Conversation(id=new_id(), title="A talk", created_at_ms=1)
    data = os.urandom(30_000)
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=len(data))
    store.append(
        conversation, [Message(id=new_id(), role="user", text="see notes", attachments=(file,))], {sha256: data}
    )
    root = store.database.connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'attachments'").fetchone()
    size = store.database.connection.execute("PRAGMA page_size").fetchone()
    store.close()
    damaged(path, b"\xff" * size[0], (root[0] - 1) * size[0])
    store = recovery.recover(path)
    assert [m.text for m in store.messages(conversation.id)] == ["see notes"]
    assert "could not be read" in store.notices[0]
    store.close()
    assert open_store(path).notices == []


def test_a_file_that_cannot_be_salvaged_keeps_nobody_from_a_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(path)
    fill(store, 2)
    store.close()
    path.write_bytes(b"garbage" * 3000)

    def fails(*_: object) -> tuple[int, int]:
        raise StoreError("no")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "_salvage", fails)
        store = open_store(path)
    assert "nothing could be recovered" in store.notices[0]
    fill(store, 1)
    store.close()


def test_a_recovery_under_an_open_store_takes_no_words_from_it(path: Path) -> None:
    ours = open_store(path)
    conversation = fill(ours, 1)
    recovery.recover(path).close()  # another process met damage that we did not
    with pytest.raises(StoreError, match="moved or replaced"):
        ours.append(conversation, [Message(id=new_id(), role="user", text="acknowledged?")])
    ours.close()


def test_two_processes_that_meet_damage_recover_it_once(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    store.close()
    path.rename(path.with_name("history.db.damaged-20260101-000000"))
    path.write_bytes(b"garbage" * 3000)
    stores: list[SqliteStore] = []
    threads = [threading.Thread(target=lambda: stores.append(recovery.recover(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(path)
    assert len(texts(store, conversation)) == 3
    for each in [*stores, store]:
        each.close()


def test_a_hidden_message_is_no_head_after_a_recovery(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.delete_message(store.messages(conversation.id)[1].id)
    store.close()
    store = recovery.recover(path)
    assert store.conversation(conversation.id).head_id == store.messages(conversation.id)[-1].id
    store.close()


def test_a_clock_that_went_back_does_not_lock_anybody_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    ids = [m.id for m in store.messages(conversation.id)]
    day_ms = 24 * 3600 * 1000
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "now_ms", lambda: now_ms() + 2 * day_ms)
        store.delete_message(ids[2])
    store.delete_message(ids[1])
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "now_ms", lambda: now_ms() + day_ms + 1000)
        store = open_store(path)
    assert [m.id for m in store.messages(conversation.id)] == ids[:1]
    assert store.missing_ids(ids) == set(ids[1:])
    store.close()


def test_reading_needs_no_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    store = open_store(path)
    conversation = fill(store, 1)
    root = store.messages(conversation.id)[0].id
    store.append(
        conversation, [Message(id=new_id(), parent_id=root, role="assistant", text="so far", finish_reason="streaming")]
    )
    with store.database.writing():  # somebody else is busy, or the disk is full
        other = open_store(path)
        assert other.messages(conversation.id)[1].is_interrupted
        other.close()
    store.close()


def test_sqlite_that_is_too_old_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0, 0))
    with pytest.raises(StoreError, match=r"edgechat needs"):
        open_store(path)
