"""JSON exports: round trips, and repairs of files with inconsistent content."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.messages import Attachment, Conversation, Message
from edgechat.store import open_ephemeral_store
from edgechat.store.formats import edgechat_json, markdown
from edgechat.store.sqlite import SqliteStore
from tests.unit.store.examples import (
    archive_json,
    conversation_json,
    export_all,
    import_json,
    import_new,
    stores,
)


@pytest.mark.slow
@given(stores())
def test_round_trip_is_identical_and_second_import_changes_nothing(store: SqliteStore) -> None:
    exported = export_all(store)
    target = open_ephemeral_store()
    first = edgechat_json.merge(target, edgechat_json.decode(exported), dry_run=False)
    assert first.problems == []
    assert export_all(target) == exported
    again = edgechat_json.merge(target, edgechat_json.decode(exported), dry_run=False)
    assert (again.n_conversations, again.n_messages, again.n_existing) == (0, 0, first.n_messages)
    assert export_all(target) == exported
    dry = edgechat_json.merge(open_ephemeral_store(), edgechat_json.decode(exported), dry_run=True)
    assert (dry.n_conversations, dry.n_messages) == (first.n_conversations, first.n_messages)
    store.close()
    target.close()


def test_cycles_missing_parents_and_duplicates_are_repaired_and_reported() -> None:
    store, merged = import_new(
        archive_json(
            {"id": "a", "parent_id": "b", "text": "A"}, {"id": "b", "parent_id": "a", "text": "B"},
            {"id": "c", "parent_id": "nowhere", "text": "C"}, {"id": "c", "text": "second C"},
            {"id": "d", "parent_id": "d", "text": "D"}, head_id="not here",
        )
    )  # fmt: skip
    assert {m.text for m in store.messages("c")} == {"A", "B", "C", "D"}
    assert len(merged.problems) == 4
    assert store.conversation("c").head_id is not None


@given(st.lists(st.tuples(st.integers(0, 6), st.none() | st.integers(0, 7)), max_size=12))
def test_any_parent_links_become_a_tree(links: list[tuple[int, int | None]]) -> None:
    data = archive_json(*({"id": str(i), "parent_id": None if p is None else str(p)} for i, p in links))
    store, _ = import_new(data)
    if links:
        yielded_ids: set[str | None] = {None}
        for message in store.messages("c"):
            assert message.parent_id in yielded_ids
            yielded_ids.add(message.id)
        assert len(yielded_ids) - 1 == len({i for i, _ in links})
    store.close()


def test_message_of_another_conversation_is_not_imported() -> None:
    store, _ = import_new(archive_json({"id": "a", "text": "mine"}))
    other = archive_json({"id": "a", "text": "theirs"}, {"id": "z", "parent_id": "a"}, id="other")
    edgechat_json.merge(store, edgechat_json.decode(other), dry_run=False)
    assert [m.text for m in store.messages("c")] == ["mine"]


def test_attachment_with_wrong_hash_is_left_out() -> None:
    fake = {"sha256": "0" * 64, "name": "x", "media_type": "text/plain", "size_bytes": 1}
    body = json.loads(archive_json({"id": "a", "attachments": [fake]}))
    body["attachments"] = {"0" * 64: "eA=="}
    store, merged = import_new(json.dumps(body).encode())
    assert store.messages("c")[0].attachments == ()
    assert len(merged.problems) == 2


def test_cyclic_active_child_does_not_hang() -> None:
    store = open_ephemeral_store()
    import_json(store, conversation_json(
        Message(id="a", role="user", active_child_id="b"),
        Message(id="b", role="assistant", parent_id="a", active_child_id="a"),
        Message(id="", role="user"),
    ))  # fmt: skip
    store.select_branch(["a"])
    assert store.conversation("c").head_id == "b"


def test_invalid_ids_are_replaced_by_stable_ones() -> None:
    store = open_ephemeral_store()
    wild = "\x1b[2J\x1b[H"
    data = conversation_json(
        Message(id=wild, role="user", text="Q"), Message(id="../b", role="assistant", parent_id=wild, text="A"),
        conversation_id=wild, head_id="../b",
    )  # fmt: skip
    assert import_json(store, data).n_messages == 2
    assert import_json(store, data).n_messages == 0
    [summary] = store.list_conversations()
    assert summary.conversation.id.isalnum()
    assert [m.text for m in markdown.active_path(edgechat_json.load_record(store, summary.conversation.id))] == [
        "Q",
        "A",
    ]


def test_numbers_are_clamped_to_the_database_range() -> None:
    store = open_ephemeral_store()
    import_json(store, conversation_json(
        Message(id="a", role="user", created_at_ms=1 << 62, n_tokens=1 << 70),
        Message(id="b", role="user", created_at_ms=-5),
    ))  # fmt: skip
    assert len(store.messages("c")) == 2


def test_later_export_of_a_stored_conversation_extends_it() -> None:
    store = open_ephemeral_store()
    first = [Message(id="q1", role="user", text="1"), Message(id="a1", role="assistant", parent_id="q1")]
    second = [
        Message(id="q2", role="user", text="2", parent_id="a1"),
        Message(id="a2", role="assistant", parent_id="q2"),
    ]
    import_json(store, conversation_json(*first, head_id="a1"))
    import_json(store, conversation_json(*first, *second, head_id="a2"))
    assert store.conversation("c").head_id == "a2"
    store.set_head(["q1", "a1"])
    store.append(store.conversation("c"), [Message(id="q3", role="user", parent_id="a1")])  # a local branch
    import_json(store, conversation_json(*first, *second, head_id="a2"))
    assert store.conversation("c").head_id == "q3"


def test_a_lost_attachment_does_not_hold_back_conversation_json() -> None:
    store = open_ephemeral_store()
    data = b"x"
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=1)
    about = Conversation(id="c", created_at_ms=1)
    store.append(about, [Message(id="m", role="user", text="words", attachments=(file,))], {sha256: data})
    store.database.connection.execute("UPDATE attachments SET data = x'00'")
    assert edgechat_json.export(store, ["c"]).attachments == {}


def test_json_import_adds_attachments_that_a_markdown_import_lost() -> None:
    store, other = open_ephemeral_store(), open_ephemeral_store()
    data = b"notes"
    sha256 = hashlib.sha256(data).hexdigest()
    file = Attachment(sha256=sha256, name="notes", media_type="text/plain", size_bytes=5)
    about = Conversation(id="c", created_at_ms=1)
    store.append(about, [Message(id="m", role="user", text="words", attachments=(file,))], {sha256: data})
    back, problems = markdown.parse(markdown.render(edgechat_json.load_record(store, "c")))
    merged = edgechat_json.merge(other, edgechat_json.sanitize([back], {}, problems), dry_run=False)
    assert "notes" in merged.problems[0]
    import_json(other, export_all(store))
    assert other.messages("c") == store.messages("c")
    assert other.read_attachment(sha256) == data
