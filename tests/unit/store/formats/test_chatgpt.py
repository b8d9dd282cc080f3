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
