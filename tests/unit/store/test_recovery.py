"""Recovery of damaged databases, and of odd files in place of the database or of its copies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.chat.messages import Attachment, Conversation, Message, new_id
from edgechat.errors import DamagedDatabaseError, StoreError
from edgechat.store import database, open_store, recovery, salvage
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import fill, texts


def damage(path: Path, data: bytes, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def damaged_copies(path: Path) -> list[Path]:
    """Return the main files of the damaged copies of a database."""
    suffixes = (".recovered", "-wal", "-shm", "-journal")
    return [p for p in path.parent.iterdir() if ".damaged-" in p.name and not p.name.endswith(suffixes)]


def attach(store: SqliteStore, data: bytes) -> str:
    """Save a conversation of one message with an attachment, and return its ID."""
    conversation = Conversation(id=new_id(), title="A talk", created_at_ms=1)
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=len(data))
    store.append(
        conversation, [Message(id=new_id(), role="user", text="see notes", attachments=(file,))], {sha256: data}
    )
    return conversation.id


def test_file_that_is_not_a_database_is_moved_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but maybe somebody's text" * 100)
    store = open_store(path)
    copies = damaged_copies(path)
    assert [p.read_bytes()[:14] for p in copies] == [b"not a database"]
    assert str(copies[0]) in store.notices[0]
    fill(store, 1)
    store.close()
    assert open_store(path).notices == []  # reported once


def test_readable_messages_of_a_damaged_database_are_recovered(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 400, size=2000)
    store.close()
    size = path.stat().st_size
    damage(path, random.Random(0).randbytes(40_000), size // 2)
    original = path.read_bytes()
    assert not recovery.is_intact(path)
    store = recovery.recover(path)
    recovered = texts(store, conversation)
    assert 370 < len(recovered) < 400  # ten pages of some 250 are overwritten
    assert "message 0" in recovered
    assert "message 399" in recovered  # on both sides of the damage
    assert len(store.search("message", limit=1000)) == len(recovered)
    fill(store, 1)
    store.close()
    [copy] = damaged_copies(path)
    assert copy.read_bytes() == original
    assert recovery.is_intact(path)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_reported_or_recovered(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "history.db"
    store = open_store(path)
    fill(store, 20, size=500)
    store.close()
    size = path.stat().st_size
    damage(path, data.draw(st.binary(min_size=1, max_size=2000)), data.draw(st.integers(0, size - 1)))
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


@pytest.mark.parametrize("offset", [0, 8])
def test_database_with_a_damaged_signature_is_recovered(path: Path, offset: int) -> None:
    store = open_store(path)
    conversation = fill(store, 20)
    store.close()
    damage(path, b"damaged!", offset)
    original = path.read_bytes()
    store = open_store(path)
    assert texts(store, conversation) == [f"message {i}" for i in range(20)]
    assert "20 messages were recovered" in store.notices[0]
    store.close()
    [copy] = damaged_copies(path)
    assert copy.read_bytes() == original


def test_repaired_file_stays_in_the_folder_and_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    conversation = fill(store, 20)
    store.close()
    damage(path, b"damaged!", 0)
    abandoned = path.with_name("history.db.repair-killed")
    abandoned.mkdir()
    folders: list[Path] = []
    copyfile = shutil.copyfile

    def record(source: Path, target: Path) -> None:
        folders.append(target.parent.parent)
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", record)
    store = open_store(path)
    assert texts(store, conversation) == [f"message {i}" for i in range(20)]
    assert {*folders} == {path.parent}
    assert list(path.parent.glob("*.repair-*")) == []
    store.close()


def test_full_disk_during_recovery_keeps_the_copy_for_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(path)
    conversation = fill(store, 20)
    store.close()
    damage(path, b"damaged!", 0)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        store = open_store(path)
    assert "No space left" in store.notices[0]
    assert "Keep the file" in store.notices[0]
    store.close()
    store = open_store(path)
    assert texts(store, conversation) == [f"message {i}" for i in range(20)]
    store.close()


def test_large_file_that_is_not_a_database_is_not_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.write_bytes(b"encrypted or text" * 1000)
    monkeypatch.setattr(shutil, "copyfile", None)  # a call fails
    open_store(path).close()


def test_messages_before_the_end_of_a_truncated_database_are_recovered(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 400, size=2000)
    store.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 3 // 4)
    store = open_store(path)
    recovered = texts(store, conversation)
    assert len(recovered) > 200
    assert "message 0" in recovered
    store.close()


def test_killed_recovery_is_finished_at_the_next_start(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    store.close()
    path.rename(path.with_name("history.db.damaged-20260101-000000"))  # as if killed right after the rename
    store = open_store(path)
    assert texts(store, conversation) == ["message 0", "message 1", "message 2"]
    store.close()


def test_lost_attachment_does_not_lose_its_message(path: Path) -> None:
    store = open_store(path)
    conversation_id = attach(store, random.Random(0).randbytes(30_000))
    root = store.database.connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'attachments'").fetchone()
    size = store.database.connection.execute("PRAGMA page_size").fetchone()
    store.close()
    damage(path, b"\xff" * size[0], (root[0] - 1) * size[0])
    store = recovery.recover(path)
    assert [m.text for m in store.messages(conversation_id)] == ["see notes"]
    assert "could not be read" in store.notices[0]
    store.close()
    assert open_store(path).notices == []


def test_open_store_refuses_writes_after_another_process_recovered(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 1)
    recovery.recover(path).close()
    with pytest.raises(StoreError, match="moved or replaced"):
        store.append(conversation, [Message(id=new_id(), role="user", text="acknowledged?")])
    store.close()


def test_two_processes_recover_a_database_once(path: Path) -> None:
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


def test_hidden_message_does_not_become_head(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.delete_message(store.messages(conversation.id)[1].id)
    store.close()
    store = recovery.recover(path)
    assert store.conversation(conversation.id).head_id == store.messages(conversation.id)[-1].id
    store.close()


# Odd files


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("content")


def make_pipe(path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("POSIX pipes")
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_directory, make_pipe])
def test_copy_that_is_not_a_file_is_reported_once(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    copy = path.with_name("history.db.damaged-20260101-000000")
    make(copy)
    store = open_store(path)
    assert len(store.notices) == 1
    assert str(copy) in store.notices[0]
    assert ("a directory" in store.notices[0]) == copy.is_dir()
    conversation = fill(store, 1)
    store.close()
    store = open_store(path)
    assert store.notices == []
    assert texts(store, conversation) == ["message 0"]
    assert copy.exists()
    store.close()


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may read anything")
def test_unreadable_copy_is_reported_until_it_is_readable(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2)
    store.close()
    copy = path.with_name("history.db.damaged-20260101-000000")
    path.rename(copy)
    copy.chmod(0)
    store = open_store(path)
    assert str(copy) in store.notices[0]
    fill(store, 1)
    store.close()
    copy.chmod(0o600)
    store = open_store(path)
    assert texts(store, conversation) == ["message 0", "message 1"]
    store.close()


@pytest.mark.parametrize("error", [StoreError("no."), PermissionError(13, "no"), "sqlite"])
def test_copy_that_cannot_be_read_does_not_prevent_a_new_database(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | str
) -> None:
    store = open_store(path)
    fill(store, 2)
    store.close()
    path.write_bytes(b"garbage" * 3000)
    open_damaged = salvage.open_damaged_database

    def fail(copy: Path) -> object:
        if isinstance(error, Exception):
            raise error
        return open_damaged(copy.parent)  # a directory: SQLite's own error

    with monkeypatch.context() as patch:
        patch.setattr(salvage, "open_damaged_database", fail)
        store = open_store(path)
    assert "Nothing could be recovered" in store.notices[0]
    assert ".." not in store.notices[0]
    fill(store, 1)
    store.close()


@pytest.mark.parametrize("make", [make_directory, make_pipe])
def test_database_that_is_not_a_file_is_moved_aside(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    make(path)
    assert not recovery.is_intact(path)
    store = open_store(path)
    [copy] = damaged_copies(path)
    assert not copy.is_file()
    assert str(copy) in store.notices[0]
    conversation = fill(store, 1)
    store.close()
    store = open_store(path)
    assert store.notices == []
    assert texts(store, conversation) == ["message 0"]
    store.close()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_directory_in_place_of_a_log_loses_no_message(path: Path, suffix: str) -> None:
    store = open_store(path)
    conversation = fill(store, 3)
    store.close()
    make_directory(path.with_name(path.name + suffix))
    assert not recovery.is_intact(path)
    store = open_store(path)
    assert "3 messages were recovered" in store.notices[0]
    fill(store, 1)
    assert len(texts(store, conversation)) == 3
    store.close()
    assert open_store(path).notices == []


@pytest.mark.parametrize("content", [None, b"garbage" * 3000])
def test_unusable_lock_file_is_one_clear_error(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 3000)
    lock = path.with_name("history.db.lock")
    if content is None:
        lock.mkdir()
    else:
        lock.write_bytes(content)
    with pytest.raises(StoreError, match=r"Delete the lock file"):
        open_store(path)


def test_lock_that_another_process_holds_is_not_to_be_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_LOCK_TIMEOUT_S", 0.1)
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 3000)
    with contextlib.closing(sqlite3.connect(path.with_name("history.db.lock"), isolation_level=None)) as other_process:
        other_process.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"locked .*\. Wait until the other edgechat process has recovered it"):
            open_store(path)
    assert damaged_copies(path) == []


def test_database_that_cannot_be_opened_is_not_called_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(path)
    fill(store, 1)
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other_process:
        other_process.execute("PRAGMA locking_mode = EXCLUSIVE")
        other_process.execute("DELETE FROM attachments")  # takes the lock, and creates the log
        with monkeypatch.context() as patch:
            patch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
            with pytest.raises(StoreError, match="Another program has been writing"):
                recovery.is_intact(path)
    assert recovery.is_intact(path)


def test_damage_that_sqlite_reports_as_an_operational_error_is_recovered(path: Path) -> None:
    store = open_store(path)
    fill(store, 1)
    store.close()
    damage(path, b"\x09" * 4, 44)  # the schema format number
    assert not recovery.is_intact(path)
