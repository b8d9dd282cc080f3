"""Chat sessions with the starter model: cancellation, crashes, full disks, and other processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgechat.chat import events, recorder
from edgechat.errors import (
    EdgechatError,
    EngineDiedError,
    StoreError,
)
from edgechat.models.events import ModelLoadProgressed
from edgechat.store import open_store
from edgechat.store.sqlite import SqliteStore
from tests.engine.chats import SHORT_GREEDY, OpenChat
from tests.models import write_tiny_llama


def test_stopped_reply_is_kept_and_can_be_continued(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=None))
    pieces = []
    for event in chat.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated):
            pieces.append(event.text)
            chat.session.stop()
        last = event
    assert isinstance(last, events.TurnInterrupted)
    assert last.reply.finish_reason == "cancelled"
    assert last.reply.text == "".join(pieces)
    chat.check()
    chat.session.settings = SHORT_GREEDY
    assert len(chat.run(chat.session.continue_reply()).text) > len(last.reply.text)


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_engine_leaves_an_interrupted_reply_and_restarts(
    open_chat: Callable[..., OpenChat],
) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=1500))
    reply = chat.session.send("Tell me a very long story.")
    next(e for e in reply if isinstance(e, events.ReplyTextGenerated))
    assert chat.session.model.engine.pid is not None
    os.kill(chat.session.model.engine.pid, 9)
    with pytest.raises(EngineDiedError):
        list(reply)
    chat.check()
    assert chat.session.tree.path[1].finish_reason == "interrupted"
    assert chat.session.tree.path[1].text
    chat.session.settings = SHORT_GREEDY
    assert chat.run(chat.session.continue_reply()).finish_reason == "length"
    assert any(isinstance(e, ModelLoadProgressed) for e in chat.events)


def test_abandoned_event_iterator_stops_and_keeps_the_reply(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=400))
    for event in chat.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated):
            break
    del event
    import gc

    gc.collect()
    chat.check()
    assert chat.session.tree.path[1].is_interrupted
    reply = chat.session.regenerate()
    assert isinstance(next(reply), events.TurnStarted)
    del reply  # before the engine received the request
    chat.check()
    assert chat.session.tree.path[1].finish_reason == "interrupted"


def test_two_sessions_of_one_conversation_keep_both_branches(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    root = chat.run(chat.session.send("Hello."))
    other_chat = open_chat(conversation=chat.session.conversation.id)
    ours = chat.session.send("From here.")
    theirs = other_chat.session.send("From there.")
    for pair in zip(ours, theirs, strict=False):
        assert pair
    list(ours)
    list(theirs)
    stored = {m.text for m in chat.session.store.messages(chat.session.conversation.id) if m.parent_id == root.id}
    assert stored == {"From here.", "From there."}


def test_reply_claimed_by_another_process_is_kept_as_an_alternative(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=40))
    other = open_store()
    claimed = False
    for event in chat.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated) and not claimed:
            claimed = True
            reply = chat.session.tree.path[1]
            other.claim(reply.id)
            assert other.checkpoint(msgspec.structs.replace(reply, text="theirs", finish_reason="stop"))
        last = event
    assert isinstance(last, events.TurnFinished)
    assert last.reply.id != reply.id
    texts = {m.text for m in other.messages(chat.session.conversation.id) if m.role == "assistant"}
    assert texts == {"theirs", last.reply.text}
    assert chat.session.tree.head is not None
    assert chat.session.tree.head.text == last.reply.text
    other.close()


def test_closing_the_session_saves_the_partial_reply(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=1500))
    texts: list[str] = []
    has_started = threading.Event()

    def consume() -> None:
        for event in chat.session.send("Tell me a very long story."):
            if isinstance(event, events.ReplyTextGenerated):
                texts.append(event.text)
                has_started.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert has_started.wait(60)
    chat.session.close()
    thread.join()
    store = open_store()
    reply = store.messages(chat.session.conversation.id)[1]
    assert reply.text == "".join(texts)  # not only the text of the last checkpoint
    assert reply.is_interrupted
    store.close()


def test_stop_after_the_end_of_a_reply_does_not_stop_the_next_one(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    chat.run(chat.session.send("Hello."))
    chat.session.stop()
    chat.session.clear_stop()
    assert chat.run(chat.session.send("Hello again.")).finish_reason != "cancelled"
    chat.session.stop()
    assert chat.run(chat.session.send("And again.")).finish_reason == "cancelled"  # stopped before it started


def test_temporarily_full_disk_loses_no_text(
    open_chat: Callable[..., OpenChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_written = threading.Event()
    write = recorder.ReplyRecorder._write

    def write_and_report(self: recorder.ReplyRecorder) -> None:
        write(self)
        has_written.set()

    monkeypatch.setattr(recorder, "CHECKPOINT_TOKENS", 1)
    monkeypatch.setattr(recorder.ReplyRecorder, "_write", write_and_report)
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=30))
    store = chat.session.store
    assert isinstance(store, SqliteStore)
    notices = []
    n_after = 0
    for event in chat.session.send("Tell me a very long story."):
        if isinstance(event, events.TurnStarted):
            store.database.connection.execute("PRAGMA query_only = ON")  # every write fails from here on
        if isinstance(event, events.ReplySaveFailed):
            notices.append(event.reason)
        if isinstance(event, events.ReplyTextGenerated):
            assert has_written.wait(60)
        n_after += bool(notices) and isinstance(event, events.ReplyTextGenerated)
        last = event
    assert isinstance(last, events.TurnFinished)
    assert notices
    assert n_after > 1  # the notice appears before the reply ends
    store.database.connection.execute("PRAGMA query_only = OFF")
    assert store.messages(chat.session.conversation.id)[1].text != last.reply.text
    chat.session.settings = SHORT_GREEDY
    chat.run(chat.session.send("Go on."))  # also saves the previous reply; run() checks the store
    assert store.messages(chat.session.conversation.id)[1].text == last.reply.text


def test_deletion_by_another_process_is_noticed(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    chat.run(chat.session.send("Hello."))
    tree = chat.session.tree
    chat.run(chat.session.send("More."))
    other = open_store()
    other.delete_message(tree.path[2].id)
    with pytest.raises(StoreError, match="does not exist"):
        chat.run(chat.session.send("And more."))
    chat.run(chat.session.send("And more."))
    assert chat.texts()[0] == "Hello."
    assert "More." not in chat.texts()
    other.delete_conversation(chat.session.conversation.id)
    with pytest.raises(StoreError, match="does not exist"):
        chat.run(chat.session.send("Still there?"))
    assert list(other.list_conversations()) == []
    other.close()


def test_two_processes_change_different_fields_of_a_conversation(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    chat.run(chat.session.send("Hello."))
    other = open_store()
    other.update_conversation(chat.session.conversation.id, title="Elsewhere", pinned=True)
    chat.session.override_settings(reasoning=True)
    stored = other.conversation(chat.session.conversation.id)
    assert (stored.title, stored.pinned, stored.settings["reasoning"]) == ("Elsewhere", True, True)
    other.close()


def test_interrupt_during_the_last_write_loses_no_text(
    open_chat: Callable[..., OpenChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = open_chat()
    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", 60.0)

    def interrupted(self: recorder.ReplyRecorder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder.ReplyRecorder, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(chat.session.send("Tell me a story."))
    text = chat.texts()[-1]
    assert text
    chat.session.close()
    store = open_store()
    assert [m.text for m in store.messages(chat.session.conversation.id)][-1] == text
    store.close()


def test_failed_model_change_keeps_the_previous_model(open_chat: Callable[..., OpenChat], tmp_path: Path) -> None:
    chat = open_chat()
    chat.run(chat.session.send("Hello."))
    before = chat.session.model_path
    unknown = write_tiny_llama(tmp_path / "unknown.gguf", architecture="nobodyknows")
    with pytest.raises(EdgechatError):
        chat.session.change_model("unknown", unknown)
    assert chat.session.model_path == before
    assert chat.run(chat.session.send("Still there?")).text


def test_concurrent_token_counts_do_not_mix(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    counts = {text: chat.session.context_usage(text)[0] for text in ("one", "a much longer text than that")}
    wrong: list[int] = []

    def count(text: str) -> None:
        for _ in range(60):
            n_tokens = chat.session.context_usage(text)[0]
            if n_tokens != counts[text]:
                wrong.append(n_tokens)

    threads = [threading.Thread(target=count, args=(text,)) for text in counts for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stop_ends_and_keeps_all_parallel_replies(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=300))
    for event in chat.session.send("Tell me a very long story.", n_replies=3):
        if isinstance(event, events.ReplyTextGenerated) and event.reply_index == 2:
            chat.session.stop()
        last = event
    assert isinstance(last, events.TurnInterrupted)
    assert [a.finish_reason for a in (last.reply, *last.alternatives)] == ["cancelled"] * 3
    assert all(a.text for a in (last.reply, *last.alternatives))
    chat.check()
