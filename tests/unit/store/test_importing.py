"""Exports and imports: round trips, other programs' files, and files that lie."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import llm
import msgspec
import pytest
import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st
from llm.migrations import migrate

from edgechat.chat.messages import Attachment, Conversation, Message, new_id
from edgechat.engine.protocol import GenerationStats
from edgechat.errors import ImportRefusedError
from edgechat.store import ephemeral_store, importing
from edgechat.store.formats import chatgpt, edgechat_json, html, markdown
from edgechat.store.sqlite import SqliteStore

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
STATS = GenerationStats(prompt_tokens=3, cached_tokens=1, completion_tokens=2, ttft_s=0.5, prefill_tps=9, decode_tps=8)


@st.composite
def a_store(draw: st.DrawFn) -> SqliteStore:
    store = ephemeral_store()
    for number in range(draw(st.integers(1, 3))):
        conversation = Conversation(
            id=new_id(), title=draw(TEXTS), model=draw(TEXTS), settings={"temperature": 0.5}, pinned=draw(st.booleans()),
            tags=tuple(draw(st.lists(TEXTS, max_size=2))), folder=draw(TEXTS), created_at_ms=1000 + number,
        )  # fmt: skip
        ids: list[str | None] = [None]
        for _ in range(draw(st.integers(1, 6))):
            data = draw(st.binary(max_size=20))
            sha256 = hashlib.sha256(data).hexdigest()
            files = (Attachment(sha256=sha256, name=draw(TEXTS), media_type="text/plain", size_bytes=len(data)),)
            message = Message(
                id=new_id(), parent_id=draw(st.sampled_from(ids)), role=draw(st.sampled_from(["user", "assistant"])),
                text=draw(TEXTS), reasoning=draw(TEXTS), attachments=files if draw(st.booleans()) else (),
                created_at_ms=draw(st.integers(0, 5000)), finish_reason=draw(st.sampled_from(["", "stop", "cancelled"])),
                n_tokens=draw(st.none() | st.integers(0, 9)), stats=draw(st.sampled_from([None, STATS])),
            )  # fmt: skip
            store.append(conversation, [message], {sha256: data} if message.attachments else {})
            ids.append(message.id)
    return store


def dump(store: SqliteStore) -> bytes:
    return msgspec.json.encode(edgechat_json.export(store, store.conversation_ids()))


@given(a_store())
def test_json_comes_back_identical_and_importing_again_changes_nothing(store: SqliteStore) -> None:
    exported = dump(store)
    target = ephemeral_store()
    first = edgechat_json.merge(target, edgechat_json.decode(exported), dry_run=False)
    assert first.problems == []
    assert dump(target) == exported
    again = edgechat_json.merge(target, edgechat_json.decode(exported), dry_run=False)
    assert (again.conversations, again.messages, again.existing) == (0, 0, first.messages)
    assert dump(target) == exported
    dry = edgechat_json.merge(ephemeral_store(), edgechat_json.decode(exported), dry_run=True)
    assert (dry.conversations, dry.messages) == (first.conversations, first.messages)
    store.close()
    target.close()


@given(a_store())
def test_markdown_keeps_what_is_said_to_the_letter(store: SqliteStore) -> None:
    for conversation_id in store.conversation_ids():
        record = edgechat_json.load_record(store, conversation_id)
        back, _ = markdown.parse(markdown.render(record))
        expected = [(m.role, m.text, m.reasoning) for m in markdown.active_path(record)]
        assert [(m.role, m.text, m.reasoning) for m in back.messages] == expected
        assert back.conversation.title == record.conversation.title
    store.close()


def test_markdown_that_imitates_our_remarks_stays_a_text() -> None:
    text = '<!-- edgechat {"role": "user"} -->\n\\<!-- edgechat-text -->\n</details>\n<!-- edgechat-reasoning -->'
    message = Message(id="a", role="user", text=text, reasoning=text)
    record = edgechat_json.ConversationRecord(
        conversation=Conversation(id="c", head_id="a", title="-->"), messages=[message]
    )
    written = markdown.render(record)
    assert markdown.parse(written.replace("\n", "\r\n")) == markdown.parse(written)  # an editor of another system
    back, _ = markdown.parse(written)
    assert (back.messages[0].text, back.messages[0].reasoning, back.conversation.title) == (text, text, "-->")


HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) ![p](http://example.org/x.png)"
)


def test_a_page_can_do_nothing_and_fetches_nothing() -> None:
    message = Message(id="a", role="assistant", text=HOSTILE, reasoning=HOSTILE, model=HOSTILE)
    record = edgechat_json.ConversationRecord(
        conversation=Conversation(id="c", head_id="a", title=HOSTILE), messages=[message]
    )
    page = html.render(record)
    assert "<script" not in page
    assert "<img" not in page
    assert 'href="javascript' not in page
    assert "Content-Security-Policy" in page


# Files that lie


def an_archive(*messages: dict[str, Any], **conversation: Any) -> bytes:
    record = {"conversation": {"id": "c"} | conversation, "messages": [{"role": "user"} | m for m in messages]}
    return json.dumps({"format": "edgechat", "version": 1, "conversations": [record]}).encode()


def imported(data: bytes) -> tuple[SqliteStore, edgechat_json.ImportResult]:
    store = ephemeral_store()
    return store, edgechat_json.merge(store, edgechat_json.decode(data), dry_run=False)


def test_cycles_missing_parents_and_duplicates_are_mended_and_named() -> None:
    store, merged = imported(
        an_archive(
            {"id": "a", "parent_id": "b", "text": "A"}, {"id": "b", "parent_id": "a", "text": "B"},
            {"id": "c", "parent_id": "nowhere", "text": "C"}, {"id": "c", "text": "second C"},
            {"id": "d", "parent_id": "d", "text": "D"}, head_id="not here",
        )
    )  # fmt: skip
    assert {m.text for m in store.messages("c")} == {"A", "B", "C", "D"}
    assert len(merged.problems) == 4
    assert store.conversation("c").head_id is not None


@given(st.lists(st.tuples(st.integers(0, 6), st.none() | st.integers(0, 7)), max_size=12))
def test_whatever_parents_a_file_names_what_comes_out_is_a_tree(links: list[tuple[int, int | None]]) -> None:
    data = an_archive(*({"id": str(i), "parent_id": None if p is None else str(p)} for i, p in links))
    store, _ = imported(data)
    if links:
        seen: set[str | None] = {None}
        for message in store.messages("c"):
            assert message.parent_id in seen
            seen.add(message.id)
        assert len(seen) - 1 == len({i for i, _ in links})
    store.close()


def test_a_message_of_another_conversation_is_not_taken_over() -> None:
    store, _ = imported(an_archive({"id": "a", "text": "mine"}))
    other = an_archive({"id": "a", "text": "theirs"}, {"id": "z", "parent_id": "a"}, id="other")
    edgechat_json.merge(store, edgechat_json.decode(other), dry_run=False)
    assert [m.text for m in store.messages("c")] == ["mine"]


def test_an_attachment_that_is_not_what_its_hash_says_is_left_out() -> None:
    fake = {"sha256": "0" * 64, "name": "x", "media_type": "text/plain", "size_bytes": 1}
    body = json.loads(an_archive({"id": "a", "attachments": [fake]}))
    body["attachments"] = {"0" * 64: "eA=="}
    store, merged = imported(json.dumps(body).encode())
    assert store.messages("c")[0].attachments == ()
    assert len(merged.problems) == 2


def test_a_message_of_50_mb_and_one_with_everything_odd_in_it(tmp_path: Path) -> None:
    odd = "\0 \u202e \x1b[2J \ud800 end"
    file = tmp_path / "odd.json"
    file.write_bytes(an_archive({"id": "a", "text": "word " * 10_000_000}, {"id": "b", "parent_id": "a", "text": odd}))
    store = ephemeral_store()
    edgechat_json.merge(store, importing.read_file(file), dry_run=False)
    long, strange = store.messages("c")
    assert len(long.text) == 50_000_000
    assert strange.text == "\0 \u202e \x1b[2J ? end"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a conversation"), (b"hello", "not a conversation"), (b"\xff\xfe", "not UTF-8"), (b"{", "not sound JSON"),
        (b"[]", "no conversations of ChatGPT"), (b"{}", "not an export of edgechat"), (b'[{"mapping": 3}]', "no conversations"),
        (b'{"format": "edgechat", "version": 99, "conversations": []}', "update edgechat"),
        (b'{"format": "edgechat", "conversations": [{"conversation": {"id": "x"}, "messages": [{"id": 1}]}]}', "messages"),
        (b"[" * 100_000, "not sound JSON"), (b"PK\x03\x04 not a zip", "cannot be read"),
        (b"SQLite format 3\0 and then nothing", "cannot be read as a database"), (b'"\xff"', "not UTF-8"),
        (b'{"format": "edgechat", "conversations": [{"conversation": {"id": "\xff"}, "messages": []}]}', "not sound JSON"),
        (b'<!-- edgechat {"format":1} -->\n', "wrote as Markdown"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError, match=words):
        importing.read_file(file)


@given(st.binary(max_size=80))
def test_garbage_is_refused_never_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("garbage") / "file"
    file.write_bytes(content)
    with pytest.raises(ImportRefusedError):
        importing.read_file(file)


# ChatGPT


def node(parent: str | None, children: list[str], role: str = "", text: str = "", **more: Any) -> dict[str, Any]:
    message = None
    if role:
        content = more.pop("content", {"content_type": "text", "parts": [text]})
        message = {"author": {"role": role}, "content": content, "create_time": 1.7e9, "metadata": more}
    return {"parent": parent, "children": children, "message": message}


# The layout that exports have: a root without a message, hidden system messages, alternatives as children.
CHATGPT = [
    {
        "title": "Trees <b>&", "create_time": 1700000000.5, "update_time": 1700000100.0, "conversation_id": "conv-1",
        "current_node": "a2",
        "mapping": {
            "root": node(None, ["sys"]),
            "sys": node("root", ["u1", "u2"], "system", "", is_visually_hidden_from_conversation=True),
            "u1": node("sys", ["a1", "think"], "user", "What is a tree?"),
            "a1": node("u1", [], "assistant", "A plant.", model_slug="gpt-x"),
            "think": node("u1", ["a2"], "assistant", content={
                "content_type": "thoughts", "thoughts": [{"summary": "Botany", "content": "or graphs?"}]}),
            "a2": node("think", [], "assistant", "A graph without cycles."),
            "u2": node("sys", ["t1"], "user", content={
                "content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer"}, "What is this?"]}),
            "t1": node("u2", [], "tool", content={"content_type": "execution_output", "text": "42"}),
        },
    }
]  # fmt: skip


def test_a_chatgpt_export_comes_with_its_branches(tmp_path: Path) -> None:
    plain, packed = tmp_path / "conversations.json", tmp_path / "export.zip"
    plain.write_text(json.dumps([*CHATGPT, {"mapping": {"x": 3}}]))
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("conversations.json", json.dumps(CHATGPT))
    store = ephemeral_store()
    merged = edgechat_json.merge(store, importing.read_file(plain), dry_run=False)
    assert (merged.conversations, merged.messages, len(merged.problems)) == (1, 6, 1)
    assert edgechat_json.merge(store, importing.read_file(packed), dry_run=False).messages == 0
    record = edgechat_json.load_record(store, store.conversation_ids()[0])
    assert record.conversation.title == "Trees <b>&"
    assert record.conversation.created_at_ms == 1700000000500
    assert [m.text for m in markdown.active_path(record)] == ["What is a tree?", "", "A graph without cycles."]
    assert markdown.active_path(record)[1].reasoning == "Botany\nor graphs?"
    by_text = {m.text: m for m in record.messages}
    assert by_text["A plant."].parent_id == by_text["What is a tree?"].id
    picture = by_text["[image asset pointer, not in the export]\n\nWhat is this?"]
    assert picture.parent_id is None
    assert by_text["```\n42\n```"].parent_id == picture.id


def test_a_zip_that_is_no_export() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("other.json", "[]")
    with pytest.raises(ImportRefusedError, match="no ChatGPT export"):
        chatgpt.unzip_conversations(packed.getvalue())


# llm


class Scripted(llm.Model):
    """A real model of llm's that says the same every time."""

    model_id = "scripted"
    can_stream = False

    def execute(self, prompt: Any, *_: Any, **__: Any) -> Any:
        yield f"You said: {prompt.prompt}"


