"""Passages of documents in exports: readable in Markdown and HTML, complete in JSON."""

from __future__ import annotations

import contextlib

import pytest

from edgechat.cli.history_files import export_text
from edgechat.documents.passages import PassageSet, decode_passages
from edgechat.store import open_ephemeral_store
from edgechat.store.formats import edgechat_json, markdown
from edgechat.store.sqlite import SqliteStore
from tests.tui.documents_conversation import FOUND, REPLY, save_cited_conversation


@pytest.mark.parametrize("export_format", ["md", "html"])
def test_exports_name_the_cited_places(export_format: str) -> None:
    with contextlib.closing(open_ephemeral_store()) as store:
        conversation = save_cited_conversation(store)
        text = export_text(store, [conversation.id], export_format)
    assert "Documents: 3 passages of 3 documents, searched by keywords" in text
    assert "[1] 2024/annual-report.pdf, page 12" in text
    assert "[2] notes/costs.md, lines 40-44" in text
    assert "To check: [2] not in the passage: 150" in text
    assert "[9] no such passage: 9" in text
    assert "vnd.edgechat" not in text
    assert "Attached" not in text


def test_markdown_is_imported_without_the_cited_places() -> None:
    with contextlib.closing(open_ephemeral_store()) as store:
        conversation = save_cited_conversation(store)
        record, problems = markdown.parse(export_text(store, [conversation.id], "md"))
    assert [message.text for message in record.messages] == ["How did revenue and costs develop?", REPLY]
    assert problems == []


def test_json_export_has_the_passages() -> None:
    with contextlib.closing(open_ephemeral_store()) as store, contextlib.closing(open_ephemeral_store()) as other:
        conversation = save_cited_conversation(store)
        archive = edgechat_json.export(store, [conversation.id])
        [data] = archive.attachments.values()
        assert decode_passages(data) == FOUND
        assert _copy(archive, other, conversation.id) == FOUND


def _copy(archive: edgechat_json.ExportArchive, store: SqliteStore, conversation_id: str) -> PassageSet:
    """Import an archive, and return the passages of its first message."""
    for record in archive.conversations:
        store.append(record.conversation, record.messages, archive.attachments)
    [attachment] = next(m for m in store.messages(conversation_id) if m.role == "user").attachments
    return decode_passages(store.read_attachment(attachment.sha256))
