"""Import of databases that `llm` itself wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llm
import pytest
import sqlite_utils
from llm.migrations import migrate

from edgechat.errors import ImportRefusedError
from edgechat.store import importing, open_ephemeral_store
from edgechat.store.formats import edgechat_json, markdown


class Scripted(llm.Model):
    """A model for llm with a fixed response to each prompt."""

    model_id = "scripted"
    can_stream = False

    def execute(self, prompt: Any, *_: Any, **__: Any) -> Any:
        yield f"You said: {prompt.prompt}"


def test_both_layouts_are_imported(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    db = sqlite_utils.Database(path)
    migrate(db)  # type: ignore[no-untyped-call]
    talk = Scripted().conversation()
    for prompt, more in (("Hello <b>", {"system": "Be brief"}), ("Second", {"fragments": ["a long fragment " * 3]})):
        response = talk.prompt(prompt, **more)
        response.text()
        response.log_to_db(db)  # type: ignore[no-untyped-call]
    # The older layout: a row holds a prompt and its response.
    db.table("conversations").insert({"id": "old", "name": "Old talk", "model": "m"})
    for number in range(2):
        db.table("responses").insert(
            {
                "id": f"r{number}", "model": "m", "prompt": f"q{number}", "system": "sys", "response": f"a{number}",
                "conversation_id": "old", "datetime_utc": f"2024-01-0{number + 1}T00:00:00", "output_tokens": 7,
            }
        )  # fmt: skip
    db.table("attachments").insert(
        {"id": "att", "type": "text/plain", "path": "/x/notes.txt", "content": b"some notes"}
    )
    db.table("prompt_attachments").insert({"response_id": "r1", "attachment_id": "att", "order": 0})
    db.close()
    before = path.read_bytes()
    store = open_ephemeral_store()
    merged = edgechat_json.merge(store, importing.read_file(path), dry_run=False)
    assert (merged.n_conversations, merged.n_messages, merged.problems) == (2, 10, [])
    assert path.read_bytes() == before
    assert edgechat_json.merge(store, importing.read_file(path), dry_run=False).n_messages == 0
    old, new = (edgechat_json.load_record(store, i) for i in store.conversation_ids())
    assert [(m.role, m.text) for m in markdown.active_path(old)] == [
        ("system", "sys"), ("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1"),
    ]  # fmt: skip
    assert [a.name for a in markdown.active_path(old)[3].attachments] == ["notes.txt"]
    messages = markdown.active_path(new)
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3].text == "a long fragment " * 3 + "\nSecond"
    assert (messages[4].model, messages[4].created_at_ms > 0) == ("scripted", True)
    store.close()


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sqlite_utils.Database(path).table("things").insert({"id": 1})
    with pytest.raises(ImportRefusedError, match="is not a log database of the `llm` tool"):
        importing.read_file(path)


def test_database_with_missing_columns_is_refused(tmp_path: Path) -> None:
    db = sqlite_utils.Database(tmp_path / "logs.db")
    db.table("conversations").insert({"id": "c", "name": "n", "model": "m"})
    db.table("responses").insert({"id": "r", "conversation_id": "c", "datetime_utc": "2026-01-01"})
    db.close()
    with pytest.raises(ImportRefusedError, match="log database of the `llm` tool"):
        importing.read_file(tmp_path / "logs.db")
