"""Folders and documents in messages: they become collections of their conversation, or attachments."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench import scripted_session
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import commands
from edgechat.chat.attachments import load_attachments
from edgechat.chat.command_arguments import parse_collections
from edgechat.chat.document_sources import add_sources
from edgechat.chat.events import (
    CollectionUpdated,
    DocumentsSearched,
    SessionEvent,
    TurnFinished,
    format_notice,
    format_progress,
)
from edgechat.config import Settings
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import AttachmentError, DocumentError, RequestCancelledError, UsageError
from edgechat.store import open_ephemeral_store, open_store

_DOCUMENT = (
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
    "{}</w:body></w:document>"
)
_CONTENT_TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Override PartName="/word/document.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
)
_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)


def write_docx(path: Path, *paragraphs: str) -> Path:
    """Write a Word document with paragraphs of text."""
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("[Content_Types].xml", _CONTENT_TYPES)
        file.writestr("_rels/.rels", _RELATIONS)
        file.writestr("word/document.xml", _DOCUMENT.format(body))
    return path


@pytest.fixture
def ships(tmp_path: Path) -> Path:
    folder = tmp_path / "ships"
    folder.mkdir()
    (folder / "vasa.txt").write_text("The Vasa sank in 1628.\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    return folder


@pytest.fixture
def session(home: Path) -> Iterator[ScriptedSession]:
    session = ScriptedSession(open_store(home / "history.db"), Settings(), Script(["In 1628 [1]."]))
    session.open()
    yield session
    session.close()


def library() -> DocumentLibrary:
    return DocumentLibrary(paths.documents_dir())


def run(session: ScriptedSession, text: str, *attachments: Path) -> list[SessionEvent]:
    seen = list(session.send(text, attachments))
    assert isinstance(seen[-1], TurnFinished)
    return seen


def test_folder_in_a_message_becomes_a_collection_of_the_conversation(session: ScriptedSession, ships: Path) -> None:
    seen = run(session, "When did it sink?", ships)
    assert session.settings.docs == ("ships",)
    assert session.conversation.settings == {"docs": ("ships",)}
    notices = [format_notice(e) for e in seen if format_notice(e)]
    assert notices[0] == (
        "Collection ships with 1 document added. 1 file could not be read (`edgechat docs list --json`)."
    )
    assert notices[1].startswith("The document is in the prompt (")
    assert [a.is_passages for a in session.tree.path[0].attachments] == [True]
    again = run(session, "And now?", ships)
    assert [format_notice(e) for e in again if format_notice(e)] == []
    (ships / "mary.txt").write_text("The Mary Rose sank in 1545.\n")
    changed = run(session, "And the Mary Rose?", ships)
    assert "Collection ships with 2 documents updated." in format_notice(
        next(e for e in changed if isinstance(e, CollectionUpdated))
    )
    assert session.settings.docs == ("ships",)
    assert library().names() == ["ships"]


def test_folder_without_text_and_large_folders_are_refused(session: ScriptedSession, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DocumentError, match=r"There is no text in .*empty: it contains no documents"):
        list(session.send("Hi", [empty]))
    with pytest.raises(DocumentError, match="is too large for a message"):
        list(session.send("Hi", [Path("/")]))
    home = paths.home_dir()
    assert home is not None
    with pytest.raises(DocumentError, match="is too large for a message"):
        list(session.send("Hi", [home]))
    assert library().names() == []
    assert len(session.tree) == 0


def test_stop_while_a_folder_is_read_sends_nothing(session: ScriptedSession, ships: Path) -> None:
    session.stop()
    with pytest.raises(RequestCancelledError, match="The message was not sent"):
        list(session.send("Hi", [ships]))
    assert len(session.tree) == 0
    run(session, "Hi")


def test_conversation_that_is_not_saved_makes_no_collection(session: ScriptedSession, ships: Path) -> None:
    ephemeral = ScriptedSession(open_ephemeral_store(), Settings(), Script(["In 1628."]))
    ephemeral.open()
    with pytest.raises(DocumentError, match="this conversation writes nothing to disk"):
        list(ephemeral.send("When did it sink?", [ships]))
    assert library().names() == []
    run(session, "When did it sink?", ships)
    run(ephemeral, "When did it sink?", ships)
    assert ephemeral.settings.docs == ("ships",)
    ephemeral.close()


def test_closed_turn_ends_the_update(ships: Path) -> None:
    for i in range(2000):
        (ships / f"{i}.txt").write_text(f"Ship {i}.")
    events = add_sources(library(), [ships], lambda: False)
    assert format_progress(next(events)).startswith("ships: ")
    events.close()
    names = library().names()  # empty if no document was stored before the end
    if names:
        with library().open("ships") as collection, collection.lock_for_update():  # the update has ended
            assert collection.describe().n_documents < 2000


def test_text_of_a_document_is_attached(session: ScriptedSession, tmp_path: Path) -> None:
    file = write_docx(tmp_path / "report.docx", "Costs rose.", "Sales fell.")
    run(session, "Summarise.", file)
    [attachment] = session.tree.path[0].attachments
    assert (attachment.name, attachment.media_type) == ("report.docx", "text/plain")
    text = session.store.read_attachment(attachment.sha256).decode()
    assert text.split() == ["Costs", "rose.", "Sales", "fell."]
    assert session.count_file_tokens(file) > 0
    assert session.settings.docs == ()


def test_document_that_does_not_fit_is_searched(
    session: ScriptedSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted_session, "N_CTX", 2048)
    session = ScriptedSession(open_store(), Settings(), Script(["Green."]))
    session.open()
    file = write_docx(tmp_path / "book.docx", *(f"Chapter {i}. " + "Sand and wind. " * 40 for i in range(40)))
    seen = run(session, "What is in chapter 7?", file)
    assert session.settings.docs == ("book",)
    [searched] = [e for e in seen if isinstance(e, DocumentsSearched)]
    assert not searched.passages.is_whole
    assert [a.is_passages for a in session.tree.path[0].attachments] == [True]
    assert session.context_usage("And 8?", [file])[0] < 2048
    assert session.find_long_attachment([file, tmp_path]) == ""
    session.close()


def test_damaged_document_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "broken.pdf"
    file.write_bytes(b"%PDF-1.4 broken")
    with pytest.raises(AttachmentError, match=r"^broken\.pdf cannot be read: it is damaged"):
        load_attachments([file])


def test_docs_command_shows_and_chooses_collections(session: ScriptedSession, ships: Path) -> None:
    docs = commands.COMMANDS_BY_NAME["docs"].run
    assert docs is not None
    run(session, "Hi", ships)
    assert docs(session, "off").text == "Documents: none"
    assert not session.settings.docs
    assert docs(session, "ships").text == "Documents: ships"
    assert session.settings.docs == ("ships",)
    with pytest.raises(UsageError, match=r"no collection of documents called 'boats'\. The collections are: ships\."):
        docs(session, "boats")


def test_names_of_collections_are_separated_by_commas_or_spaces() -> None:
    names = ["a", "b", "my notes"]
    assert parse_collections("a b a", names) == ("a", "b")
    assert parse_collections("my notes", names) == ("my notes",)
    assert parse_collections("my notes, a", names) == ("my notes", "a")
    assert parse_collections("OFF", names) == ()
    with pytest.raises(UsageError, match="There are no collections yet"):
        parse_collections("a", [])
