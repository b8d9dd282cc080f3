"""Imports with limits of memory and time: files that are small but need much more are refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgechat import process
from edgechat.chat.messages import Message
from edgechat.errors import ImportRefusedError
from edgechat.store import import_process, importing, open_ephemeral_store
from edgechat.store.formats import edgechat_json
from tests.time_limit import ends_within
from tests.unit.store.examples import archive_json, conversation_json


def zip_bytes(content: bytes, name: str = "conversations.json", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def lying_zip(content: bytes) -> bytes:
    """Return a ZIP file whose directory says that the file in it has one byte."""
    return zip_bytes(content).replace(len(content).to_bytes(4, "little"), (1).to_bytes(4, "little"))


def database(*statements: str) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE conversations (id TEXT, name TEXT, model TEXT)")
        for statement in statements:
            db.execute(statement)
        db.commit()
        with io.BytesIO() as file:
            if not hasattr(db, "serialize"):
                pytest.skip("needs Python 3.11")
            file.write(db.serialize())
            return file.getvalue()


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the reader of a small file more time on a busy machine."""
    monkeypatch.setattr(import_process, "_MIN_TIMEOUT_S", 600.0)


RESPONSES = "CREATE TABLE responses (id, model, prompt, system, response, conversation_id, datetime_utc)"
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip of empty lists": (lambda: zip_bytes(b"[" + b"[]," * 4_000_000 + b"[]]"), "4000001 conversations; the limit"),
    "zip of zeros": (lambda: zip_bytes(bytes(64 << 20)), "the limit for a ZIP file of 65 kB"),
    "zip with bzip2": (lambda: zip_bytes(bytes(64 << 20), method=zipfile.ZIP_BZIP2), "the limit for a ZIP file"),
    "zip with a false size": (lambda: lying_zip(b"[" * 100_000), "cannot be read|not valid JSON"),
    "zip without the file": (lambda: zip_bytes(b"x", "x" * 60_000), "contains no conversations.json"),
    "large list": (lambda: b"[" + b"[]," * 14_000_000 + b"[]]", "needs more than .* of memory"),
    "deep list": (lambda: b"[" * 1_000_000, "not valid JSON"),
    "deep object": (lambda: b'{"mapping":' * 200_000, "not valid JSON"),
    "many conversations": (
        lambda: b'{"format":"edgechat","conversations":['
        + b",".join(b'{"conversation":{"id":"%d"},"messages":[]}' % i for i in range(100_001)) + b"]}",
        "100001 conversations; the limit is 100000",
    ),
    "endless view": (
        lambda: database(RESPONSES, "INSERT INTO conversations VALUES (1, 'x', 'm')",
            f"CREATE VIEW prompt_attachments AS {ENDLESS} SELECT i AS response_id, i AS attachment_id FROM n"),
        "`prompt_attachments` is not a plain table",
    ),
    "endless view with another name": (
        lambda: database(f"CREATE VIEW Responses AS {ENDLESS} SELECT i AS id FROM n", "CREATE TABLE threads (id)"),
        "`responses` is not a plain table",
    ),
    "generated column": (
        lambda: database("CREATE TABLE responses (id, model, prompt AS (printf('%.*c', 300000000, 'x')))"),
        "`responses` is not a plain table",
    ),
    "virtual table": (
        lambda: database("CREATE VIRTUAL TABLE responses USING fts5 (id, model)"), "`responses` is not a plain table",
    ),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="the memory limit of other systems is checked too rarely")
