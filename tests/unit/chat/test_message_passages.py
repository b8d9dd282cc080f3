"""Passages of documents in the prompts of a conversation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import message_passages
from edgechat.chat.conversation_prompt import ConversationPrompt
from edgechat.chat.messages import Attachment, Message
from edgechat.config import Settings
from edgechat.documents import prompt_text
from edgechat.documents.passages import Passage, PassageSet
from edgechat.errors import ContextOverflowError, DocumentError, StoreError
from edgechat.store import open_ephemeral_store

REPLY = Message(id="r", role="assistant", text="Sunk.")


def make_set(*texts: str, first_number: int = 1, is_whole: bool = False, collection: str = "ships") -> PassageSet:
    passages = tuple(
        Passage(number=first_number + i, collection=collection, document=f"{i}.txt", text=text)
        for i, text in enumerate(texts)
    )
    return PassageSet(collections=(collection,), passages=passages, is_whole=is_whole)


class Files(dict[str, bytes]):
    """Contents of attachments by hash."""

    def question(self, text: str, passages: PassageSet | None = None, message_id: str = "q") -> Message:
        """Return a question whose passages are saved in this dictionary."""
        if passages is None:
            return Message(id=message_id, role="user", text=text)
        attachment, data = message_passages.make_attachment(passages)
        self[attachment.sha256] = data
        return Message(id=message_id, role="user", text=text, attachments=(attachment,))

    def read(self, sha256: str) -> bytes:
        if sha256 not in self:
            raise StoreError("The attachment is missing.")
        return self[sha256]


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture(scope="module")
def session() -> Iterator[ScriptedSession]:
    session = ScriptedSession(open_ephemeral_store(), Settings(system_prompt="Be brief."), Script(["Yes."]))
    session.open()
    yield session
    session.close()


def build(session: ScriptedSession, path: list[Message], files: Files, n_ctx: int | None = None) -> ConversationPrompt:
    return session._create_prompt_builder().build(path, files, max_n_ctx=n_ctx)


def test_whole_documents_stand_before_the_system_prompt(session: ScriptedSession, files: Files) -> None:
    whole = make_set("The Vasa sank in 1628.", is_whole=True)
    prompt = build(session, [files.question("When did it sink?", whole)], files)
    documents = prompt_text.format_whole(whole.passages)
    assert prompt.prompt.text == f"<|system|>{documents}\n\nBe brief.<|user|>When did it sink?<|assistant|>"
    assert prompt.collections == ("ships",)
    assert prompt.attached_texts == ["The Vasa sank in 1628."]
    assert 0 < prompt.n_document_tokens < len(prompt.prompt.tokens)


def test_retrieved_passages_stand_before_the_text_of_their_message(session: ScriptedSession, files: Files) -> None:
    first, second = make_set("The Vasa sank."), make_set("It was raised in 1961.", first_number=2)
    path = [files.question("Did it?", first), REPLY, files.question("And then?", second)]
    prompt = build(session, path, files)
    texts = [prompt_text.format_retrieved(s.passages) for s in (first, second)]
    assert prompt.prompt.text == (
        f"<|system|>Be brief.<|user|>{texts[0]}\n\nDid it?<|assistant|>Sunk."
        f"<|user|>{texts[1]}\n\nAnd then?<|assistant|>"
    )
    assert (prompt.n_document_tokens, prompt.collections) == (0, ())
    assert prompt.attached_texts == ["It was raised in 1961."]


def test_prompt_begins_with_the_last_whole_documents_only(session: ScriptedSession, files: Files) -> None:
    old, new = make_set("Old text.", is_whole=True), make_set("New text.", first_number=2, is_whole=True)
    path = [files.question("One?", old), REPLY, files.question("Two?", new), REPLY, files.question("Three?")]
    text = build(session, path, files).prompt.text
    assert "Old text." not in text
    assert text.startswith(f"<|system|>{prompt_text.format_whole(new.passages)}")


def test_texts_for_drafts_are_sent_once(session: ScriptedSession, files: Files) -> None:
    whole = make_set("The Vasa sank.", is_whole=True)
    path = [files.question("One?", whole), REPLY, files.question("Two?", whole)]
    assert build(session, path[:1], files).attached_texts == ["The Vasa sank."]
    assert build(session, path, files).attached_texts == []


def test_text_of_passages_is_not_a_plain_attachment(session: ScriptedSession, files: Files) -> None:
    text = build(session, [files.question("Hi", make_set("A text."))], files).prompt.text
    assert "collections" not in text
    assert "documents:" not in text


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"collections":[],"passages":[{"number":"x"}]}', None])
def test_damaged_and_missing_passages_become_a_note(session: ScriptedSession, files: Files, data: bytes | None) -> None:
    question = files.question("Hi", make_set("A text."))
    sha256 = question.attachments[0].sha256
    if data is None:
        del files[sha256]
    else:
        files[sha256] = data
    with pytest.raises(DocumentError):
        message_passages.read_passages(question, files.read)
    text = build(session, [question], files).prompt.text
    assert text == f"<|system|>Be brief.<|user|>{prompt_text.MISSING_NOTE}\n\nHi<|assistant|>"


def test_documents_of_earlier_messages_give_way_to_a_long_message(session: ScriptedSession, files: Files) -> None:
    whole = make_set("word " * 400, is_whole=True)
    path = [files.question("One?", whole), REPLY, files.question("Two? " * 100)]
    assert "word word" in build(session, path, files).prompt.text
    assert "word word" not in build(session, path, files, n_ctx=512).prompt.text
    with pytest.raises(ContextOverflowError):  # the last message is about the documents
        build(session, [files.question("Two?", whole)], files, n_ctx=256)


def test_numbers_continue_after_those_of_earlier_messages() -> None:
    earlier = [make_set("a", "b"), None, make_set("c", first_number=3, is_whole=True)]
    chosen = message_passages.choose_numbers(make_set("d", "e"), earlier)
    assert [p.number for p in chosen.passages] == [4, 5]
    assert [p.number for p in message_passages.choose_numbers(make_set("d"), []).passages] == [1]


def test_unchanged_whole_documents_keep_their_numbers() -> None:
    whole = make_set("a", "b", is_whole=True)
    saved = message_passages.choose_numbers(whole, [make_set("x")])
    assert [p.number for p in saved.passages] == [2, 3]
    assert message_passages.choose_numbers(whole, [make_set("x"), saved]) == saved
    changed = message_passages.choose_numbers(make_set("a", "changed", is_whole=True), [make_set("x"), saved])
    assert [p.number for p in changed.passages] == [2, 4]
    longer = message_passages.choose_numbers(make_set("a", "b", "c", is_whole=True), [make_set("x"), saved])
    assert [p.number for p in longer.passages] == [2, 3, 4]
    shorter = message_passages.choose_numbers(make_set("a", is_whole=True), [make_set("x"), saved])
    assert [p.number for p in shorter.passages] == [2]


def test_conversation_is_not_named_after_its_passages(files: Files) -> None:
    from edgechat.chat.turn_runner import _make_provisional_title

    message = files.question("", make_set("a"))
    assert _make_provisional_title(message) == ""
    note = Attachment(sha256="0" * 64, name="note.txt", media_type="text/plain", size_bytes=1)
    with_note = Message(id="q", role="user", attachments=(*message.attachments, note))
    assert _make_provisional_title(with_note) == "note.txt"
