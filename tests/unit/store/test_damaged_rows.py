"""Rows with damaged values: all other rows can be used, one notice reports the damage, and a recovery repairs it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgechat import paths
from edgechat.chat.messages import Conversation, Message, new_id, now_ms
from edgechat.cli.history import history
from edgechat.store import open_store, recovery
from edgechat.store.formats import edgechat_json
from edgechat.store.row_repair import COLUMNS, repair_row
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import STATS

N_MESSAGES = 5


@pytest.fixture
def ids(home: Path) -> list[str]:
    """IDs of two conversations of five messages in the user's history."""
    store = open_store()
    conversations = [Conversation(id=new_id(), title=f"Talk {n}", created_at_ms=now_ms(), tags=("work",)) for n in "ab"]
    for conversation in conversations:
        parent_id = None
        for number in range(N_MESSAGES):
            message = Message(
                id=new_id(), parent_id=parent_id, role="assistant" if number % 2 else "user",
                text=f"message {number} of {conversation.title}", model="m.gguf" if number % 2 else "",
                stats=STATS if number % 2 else None, finish_reason="stop" if number % 2 else "",
                created_at_ms=now_ms(),
            )  # fmt: skip
            store.append(conversation, [message])
            parent_id = message.id
    store.close()
    return [c.id for c in conversations]


def change(statement: str, *parameters: object) -> None:
    """Run a statement in the user's history without the rules of STRICT tables, keys and triggers."""
    with contextlib.closing(sqlite3.connect(paths.history_file(), isolation_level=None)) as db:
        schema = db.execute("SELECT name, sql FROM sqlite_schema").fetchall()
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, ') STRICT', ')'), 'NOT NULL', '') WHERE type = 'table'"
        )
        db.execute("DELETE FROM sqlite_schema WHERE type = 'trigger'")
        triggers = [sql for name, sql in schema if sql and sql.startswith("CREATE TRIGGER")]
    with contextlib.closing(sqlite3.connect(paths.history_file(), isolation_level=None)) as db:
        assert db.execute(statement, parameters).rowcount == 1
        db.execute("PRAGMA writable_schema = ON")
        for name, sql in schema:
            db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))
        db.execute("PRAGMA writable_schema = OFF")
    with contextlib.closing(sqlite3.connect(paths.history_file(), isolation_level=None)) as db:
        for sql in triggers:
            db.execute(sql)


INVALID_TEXT = b"mess\xffage \xc3"
MESSAGE_DAMAGE = [
    ("text", INVALID_TEXT), ("text", None), ("id", INVALID_TEXT), ("id", "not an ID"), ("id", None),
    ("role", "usex"), ("role", INVALID_TEXT), ("finish_reason", "stxp"), ("stats", "{"), ("stats", '{"ttft_s": "x"}'),
    ("stats", INVALID_TEXT), ("created_at_ms", -1), ("created_at_ms", 1 << 62), ("created_at_ms", "soon"),
    ("n_tokens", -5), ("n_tokens", 1.5), ("reasoning", None), ("model", INVALID_TEXT), ("context_start_id", "\x01"),
    ("parent_key", 77), ("parent_key", "own"), ("active_child_key", "own"), ("active_child_key", -1),
    ("writer", INVALID_TEXT), ("hidden_at_ms", 3),
]  # fmt: skip
CONVERSATION_DAMAGE = [
    ("title", INVALID_TEXT), ("title", None), ("id", INVALID_TEXT), ("settings", "{"), ("settings", "[]"),
    ("settings", INVALID_TEXT), ("tags", "{"), ("tags", "[1]"), ("tags", None), ("folder", INVALID_TEXT),
    ("created_at_ms", "x"), ("updated_at_ms", -1), ("updated_at_ms", 1 << 62), ("head_key", 77), ("head_key", "x"),
    ("pinned", 9), ("archived", "x"),
]  # fmt: skip


def damage(table: str, column: str, value: object) -> None:
    """Set a column of the third message, or of the first conversation, to a value that edgechat never writes."""
    key = f"(SELECT key FROM {table} ORDER BY key LIMIT 1 OFFSET {2 if table == 'messages' else 0})"
    if value == "own":
        change(f"UPDATE {table} SET {column} = key WHERE key = {key}")
    elif isinstance(value, bytes):
        change(f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE key = {key}", value)
    else:
        change(f"UPDATE {table} SET {column} = ? WHERE key = {key}", value)


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(history, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("messages", *d) for d in MESSAGE_DAMAGE] + [("conversations", *d) for d in CONVERSATION_DAMAGE],
)
def test_damaged_value_hides_nothing_and_is_repaired(ids: list[str], table: str, column: str, value: object) -> None:
    damage(table, column, value)
    store = open_store()
    for conversation_id in store.conversation_ids():
        assert conversation_id in ids or column == "id"
        messages = store.messages(store.conversation(conversation_id).id)
        assert len(messages) == N_MESSAGES
        assert msgspec.convert(msgspec.to_builtins(messages), list[Message]) == messages
        shown, _ = run("show", conversation_id)
        for number in {*range(N_MESSAGES)} - {2}:
            assert f"message {number}" in shown or column in ("parent_key", "id")
    assert len(store.list_conversations(archived=None)) == 2
    assert len(store.search("message", limit=99)) >= 2 * N_MESSAGES - 1
    store.decode_tps("m.gguf")
    store.recent_inputs(10)
    store.list_conversations(tag="work")
    assert store.latest_id() in store.conversation_ids()
    continued = store.conversation(store.conversation_ids()[0 if table == "messages" else 1])
    head = continued.head_id
    assert head is not None
    store.append(continued, [Message(id=new_id(), parent_id=head, role="user", text="goes on", created_at_ms=now_ms())])
    store.set_head([head])
    store.close()
    exported, _ = run("export", "--all")
    assert len(edgechat_json.decode(exported.encode()).records) == 2
    assert not recovery.is_intact(paths.history_file())
    assert "recovered" in run("recover")[0]
    assert recovery.is_intact(paths.history_file())
    assert run("recover")[0].rstrip().endswith("nothing to recover.")
    store = open_store()
    assert sum(len(store.messages(i)) for i in store.conversation_ids()) == 2 * N_MESSAGES + 1
    assert store.notices == []
    store.close()