@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, message = BOMBS[name]
    file = tmp_path / "file"
    file.write_bytes(make())
    with pytest.raises(ImportRefusedError, match=message) as caught:
        import_process.read_file(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_import_in_a_process_returns_the_same_data(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xc3\xa9xport \xff.json" if sys.platform == "linux" else b"export.json")
    file.write_bytes(archive_json({"id": "a", "text": "\0 \u202e \ud800"}, {"id": "b", "parent_id": "x"}))
    imported = import_process.read_file(file)
    assert imported == importing.read_file(file)
    assert imported.problems


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImportRefusedError, match=r"Cannot read .*pipe: not a regular file"), ends_within():
        import_process.read_file(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
@pytest.mark.parametrize("size", [0, 10])
def test_file_is_read_only_to_the_size_that_its_limits_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The size of a file in /proc is 0, and a file can grow after its size was read."""
    file = tmp_path / "file"
    file.write_bytes(archive_json({"id": "a", "text": "x" * 1000}))
    monkeypatch.setattr(import_process, "_UNKNOWN_SIZE_BYTES", 500)
    status = os.stat_result((0o100600, 0, 0, 0, 0, 0, size, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda descriptor: status)
    limits = import_process._compute_limits(file)
    monkeypatch.undo()
    assert limits.file_bytes == (size or 500)
    with pytest.raises(ImportRefusedError, match=r"grew to more than .* during the import"):
        importing.read_file(file, limits.file_bytes)


def test_slow_import_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"{}")
    code = "import time; time.sleep(600)"
    monkeypatch.setattr(process, "make_command_line", lambda *arguments: [sys.executable, "-c", code])
    monkeypatch.setattr(import_process, "_MIN_TIMEOUT_S", 0.5)
    waited: list[float] = []
    with pytest.raises(ImportRefusedError, match="took more than"), ends_within():
        import_process.read_file(file, waited.append)
    assert waited


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "print('noise')", "import os; os.abort()"])
def test_reader_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(process, "make_command_line", lambda *arguments: [sys.executable, "-c", code])
    with pytest.raises(ImportRefusedError, match=r"Cannot import .*: the reader failed with code"):
        import_process.read_file(tmp_path / "file")


def test_odd_values_of_an_export_are_limited() -> None:
    data = json.loads(archive_json({"id": "a", "text": "x" * 5000}, title="t" * 1_000_000, tags=["g" * 9999] * 999))
    data["conversations"][0]["conversation"]["settings"] = {"temperature": 0.5, "no such": [[[]]], "top_p": "x"}
    imported = edgechat_json.decode(json.dumps(data).encode())
    [record] = imported.records
    assert len(record.conversation.title) == 1000
    assert [len(t) for t in record.conversation.tags] == [1000] * 100
    assert record.conversation.settings == {"temperature": 0.5}
    assert len(record.messages[0].text) == 5000


def test_problems_are_limited_in_number_and_length() -> None:
    messages = [{"id": f"m{n}", "parent_id": "gone" * 1000} for n in range(200)]
    imported = edgechat_json.decode(archive_json(*messages, title="t" * 1_000_000))
    assert len(imported.problems) == 51
    assert max(map(len, imported.problems)) <= 300
    assert imported.problems[-1] == "There are 150 more problems."


def test_many_siblings_and_conversations_are_merged_in_linear_time() -> None:
    """The number of steps per message must not depend on the number of its siblings."""
    n_steps: list[int] = []
    for n in (500, 2000):
        store = open_ephemeral_store()
        steps = [0]

        def count(steps: list[int] = steps) -> int:
            steps[0] += 1
            return 0

        store.database.connection.set_progress_handler(count, 1000)
        messages = [Message(id=f"m{i}", role="user", text="hi") for i in range(n)]
        siblings = [Message(id=f"s{i}", parent_id="m0", role="user", text="hi") for i in range(n)]
        edgechat_json.merge(store, edgechat_json.decode(conversation_json(*messages, *siblings)), dry_run=False)
        n_steps.append(steps[0])
        store.close()
    assert n_steps[1] < 8 * n_steps[0]


def test_reply_of_the_process_can_be_encoded() -> None:
    reply = import_process.ImportReply(data=edgechat_json.ImportedData(records=[], attachments={"a": b"\xff"}))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=import_process.ImportReply) == reply
