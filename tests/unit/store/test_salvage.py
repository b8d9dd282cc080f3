"""Messages that are recovered from cut files, overwritten pages, and damaged or foreign logs."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.messages import Conversation, Message, new_id, now_ms
from edgechat.errors import NotFoundError
from edgechat.store import open_store, page_format, page_salvage, recovery
from edgechat.store.database import Database, connect
from edgechat.store.log_check import find_log_damage
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import fill, texts
from tests.unit.store.test_recovery import attach, damaged_copies

PAGE_BYTES = 4096


def find_numbers(store: SqliteStore) -> set[int]:
    """Return the numbers of all messages of `fill` in the store."""
    all_messages = [m.text for i in store.conversation_ids() for m in store.messages(i)]
    return {int(text.split()[1]) for text in all_messages if text.startswith("message")}


def read_root_pages(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0"))


def overwrite_page(path: Path, number: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE_BYTES)
        file.write(content)


def copy_with_log(store: SqliteStore, target: Path) -> None:
    """Copy the files of an open store, with its write-ahead log, as after a power failure."""
    assert store.path is not None
    target.parent.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        shutil.copyfile(store.path.with_name(store.path.name + suffix), target.with_name(target.name + suffix))


@pytest.mark.parametrize("fraction", [0.99, 0.95, 0.8, 0.5, 0.2])
def test_all_messages_in_a_cut_file_are_recovered(path: Path, fraction: float) -> None:
    store = open_store(path)
    fill(store, 300, size=1500)
    store.close()
    content = path.read_bytes()
    content = content[: int(len(content) * fraction)]
    path.write_bytes(content)
    expected = {n for n in range(300) if f"message {n} x".encode() in content}
    store = open_store(path)
    assert find_numbers(store) == expected
    store.close()
    assert recovery.is_intact(path)


@pytest.mark.parametrize("content", [bytes(PAGE_BYTES), b"\xff" * PAGE_BYTES])
@pytest.mark.parametrize("table", ["messages", "conversations", "sqlite_autoindex_messages_1", "schema"])
def test_messages_are_recovered_without_the_root_of_a_tree(path: Path, table: str, content: bytes) -> None:
    store = open_store(path)
    conversation = fill(store, 300, size=500)
    conversation_id = attach(store, b"notes")
    store.close()
    overwrite_page(path, 1 if table == "schema" else read_root_pages(path)[table], content)
    store = recovery.recover(path)
    assert find_numbers(store) == {*range(300)}
    assert len(store.conversation_ids()) == 2
    if table != "conversations":
        assert len(texts(store, conversation)) == 300
        [message] = store.messages(conversation_id)
        assert store.read_attachment(message.attachments[0].sha256) == b"notes"
    store.close()
    assert recovery.is_intact(path)


def test_message_with_a_lost_overflow_page_keeps_its_start(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 2, size=50_000)
    store.close()
    content = path.read_bytes()
    pages = [content[i : i + PAGE_BYTES] for i in range(0, len(content), PAGE_BYTES)]
    overflow_pages = [n for n, page in enumerate(pages, start=1) if page[4:] == b"x" * (PAGE_BYTES - 4)]
    overwrite_page(path, overflow_pages[-5], bytes(PAGE_BYTES))  # the first ones may be free
    store = recovery.recover(path)
    lengths = sorted(len(m.text) for m in store.messages(conversation.id))
    assert lengths[0] > 4 * PAGE_BYTES
    assert lengths[1] == 50_010
    assert any(m.text.endswith("\ufffd") for m in store.messages(conversation.id))
    store.close()


def test_damaged_frame_of_the_log_does_not_lose_later_messages(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 40, size=200)
    copy = path.parent.parent / "copy" / "history.db"
    copy_with_log(store, copy)
    store.close()
    log = copy.with_name("history.db-wal")
    content = bytearray(log.read_bytes())
    frame = len(content) // 3 // (PAGE_BYTES + 24)
    content[32 + frame * (PAGE_BYTES + 24) + 3000] ^= 1
    log.write_bytes(content)
    assert not recovery.is_intact(copy)
    store = open_store(copy)
    assert find_numbers(store) == {*range(40)}
    assert [m.text.split(" x")[0] for m in _active_path(store, conversation)] == [f"message {n}" for n in range(40)]
    assert "messages were recovered" in store.notices[0]
    assert "-wal" in store.notices[0]
    store.close()
    assert recovery.is_intact(copy)
    assert open_store(copy).notices == []


def _active_path(store: SqliteStore, conversation: Conversation) -> list[Message]:
    from edgechat.store.formats import edgechat_json, markdown

    return markdown.active_path(edgechat_json.load_record(store, conversation.id))


def test_damaged_log_does_not_shorten_a_reply(path: Path) -> None:
    store = open_store(path)
    question = Message(id=new_id(), role="user", text="question")
    reply = Message(id=new_id(), parent_id=question.id, role="assistant", text="one", finish_reason="streaming")
    store.append(Conversation(id="c", created_at_ms=now_ms()), [question, reply])
    n_bytes = path.with_name("history.db-wal").stat().st_size
    for text, reason in (("one two", "streaming"), ("one two three", "stop")):
        store.checkpoint(msgspec.structs.replace(reply, text=text, finish_reason=reason))
    copy = path.with_name("copy.db")
    copy_with_log(store, copy)
    store.close()
    with copy.with_name("copy.db-wal").open("r+b") as log:
        log.seek(n_bytes + 100)  # in the first checkpoint of the reply
        log.write(b"damage")
    store = open_store(copy)
    assert [(m.text, m.finish_reason) for m in store.messages("c")] == [("question", ""), ("one two three", "stop")]
    store.close()


def test_deleted_messages_in_the_log_are_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "truncate_wal", lambda self: None)  # as if edgechat was killed before the checkpoint
    store = open_store(path)
    conversations = [fill(store, 30, size=300) for _ in range(3)]
    store.close()
    for n_deleted in (1, 2):
        store = open_store(path)
        for conversation in conversations[:n_deleted]:
            with contextlib.suppress(NotFoundError):
                store.delete_conversation(conversation.id)
        copy = path.with_name(f"copy{n_deleted}.db")
        copy_with_log(store, copy)
        store.close()
        assert find_log_damage(copy, connect) is None
        store = open_store(copy)
        assert len(store.conversation_ids()) == 3 - n_deleted
        assert store.notices == []
        store.close()


def test_log_of_another_database_overwrites_nothing(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 50, size=500)
    store.close()
    other = open_store(path.with_name("other.db"))
    message = Message(id="other", role="user", text="message of another database", created_at_ms=now_ms())
    other.append(Conversation(id=new_id(), created_at_ms=now_ms()), [message])
    copy_with_log(other, path.with_name("copy.db"))
    other.close()
    path.with_name("copy.db-wal").rename(path.with_name("history.db-wal"))
    store = open_store(path)
    assert texts(store, conversation) == [f"message {n}" for n in range(50)]
    assert len(store.search("another")) == 1
    assert "1 message was recovered" in store.notices[0]
    store.close()
    assert recovery.is_intact(path)


def test_log_of_an_earlier_state_overwrites_nothing(path: Path) -> None:
    store = open_store(path)
    conversation = fill(store, 10, size=500)
    copy_with_log(store, path.with_name("earlier.db"))
    parent_id = store.messages(conversation.id)[-1].id
    for number in range(10, 30):
        message = Message(id=f"m{number}", parent_id=parent_id, role="user", text=f"message {number} x")
        store.append(conversation, [message])
        parent_id = message.id
    store.close()
    path.with_name("earlier.db-wal").rename(path.with_name("history.db-wal"))
    store = open_store(path)
    assert texts(store, conversation) == [f"message {n}" for n in range(30)]
    store.close()


def test_log_beside_an_empty_file_is_not_deleted(path: Path) -> None:
    store = open_store(path)
    fill(store, 20)
    copy = path.with_name("copy.db")
    copy_with_log(store, copy)
    store.close()
    copy.write_bytes(b"")
    store = open_store(copy)
    assert find_numbers(store) == {*range(20)}
    store.close()


def test_intact_log_and_incomplete_transactions_are_no_damage(path: Path) -> None:
    store = open_store(path)
    fill(store, 10)
    copy = path.with_name("copy.db")
    copy_with_log(store, copy)
    log = copy.with_name("copy.db-wal")
    assert find_log_damage(copy, connect) is None
    content = log.read_bytes()
    for n_lost_bytes in (1, 100, PAGE_BYTES):
        log.write_bytes(content[:-n_lost_bytes])  # as if the process was killed while it wrote the last frame
        assert find_log_damage(copy, connect) is None
    log.write_bytes(content + random.Random(0).randbytes(3 * PAGE_BYTES))
    assert find_log_damage(copy, connect) is None
    store.close()
    copy = path.with_name("later.db")
    store = open_store(path)
    fill(store, 1)
    copy_with_log(store, copy)
    store.close()
    assert find_log_damage(copy, connect) is None


def test_deleted_and_discarded_messages_are_not_recovered(path: Path) -> None:
    store = open_store(path)
    kept = fill(store, 60, size=300)
    deleted = fill(store, 60, size=300)
    store.delete_conversation(deleted.id)
    store.discard_messages([store.messages(kept.id)[-1].id])
    store.close()
    overwrite_page(path, read_root_pages(path)["messages"], bytes(PAGE_BYTES))
    store = recovery.recover(path)
    assert texts(store, kept) == [f"message {n}" for n in range(59)]
    assert list(store.conversation_ids()) == [kept.id]
    store.close()


def test_damaged_application_id_and_version_are_repaired(path: Path) -> None:
    for offset in (68, 60):  # https://www.sqlite.org/fileformat2.html#the_database_header
        path.unlink(missing_ok=True)
        store = open_store(path)
        conversation = fill(store, 3)
        store.close()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(4))
        store = open_store(path)
        assert len(texts(store, conversation)) == 3
        assert store.read_only_reason == ""
        store.close()
    assert len(damaged_copies(path)) == 2


@given(
    st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.binary(max_size=300), max_size=20)
)
def test_records_are_decoded_as_sqlite_encodes_them(values: list[object]) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        columns = ", ".join(f"c{i}" for i in range(len(values))) or "c"
        db.execute(f"CREATE TABLE t ({columns})")
        db.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(values)) or 'NULL'})", values)
        page = db.serialize()[PAGE_BYTES : 2 * PAGE_BYTES] if hasattr(db, "serialize") else None
    if page is None:
        pytest.skip("needs Python 3.11")
    btree_page = page_format.parse_btree_page(page, 0, PAGE_BYTES)
    assert btree_page is not None
    assert btree_page.is_consistent
    [cell] = btree_page.cells
    if not cell.overflow_page:
        decoded = page_format.decode_record(cell.local_payload)
        assert repr(decoded) == repr([None if v != v else v for v in values] or [None])  # noqa: PLR0124  (NaN is NULL)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_random_records_are_decoded_or_refused(data: bytes, position: int) -> None:
    for function in (page_format.read_varint, page_format.read_record_header):
        with contextlib.suppress(ValueError, IndexError):
            function(data, position)
    with contextlib.suppress(ValueError, IndexError):
        page_format.decode_record(data)


@given(st.binary(min_size=1, max_size=3 * PAGE_BYTES))
def test_random_files_contain_no_rows(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("random") / "file.db"
    file.write_bytes(data)
    file.with_name("file.db-wal").write_bytes(data[::-1])
    assert list(page_salvage.find_rows(file)) == []


def test_log_that_another_process_uses_is_left_to_it(path: Path) -> None:
    store = open_store(path)
    fill(store, 10, size=300)
    copy = path.with_name("copy.db")
    copy_with_log(store, copy)
    store.close()
    with copy.with_name("copy.db-wal").open("r+b") as log:
        log.seek(10_000)
        log.write(b"damage")
    assert find_log_damage(copy, connect) is not None
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT count(*) FROM sqlite_schema')"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('open', flush=True); input()", str(copy)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert find_log_damage(copy, connect) is None
        other.kill()
    assert find_log_damage(copy, connect) is not None
