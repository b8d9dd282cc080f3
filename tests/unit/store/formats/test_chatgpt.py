"""Import of ChatGPT exports."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgechat.errors import ImportRefusedError
from edgechat.store import importing, open_ephemeral_store
from edgechat.store.formats import chatgpt, edgechat_json, markdown


def node(parent: str | None, children: list[str], role: str = "", text: str = "", **more: Any) -> dict[str, Any]:
    message = None
    if role:
        content = more.pop("content", {"content_type": "text", "parts": [text]})
        message = {"author": {"role": role}, "content": content, "create_time": 1.7e9, "metadata": more}
    return {"parent": parent, "children": children, "message": message}


# As in real exports: a root without a message, hidden system messages, alternatives as children.
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
                "content_type": "multimodal_text",
                "parts": [{"content_type": "image_asset_pointer"}, "What is this?"],
            }),
            "t1": node("u2", [], "tool", content={"content_type": "execution_output", "text": "42"}),
        },
    }
]  # fmt: skip


def test_export_keeps_its_branches(tmp_path: Path) -> None:
    plain, packed = tmp_path / "conversations.json", tmp_path / "export.zip"
    plain.write_text(json.dumps([*CHATGPT, {"mapping": {"x": 3}}]))
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("conversations.json", json.dumps(CHATGPT))
    store = open_ephemeral_store()
    merged = edgechat_json.merge(store, importing.read_file(plain), dry_run=False)
    assert (merged.n_conversations, merged.n_messages, len(merged.problems)) == (1, 6, 1)
    assert edgechat_json.merge(store, importing.read_file(packed), dry_run=False).n_messages == 0
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


def test_zip_without_conversations_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("other.json", "[]")
    with pytest.raises(ImportRefusedError, match="not a ChatGPT export"):
        chatgpt.unzip_conversations(packed.getvalue())


def with_message(message: object, **entries: object) -> dict[str, Any]:
    """Return a conversation with a readable reply "fine" and another message."""
    mapping = {"u": {"parent": None, "children": ["a"], "message": message}, "a": node("u", [], "assistant", "fine")}
    return {"title": "T", "conversation_id": "c", "current_node": "a", "mapping": {**mapping, **entries}}


@pytest.mark.parametrize(
    ("message", "text", "problem"),
    [
        ({"author": {"role": "user"}, "content": {"parts": ["see", None]}}, "see", ""),
        ({"author": {"role": "user"}, "content": {"parts": ["see", 5]}}, "see", "a part of a message is an integer"),
        ({"author": {"role": "user"}, "content": {"parts": "see"}}, "see", ""),
        ({"author": {"role": "user"}, "content": "see"}, "see", ""),
        ({"author": {"role": "user"}, "content": ["see"], "metadata": 3, "create_time": "x"}, "see", ""),
        ({"author": "user", "content": {"parts": ["see"]}}, "see", ""),
        ({"author": {"role": ["x"]}, "content": {"parts": ["see"]}}, None, "the author of a message is an array"),
        ({"author": {"role": "judge"}, "content": {"parts": ["see"]}}, None, 'the author of a message is "judge"'),
        ({"content": {"parts": ["see"]}}, None, "the author of a message is null"),
        ({"author": {"role": "user"}, "content": 5}, None, "the content of a message is an integer"),
        ({"author": {"role": "user"}, "content": {"parts": [5]}}, None, "a part of a message is an integer"),
        ({"author": {"role": "user"}, "content": {"thoughts": [3, {"summary": 4}]}}, None, ""),
        ([1], None, "a message is an array, not an object"),
    ],
)  # fmt: skip
def test_message_with_unusual_layout_does_not_lose_the_others(message: object, text: str | None, problem: str) -> None:
    data = chatgpt.parse([with_message(message)])
    assert [m.text for m in data.records[0].messages] == ([text] if text else []) + ["fine"]
    expected = [f"T: 1 message could not be read completely: {problem}"] if problem else []
    assert [p[: len(e)] for p, e in zip(data.problems, expected, strict=True)] == expected


@pytest.mark.parametrize("entry", [5, None, "x", [1], {"message": None, "parent": ["x"], "children": 7}])
def test_unknown_entry_does_not_lose_the_messages(entry: object) -> None:
    message = {"author": {"role": "user"}, "content": {"parts": ["see"]}}
    data = chatgpt.parse([with_message(message, q=entry)])
    assert [m.text for m in data.records[0].messages] == ["see", "fine"]
    assert len(data.problems) == (not isinstance(entry, dict))


def test_conversations_with_unknown_layout_are_counted_with_a_plain_reason() -> None:
    good = with_message(None)
    data = chatgpt.parse([good, 5, None, {"title": "nomap"}, {"mapping": []}, {**good, "conversation_id": {"x": 1}}])
    assert (len(data.records), data.n_left_out) == (2, 4)
    assert data.problems == [
        "Conversation 2 was left out: it is an integer, not an object.",
        "Conversation 3 was left out: it is null, not an object.",
        'Conversation 4 was left out: it has no object "mapping" with its messages.',
        'Conversation 5 was left out: its "mapping" is an array, not an object.',
    ]


def test_export_without_readable_conversations_says_why() -> None:
    with pytest.raises(ImportRefusedError, match=r"can read. Conversation 1 was left out: it is an integer"):
        chatgpt.parse([5])
    with pytest.raises(ImportRefusedError, match=r"1 message could not be read: an entry is an integer"):
        chatgpt.parse([{"mapping": {"q": 5}}])


def make_zip(name: str, content: str = "[]") -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr(name, content)
    return bytearray(packed.getvalue())


def test_zip_with_a_folder_is_read() -> None:
    assert chatgpt.unzip_conversations(bytes(make_zip("export-2024/conversations.json", "[1]"))) == b"[1]"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (8, 1, "protected with a password. Extract it, and import conversations.json"),
        (10, 97, "a compression method that edgechat cannot read"),
        (16, 7, "it is damaged. Download it again"),
    ],
)
def test_unreadable_zip_is_described_in_plain_words(field: int, value: int, message: str) -> None:
    data = make_zip("conversations.json")
    data[data.index(b"PK\x01\x02") + field] = value  # in the central directory: flags, compression, checksum
    data[field - 2] = value
    with pytest.raises(ImportRefusedError, match=message):
        chatgpt.unzip_conversations(bytes(data))