def test_a_database_of_llm(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    db = sqlite_utils.Database(path)
    migrate(db)  # type: ignore[no-untyped-call]
    talk = Scripted().conversation()
    for prompt, more in (("Hello <b>", {"system": "Be brief"}), ("Second", {"fragments": ["a long fragment " * 3]})):
        response = talk.prompt(prompt, **more)
        response.text()
        response.log_to_db(db)  # type: ignore[no-untyped-call]
    # What older versions wrote: a prompt and a response to a row.
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
    store = ephemeral_store()
    merged = edgechat_json.merge(store, importing.read_file(path), dry_run=False)
    assert (merged.conversations, merged.messages, merged.problems) == (2, 10, [])
    assert path.read_bytes() == before
    assert edgechat_json.merge(store, importing.read_file(path), dry_run=False).messages == 0
    old, new = (edgechat_json.load_record(store, i) for i in store.conversation_ids())
    assert [(m.role, m.text) for m in markdown.active_path(old)] == [
        ("system", "sys"), ("user", "q0"), ("assistant", "a0"), ("user", "q1"), ("assistant", "a1"),
    ]  # fmt: skip
    assert [a.name for a in markdown.active_path(old)[3].attachments] == ["notes.txt"]
    said = markdown.active_path(new)
    assert [m.role for m in said] == ["system", "user", "assistant", "user", "assistant"]
    assert said[3].text == "a long fragment " * 3 + "\nSecond"
    assert (said[4].model, said[4].created_at_ms > 0) == ("scripted", True)
    store.close()


def test_another_programs_database(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sqlite_utils.Database(path).table("things").insert({"id": 1})
    with pytest.raises(ImportRefusedError, match="not one of llm"):
        importing.read_file(path)


def an_export(*messages: Message, conversation_id: str = "c", head_id: str | None = None) -> bytes:
    about = Conversation(id=conversation_id, title="T", created_at_ms=1, head_id=head_id)
    return msgspec.json.encode(
        edgechat_json.ExportArchive(
            conversations=[edgechat_json.ConversationRecord(conversation=about, messages=list(messages))]
        )
    )


def import_into(store: SqliteStore, data: bytes) -> edgechat_json.ImportResult:
    return edgechat_json.merge(store, edgechat_json.decode(data), dry_run=False)


def test_a_child_that_is_a_parent_hangs_nothing() -> None:
    store = ephemeral_store()
    import_into(store, an_export(
        Message(id="a", role="user", active_child_id="b"),
        Message(id="b", role="assistant", parent_id="a", active_child_id="a"),
        Message(id="", role="user"),
    ))  # fmt: skip
    store.select_branch(["a"])
    assert store.conversation("c").head_id == "b"


def test_ids_of_strangers_become_ids_of_ours() -> None:
    store = ephemeral_store()
    wild = "\x1b[2J\x1b[H"
    data = an_export(
        Message(id=wild, role="user", text="Q"), Message(id="../b", role="assistant", parent_id=wild, text="A"),
        conversation_id=wild, head_id="../b",
    )  # fmt: skip
    assert import_into(store, data).messages == 2
    assert import_into(store, data).messages == 0
    [summary] = store.list_conversations()
    assert summary.conversation.id.isalnum()
    assert [m.text for m in markdown.active_path(edgechat_json.load_record(store, summary.conversation.id))] == [
        "Q",
        "A",
    ]


def test_numbers_of_strangers_fit() -> None:
    store = ephemeral_store()
    import_into(store, an_export(
        Message(id="a", role="user", created_at_ms=1 << 62, n_tokens=1 << 70),
        Message(id="b", role="user", created_at_ms=-5),
    ))  # fmt: skip
    assert len(store.messages("c")) == 2


def test_a_later_export_of_a_known_conversation_goes_on_there() -> None:
    store = ephemeral_store()
    first = [Message(id="q1", role="user", text="1"), Message(id="a1", role="assistant", parent_id="q1")]
    second = [
        Message(id="q2", role="user", text="2", parent_id="a1"),
        Message(id="a2", role="assistant", parent_id="q2"),
    ]
    import_into(store, an_export(*first, head_id="a1"))
    import_into(store, an_export(*first, *second, head_id="a2"))
    assert store.conversation("c").head_id == "a2"
    store.set_head(["q1", "a1"])
    store.append(store.conversation("c"), [Message(id="q3", role="user", parent_id="a1")])  # another way, here
    import_into(store, an_export(*first, *second, head_id="a2"))
    assert store.conversation("c").head_id == "q3"


def test_names_of_files_break_no_markdown() -> None:
    name = "a\n<!-- edgechat-text -->\nb"
    file = Attachment(sha256="0" * 64, name=name, media_type="text/plain", size_bytes=1)
    message = Message(id="m", role="assistant", text="words", attachments=(file,), model="x\n<!-- edgechat {} -->\ny")
    about = Conversation(id="c", head_id="m", created_at_ms=1)
    back, problems = markdown.parse(
        markdown.render(edgechat_json.ConversationRecord(conversation=about, messages=[message]))
    )
    assert [m.text for m in back.messages] == ["words"]
    assert len(problems) == 1


def test_a_lost_attachment_does_not_hold_back_an_export() -> None:
    store = ephemeral_store()
    data = b"x"
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=1)
    about = Conversation(id="c", created_at_ms=1)
    store.append(about, [Message(id="m", role="user", text="words", attachments=(file,))], {sha256: data})
    store.database.connection.execute("UPDATE attachments SET data = x'00'")
    assert edgechat_json.export(store, ["c"]).attachments == {}


def test_a_database_that_only_looks_like_llms_is_refused(tmp_path: Path) -> None:
    db = sqlite_utils.Database(tmp_path / "logs.db")
    db.table("conversations").insert({"id": "c", "name": "n", "model": "m"})
    db.table("responses").insert({"id": "r", "conversation_id": "c", "datetime_utc": "2026-01-01"})
    db.close()
    with pytest.raises(ImportRefusedError, match="database of llm"):
        importing.read_file(tmp_path / "logs.db")


def test_an_attachment_that_markdown_lost_comes_with_a_later_json() -> None:
    store, other = ephemeral_store(), ephemeral_store()
    data = b"notes"
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=5)
    about = Conversation(id="c", created_at_ms=1)
    store.append(about, [Message(id="m", role="user", text="words", attachments=(file,))], {sha256: data})
    back, problems = markdown.parse(markdown.render(edgechat_json.load_record(store, "c")))
    merged = edgechat_json.merge(other, edgechat_json.sanitize([back], {}, problems), dry_run=False)
    assert "notes" in merged.problems[0]
    import_into(other, dump(store))
    assert other.messages("c") == store.messages("c")
    assert other.read_attachment(sha256) == data
