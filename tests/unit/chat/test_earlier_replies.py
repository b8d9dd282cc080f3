"""Earlier replies to the same first message: what is found, what is not, and their copies in a conversation."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat import paths
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import earlier_replies
from edgechat.chat.earlier_replies import EarlierReply, find_earlier_reply
from edgechat.chat.message_passages import make_attachment
from edgechat.chat.messages import Attachment, Conversation, Message, describe_origin, format_performance, new_id
from edgechat.config import Settings
from edgechat.documents.passages import Passage, PassageSet
from edgechat.engine.generation import GenerationStats, ReplyOrigin
from edgechat.errors import StoreError, UsageError
from edgechat.store import open_ephemeral_store, open_store
from edgechat.store.formats import edgechat_json, html, markdown
from edgechat.store.schema import MIGRATIONS
from edgechat.store.sqlite import SqliteStore
from tests.hostile_texts import HOSTILE_TEXTS

QUESTION = "What is the capital of France?"
SIMILAR = "Can you tell me what the capital of France is?"
AT_MS = 1_762_171_200_000  # 3 November 2025, at noon
TODAY = dt.date(2026, 11, 30)


@pytest.fixture
def store(home: Path) -> Iterator[SqliteStore]:
    store = open_store()
    yield store
    store.close()


def save(
    store: SqliteStore, question: str = QUESTION, reply: str = "Paris.", *, at_ms: int = AT_MS,
    files: Sequence[bytes] = (), attachments: Sequence[tuple[Attachment, bytes]] = (), **changes: object,
) -> Conversation:  # fmt: skip
    """Save a conversation of a question and a reply, of which `changes` replaces fields."""
    conversation = Conversation(id=new_id(), title="Old", created_at_ms=at_ms, settings={})
    pairs = [*attachments, *((make_file(data), data) for data in files)]
    message = Message(
        id=new_id(), role="user", text=question, created_at_ms=at_ms, attachments=tuple(a for a, _ in pairs)
    )
    answer = Message(
        id=new_id(), parent_id=message.id, role="assistant", text=reply, finish_reason="stop", created_at_ms=at_ms,
        model="small.gguf",
    )  # fmt: skip
    store.append(
        conversation, [message, msgspec.structs.replace(answer, **changes)], {a.sha256: data for a, data in pairs}
    )
    return store.conversation(conversation.id)


def make_file(data: bytes) -> Attachment:
    return Attachment(sha256=hashlib.sha256(data).hexdigest(), name="a.txt", media_type="text/plain", size_bytes=1)


def find(store: SqliteStore, text: str = SIMILAR, system_prompt: str = "", files: Sequence[bytes] = ()) -> str | None:
    """Return the text of the earlier reply to a message with `files`; None if none is found."""
    message = Message(id="", role="user", text=text, attachments=tuple(map(make_file, files)))
    earlier = find_earlier_reply(store, message, system_prompt)
    return earlier.reply.text if earlier is not None else None


@contextlib.contextmanager
def open_session(store: SqliteStore, *replies: str, **options: object) -> Iterator[ScriptedSession]:
    session = ScriptedSession(store, Settings(titles=False, **options), Script(replies or ("New.",)))  # type: ignore[arg-type]
    session.open()
    yield session
    session.model.close()


# What is found


def test_reply_to_nearly_the_same_question_is_found_with_its_day(store: SqliteStore) -> None:
    conversation = save(store)
    earlier = find_earlier_reply(store, Message(id="", role="user", text=SIMILAR), "")
    assert earlier is not None
    assert (earlier.question, earlier.reply.text) == (QUESTION, "Paris.")
    assert earlier.origin.conversation_id == conversation.id
    assert earlier.describe_offer(TODAY) == "Asked on 3 November 2025"
    assert earlier.describe_offer(dt.date(2025, 12, 1)) == "Asked on 3 November"


@pytest.mark.parametrize("at_ms", [0, 1 << 62])
def test_reply_without_a_day_was_asked_before(at_ms: int) -> None:
    origin = ReplyOrigin(conversation_id="c", message_id="m", created_at_ms=at_ms)
    earlier = EarlierReply(question="", reply=Message(id="m", role="assistant"), origin=origin)
    assert earlier.describe_offer(TODAY) == "Asked before"


def test_newest_of_several_replies_is_found(store: SqliteStore) -> None:
    save(store, reply="Newer.", at_ms=AT_MS + 1)
    save(store, reply="Older.")
    assert find(store) == "Newer."


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "cancelled"}, {"finish_reason": "interrupted"}, {"finish_reason": "streaming"},
        {"finish_reason": "length"}, {"reply": " \n"}, {"role": "user"}, {"question": "capital of Italy"},
    ],
)  # fmt: skip
def test_other_and_incomplete_replies_are_not_found(store: SqliteStore, changes: dict[str, str]) -> None:
    save(store, **changes)  # type: ignore[arg-type]
    assert find(store) is None


def test_later_message_of_a_conversation_is_not_a_first_message(store: SqliteStore) -> None:
    conversation = save(store, question="Hello there, how are things?")
    parent_id = store.messages(conversation.id)[-1].id
    message = Message(id=new_id(), parent_id=parent_id, role="user", text=QUESTION, created_at_ms=AT_MS)
    reply = Message(id=new_id(), parent_id=message.id, role="assistant", text="Paris.", finish_reason="stop")
    store.append(conversation, [message, reply])
    assert find(store) is None


def test_deleted_messages_replies_and_conversations_are_not_found(store: SqliteStore) -> None:
    first, second, third = (save(store) for _ in range(3))
    store.delete_message(store.messages(first.id)[0].id)
    store.delete_message(store.messages(second.id)[1].id)
    store.delete_conversation(third.id)
    assert find(store) is None
    save(store, reply="Again.")
    assert find(store) == "Again."


def test_reply_on_the_active_path_is_found_and_not_another_alternative(store: SqliteStore) -> None:
    conversation = save(store, reply="First.")
    message, first = store.messages(conversation.id)
    second = msgspec.structs.replace(first, id=new_id(), text="Second.")
    store.append(conversation, [second])
    assert find(store) == "Second."
    store.select_branch([message.id, first.id])
    assert find(store) == "First."


def test_each_version_of_an_edited_message_counts_with_its_own_text(store: SqliteStore) -> None:
    conversation = save(store, question="What is the capital of Spain?", reply="Madrid.")
    message = Message(id=new_id(), role="user", text=QUESTION, created_at_ms=AT_MS)
    reply = Message(id=new_id(), parent_id=message.id, role="assistant", text="Paris.", finish_reason="stop")
    store.append(conversation, [message, reply])
    assert find(store) == "Paris."
    assert find(store, "capital of Spain") == "Madrid."


# The context


def test_attached_files_must_be_the_same(store: SqliteStore) -> None:
    save(store, reply="About a file.", files=[b"one", b"two"])
    assert find(store) is None
    assert find(store, files=[b"one"]) is None
    assert find(store, files=[b"two", b"one"]) == "About a file."


def test_reply_without_files_is_not_found_for_a_message_with_files(store: SqliteStore) -> None:
    save(store)
    assert find(store, files=[b"one"]) is None


def make_passages(text: str, query: str = "") -> tuple[Attachment, bytes]:
    passage = Passage(number=1, collection="notes", document="a.txt", text=text)
    return make_attachment(PassageSet(collections=("notes",), passages=(passage,), query=query))


def test_passages_of_documents_must_be_the_same(store: SqliteStore) -> None:
    save(store, reply="About documents.", attachments=[make_passages("Paris is large.", QUESTION)])
    assert find(store) is None
    for text, expected in (("Paris is large.", "About documents."), ("Paris is small.", None)):
        attachment, data = make_passages(text, SIMILAR)
        message = Message(id=new_id(), role="user", text=SIMILAR, attachments=(attachment,), created_at_ms=AT_MS)
        conversation = Conversation(id=new_id(), created_at_ms=AT_MS)
        store.append(conversation, [message], {attachment.sha256: data})
        earlier = find_earlier_reply(store, message, "", conversation.id)
        assert (earlier.reply.text if earlier is not None else None) == expected


def test_missing_passages_are_not_the_same_as_any(store: SqliteStore) -> None:
    save(store, attachments=[(make_passages("x")[0], b"damaged")])
    assert find(store) is None


def test_system_prompt_of_the_reply_must_be_the_same(store: SqliteStore) -> None:
    for prompt in ("", "Answer like a pirate."):
        with open_session(store, f"Reply to {prompt!r}", system_prompt=prompt) as session:
            list(session.send(QUESTION))
    assert find(store) == "Reply to ''"
    assert find(store, system_prompt="Answer like a pirate.") == "Reply to 'Answer like a pirate.'"
    assert find(store, system_prompt="Be brief.") is None


def test_later_system_prompt_of_the_conversation_does_not_count(store: SqliteStore) -> None:
    with open_session(store, "Plain.") as session:
        list(session.send(QUESTION))
        session.override_settings(system_prompt="Answer like a pirate.")
    assert find(store, system_prompt="Answer like a pirate.") is None
    assert find(store) == "Plain."


def test_reply_without_statistics_has_the_system_prompt_of_its_conversation(store: SqliteStore) -> None:
    conversation = save(store)
    store.update_conversation(conversation.id, settings={"system_prompt": "Be brief."})
    assert find(store) is None
    assert find(store, system_prompt="Be brief.") == "Paris."


def test_conversation_with_a_remote_gets_only_replies_of_that_remote(store: SqliteStore) -> None:
    def find_for(remote: str) -> str | None:
        earlier = find_earlier_reply(store, Message(id="", role="user", text=SIMILAR), "", remote=remote)
        return earlier.reply.text if earlier is not None else None

    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=1, ttft_s=0.1, prefill_tps=0.0, decode_tps=0.0,
        is_remote=True,
    )  # fmt: skip
    save(store, reply="Of box.", model="box/small", stats=stats)
    save(store, reply="Of a file.", model="box/small", at_ms=AT_MS + 1)
    assert (find_for("box"), find_for("bo"), find_for("other"), find_for("")) == ("Of box.", None, None, "Of a file.")


def test_ephemeral_conversations_neither_look_up_nor_are_found(home: Path) -> None:
    store = open_ephemeral_store()
    save(store)
    assert find(store) is None


# Copies


def test_copy_becomes_the_reply_with_its_origin_and_another_can_be_generated(store: SqliteStore) -> None:
    earlier_conversation = save(store)
    with open_session(store, "Generated.", "Generated again.") as session:
        list(session.send(SIMILAR))
        earlier = session.insert_earlier_reply()
        assert [m.text for m in session.tree.path] == [SIMILAR, "Paris."]
        reply = session.tree.path[1]
        assert reply.stats is not None
        assert reply.stats.origin == earlier.origin == ReplyOrigin(
            conversation_id=earlier_conversation.id, message_id=earlier.reply.id, created_at_ms=AT_MS
        )  # fmt: skip
        assert describe_origin(reply, TODAY) == "Earlier reply of 3 November 2025"
        assert format_performance(reply) == ""
        assert store.messages(session.conversation.id)[-1] == reply
        list(session.regenerate())
        assert session.tree.path[1].text == "Generated again."
        assert len(session.tree.alternatives(reply.id)) == 3


def test_copy_of_a_copy_names_the_first_reply(store: SqliteStore) -> None:
    save(store)
    with open_session(store) as session:
        for _ in range(2):
            list(session.send(SIMILAR))
            earlier = session.insert_earlier_reply()
            assert earlier.origin.created_at_ms == AT_MS
            session.switch_conversation()


def test_reply_that_was_stopped_before_its_text_is_removed(store: SqliteStore) -> None:
    save(store)
    with open_session(store) as session:
        session.stop()
        list(session.send(SIMILAR))
        session.insert_earlier_reply()
        assert [m.text for m in store.messages(session.conversation.id)] == [SIMILAR, "Paris."]
        assert store.conversation(session.conversation.id).head_id == session.tree.head_id


def test_stopped_reply_with_text_is_kept_as_an_alternative(store: SqliteStore) -> None:
    save(store)
    with open_session(store, "Some text that is long.") as session:
        for event in session.send(SIMILAR):
            if getattr(event, "text", ""):
                session.stop()
        session.insert_earlier_reply()
        assert len(session.tree.alternatives(session.tree.path[1].id)) == 2


def test_nothing_is_inserted_without_an_earlier_reply_or_after_the_first_message(store: SqliteStore) -> None:
    with open_session(store) as session:
        for _ in range(2):
            with pytest.raises(UsageError, match="No earlier conversation"):
                session.insert_earlier_reply()
            list(session.send(SIMILAR))
        save(store, at_ms=AT_MS)
        assert session.find_earlier_reply() is None
        assert len(session.tree) == 4


def test_reply_that_was_deleted_meanwhile_is_not_inserted(store: SqliteStore) -> None:
    conversation = save(store)
    with open_session(store) as session:
        list(session.send(SIMILAR))
        assert session.find_earlier_reply() is not None
        store.delete_conversation(conversation.id)
        with pytest.raises(UsageError):
            session.insert_earlier_reply()


def test_exports_name_the_day_of_the_copied_reply_and_imports_keep_it(store: SqliteStore) -> None:
    save(store)
    with open_session(store) as session:
        list(session.send(SIMILAR))
        session.insert_earlier_reply()
        record = edgechat_json.load_record(store, session.conversation.id)
    assert "earlier reply of 2025-11-03" in markdown.render(record)
    assert "earlier reply of 2025-11-03" in html.render(record)
    copies = [markdown.parse(markdown.render(record))[0]]
    archive = msgspec.json.encode(edgechat_json.export(store, [record.conversation.id]))
    copies += edgechat_json.decode(archive).records
    assert all(describe_origin(copy.messages[-1], TODAY) == "Earlier reply of 3 November 2025" for copy in copies)


def test_recovery_keeps_the_origin(store: SqliteStore) -> None:
    save(store)
    with open_session(store) as session:
        list(session.send(SIMILAR))
        session.insert_earlier_reply()
        reply = session.tree.path[1]
    store.close()
    database = paths.history_file()
    data = bytearray(database.read_bytes())
    data[:100] = bytes(100)  # the header
    database.write_bytes(data)
    recovered = open_store()
    assert any("recovered" in notice for notice in recovered.notices)
    assert recovered.messages(session.conversation.id)[-1].stats == reply.stats
    recovered.close()


# Faults


def test_database_of_a_future_version_is_neither_searched_nor_changed(home: Path) -> None:
    store = open_store()
    save(store)
    store.close()
    with contextlib.closing(sqlite3.connect(paths.history_file())) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    store = open_store()
    assert store.read_only_reason
    assert find(store) is None
    store.close()


def test_full_disk_leaves_the_reply_of_the_model(store: SqliteStore) -> None:
    save(store)
    with open_session(store, "Generated.") as session:
        list(session.send(SIMILAR))
        pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
        store.database.connection.execute(f"PRAGMA max_page_count = {pages}")
        assert session.find_earlier_reply() is not None
        with pytest.raises(StoreError, match="full"):
            _insert_long_reply(session, "x" * 1_000_000)
        assert session.tree.path[1].text == "Generated."
        assert store.messages(session.conversation.id) == session.tree.path


def _insert_long_reply(session: ScriptedSession, text: str) -> None:
    original = earlier_replies.copy_reply
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            earlier_replies, "copy_reply",
            lambda earlier, parent_id: msgspec.structs.replace(original(earlier, parent_id), text=text),
        )  # fmt: skip
        session.insert_earlier_reply()


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_questions_and_replies_are_found_or_not_without_an_error(store: SqliteStore, text: str) -> None:
    question = f"Explain this strange text {text}"
    save(store, question=question, reply=text or "empty")
    expected = (text or "empty") if len(question) <= 2000 and text.strip() else None
    assert find(store, question) in {expected, text or "empty"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80))
def test_any_question_with_a_word_for_the_index_is_found_again(store: SqliteStore, text: str) -> None:
    question = f"Describe elephants and {text}"
    conversation = save(store, question=question, reply=text.strip() or "empty")
    assert find(store, question) is not None
    store.delete_conversation(conversation.id)


def test_damaged_rows_are_no_candidates(store: SqliteStore) -> None:
    save(store)
    connection = store.database.connection
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("UPDATE conversations SET settings = '[' , created_at_ms = 1 << 50")
    connection.execute("UPDATE messages SET stats = '{'")
    assert find(store) == "Paris."


@pytest.mark.slow
def test_one_of_many_conversations_is_found_with_few_rows_read(store: SqliteStore) -> None:
    """10,000 conversations of 10 messages are searched in the index; only candidates are read."""
    rows: list[tuple[Conversation, list[Message]]] = []
    for number in range(10_000):
        conversation = Conversation(id=f"c{number}", created_at_ms=1000 + number)
        path: list[Message] = []
        for index in range(10):
            text = f"What is the capital of land{number}?" if not index else f"capital {index} france {number}"
            path.append(
                Message(
                    id=f"c{number}m{index}", parent_id=path[-1].id if path else None,
                    role="assistant" if index % 2 else "user", text=text, finish_reason="stop" if index % 2 else "",
                    created_at_ms=1000 + number,
                )
            )  # fmt: skip
        rows.append((conversation, path))
    for start in range(0, len(rows), 1000):
        store.merge(rows[start : start + 1000])
    n_steps = 0

    def count() -> None:
        nonlocal n_steps
        n_steps += 1

    store.database.connection.set_progress_handler(count, 1000)
    assert find(store, "capital of land4321") == "capital 1 france 4321"
    assert n_steps < 100  # thousands of instructions of SQLite's virtual machine
    assert find(store, "capital of france") is None  # the words are in 90,000 messages, of which the newest are read
    assert n_steps < 2000