def test_damage_is_reported_in_one_line(ids: list[str]) -> None:
    damage("messages", "text", INVALID_TEXT)
    damage("conversations", "title", INVALID_TEXT)
    for arguments in (["list"], ["show", ids[0]], ["export", "--all"], ["search", "message"]):
        shown, note = run(*arguments)
        assert note.count("\n") == 1
        assert "damaged values" in note
        assert "edgechat history recover" in note
        assert "\ufffd" in shown
    assert run("show", ids[1])[1] == ""


def test_message_whose_id_differs_from_the_index_can_be_continued(ids: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        [[message_id]] = db.execute("SELECT id FROM messages ORDER BY key LIMIT 1 OFFSET 4")
    content = paths.history_file().read_bytes()
    # The record of the table has the role after the ID; the index has only the ID and the rowid.
    start = next(
        i
        for i in range(len(content))
        if content.startswith(message_id.encode(), i) and b"user" in content[i + 16 : i + 40]
    )
    other_id = ("0" if message_id[0] != "0" else "1") + message_id[1:]
    paths.history_file().write_bytes(content[:start] + other_id.encode() + content[start + 16 :])
    store = open_store()
    assert store.conversation(ids[0]).head_id == other_id
    store.append(
        store.conversation(ids[0]), [Message(id=new_id(), parent_id=other_id, role="user", text="x", created_at_ms=1)]
    )
    assert len(store.messages(ids[0])) == N_MESSAGES + 1
    store.close()


def test_lost_parent_is_replaced_by_the_message_before_it(ids: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        db.execute("DELETE FROM messages WHERE key = (SELECT key FROM messages ORDER BY key LIMIT 1 OFFSET 2)")
        db.commit()
    store = recovery.recover(paths.history_file())
    path = store.messages(ids[0])
    assert [m.text[:9] for m in path] == ["message 0", "message 1", "message 3", "message 4"]
    assert [m.parent_id for m in path] == [None, *(m.id for m in path[:-1])]
    store.close()


def test_missing_parts_of_the_schema_are_restored(ids: list[str]) -> None:
    for name in ("TABLE message_search", "INDEX messages_of", "TRIGGER message_added", "VIEW searchable"):
        with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
            db.execute(f"DROP {name}")
        assert not recovery.is_intact(paths.history_file())
        run("recover")
        assert recovery.is_intact(paths.history_file())
        assert len(run("search", "message")[0].splitlines()) == 4 * N_MESSAGES


def test_damaged_search_index_is_restored(ids: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        db.execute("UPDATE message_search_data SET block = zeroblob(length(block)) WHERE id > 100")
        db.commit()
    assert not recovery.is_intact(paths.history_file())
    run("recover")
    assert len(run("search", "message")[0].splitlines()) == 4 * N_MESSAGES


def test_damaged_attachment_is_kept_with_its_new_hash(home: Path) -> None:
    from tests.unit.store.test_recovery import attach

    store = open_store()
    conversation_id = attach(store, b"important notes")
    store.close()
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        db.execute("UPDATE attachments SET data = ?", (b"importent notes",))
        db.commit()
    assert not recovery.is_intact(paths.history_file())
    run("recover")
    store = open_store()
    [message] = store.messages(conversation_id)
    assert store.read_attachment(message.attachments[0].sha256) == b"importent notes"
    store.close()


def test_repair_knows_every_column(ids: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        for table, columns in COLUMNS.items():
            assert [row[1] for row in db.execute(f"PRAGMA table_info({table})")] == list(columns)
            for row in db.execute(f"SELECT * FROM {table}"):
                assert not repair_row(table, row).is_changed


def test_damaged_conversation_in_an_export_is_left_out_with_a_notice(
    ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgechat.errors import StoreError

    load = SqliteStore.messages

    def fail(store: SqliteStore, conversation_id: str) -> list[Message]:
        if conversation_id == ids[0]:
            raise StoreError("It is damaged.")
        return load(store, conversation_id)

    monkeypatch.setattr(SqliteStore, "messages", fail)
    exported, note = run("export", "--all")
    assert [r.conversation.id for r in edgechat_json.decode(exported.encode()).records] == [ids[1]]
    assert "1 conversation could not be exported. It is damaged." in note
    with pytest.raises(StoreError, match="damaged"):
        run("export", ids[0])
