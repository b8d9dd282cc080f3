"""Chat sessions with the starter model: turns, branches, the context window, attachments, titles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgechat.chat import events
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import (
    AttachmentError,
    ContextOverflowError,
    StoreError,
    UsageError,
)
from edgechat.store import open_ephemeral_store
from tests.engine.chats import SHORT_GREEDY, OpenChat
from tests.models import write_parrot, write_tiny_llama
from tests.serve.client import CERTAIN_PROMPT


def test_turns_alternatives_and_branches(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    first = chat.run(chat.session.send(CERTAIN_PROMPT))
    assert first.finish_reason in ("stop", "length")
    assert first.stats is not None
    assert first.n_tokens == first.stats.completion_tokens
    assert isinstance(chat.events[0], events.TurnStarted)
    chat.run(chat.session.send("Another one."))
    assert len(chat.texts()) == 4

    regenerated = chat.run(chat.session.regenerate(first.id))
    assert regenerated.text == first.text  # greedy
    assert chat.session.tree.alternatives(first.id) == [first.id, regenerated.id]
    assert len(chat.texts()) == 2
    chat.session.select_alternative(first.id)
    assert len(chat.texts()) == 4  # the branch returns to its last message

    question = chat.session.tree.path[0]
    chat.run(chat.session.edit(question.id, "Name an animal."))
    assert chat.texts()[0] == "Name an animal."
    assert len(chat.session.tree.alternatives(question.id)) == 2
    chat.session.branch_from(first.id)
    assert chat.texts()[0] == CERTAIN_PROMPT
    chat.run(chat.session.send("Why that?"))
    assert len(chat.session.tree.alternatives(chat.session.tree.path[2].id)) == 2
    chat.check()


def test_reply_that_repeats_itself_is_stopped_and_continued_with_a_penalty(tmp_path: Path) -> None:
    model = write_parrot(tmp_path / "parrot.gguf", "abcdefghijklmnopqrst", is_endless=True)
    chat = OpenChat(model, open_ephemeral_store(), Settings(temperature=0.0, max_tokens=900, n_ctx=2048))
    engine, requests = chat.session.model.engine, list[protocol.Generate]()
    generate = engine.generate

    def record(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        requests.append(request)
        return generate(request)

    engine.generate = record  # type: ignore[method-assign]
    try:
        reply = chat.run(chat.session.send("Hi"))
        assert reply.text == "abcdefghijklmnopqrst" * 10
        assert reply.repeats_itself
        assert reply.finish_reason == "length"  # earlier versions can read it
        assert reply.end_notice == "Stopped: repeats itself; /continue resumes it with a repetition penalty"
        continued = chat.run(chat.session.continue_reply())
        assert continued.id == reply.id
        assert continued.text.startswith(reply.text)
        assert [r.sampling.repeat_penalty for r in requests] == [1.0, 1.3]
        chat.session.override_settings(stop_repetition=False)
        unlimited = chat.run(chat.session.regenerate())
        assert (unlimited.n_tokens, unlimited.repeats_itself) == (900, False)
        assert unlimited.end_notice == "The reply reached its length limit; /continue resumes it"
        chat.run(chat.session.continue_reply())
        assert requests[-1].sampling.repeat_penalty == 1.0
    finally:
        chat.session.close()


def test_continued_reply_equals_one_long_reply(
    open_chat: Callable[..., OpenChat],
) -> None:
    chat = open_chat()
    first = chat.run(chat.session.send(CERTAIN_PROMPT))
    assert first.finish_reason == "length"
    continued = chat.run(chat.session.continue_reply())
    assert continued.id == first.id
    assert continued.text.startswith(first.text)
    assert len(continued.text) > len(first.text)
    whole = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=24)).session
    *_, last = whole.send(CERTAIN_PROMPT)
    assert isinstance(last, events.TurnFinished)
    assert last.reply.text == continued.text
    # A reply with later messages is continued in a copy.
    chat.run(chat.session.send("And then?"))
    copy = chat.run(chat.session.continue_reply(first.id))
    assert copy.id != first.id
    assert copy.text.startswith(continued.text)


def test_deletion_can_be_undone_once(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    chat.run(chat.session.send("One."))
    chat.run(chat.session.send("Two."))
    before = chat.texts()
    assert chat.session.delete(chat.session.tree.path[2].id) == 2
    chat.check()
    assert len(chat.texts()) == 2
    assert chat.session.undo_delete()
    chat.check()
    assert chat.texts() == before
    assert not chat.session.undo_delete()
    assert chat.session.delete(chat.session.tree.path[0].id) == 4
    assert chat.texts() == []
    chat.run(chat.session.send("From the beginning."))


def test_conversation_continues_in_another_session_with_another_model(
    open_chat: Callable[..., OpenChat], tmp_path: Path
) -> None:
    chat = open_chat()
    first = chat.run(chat.session.send("Name a colour."))
    chat.session.close()
    other_chat = open_chat(conversation=chat.session.conversation.id)
    assert other_chat.texts() == ["Name a colour.", first.text]
    other = write_tiny_llama(tmp_path / "other.gguf")
    other_chat.session.change_model(str(other), other)
    reply = other_chat.run(other_chat.session.send("And you?"))
    assert reply.model == "other.gguf"
    assert other_chat.session.store.conversation(other_chat.session.conversation.id).model == str(other)
    with pytest.raises(Exception, match="not a GGUF file"):
        other_chat.session.change_model("x", Path(__file__))
    assert other_chat.session.model_path == other


def test_oldest_turns_are_dropped_from_a_full_context(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=0.0, max_tokens=24, n_ctx=256))
    dropped = []
    for number in range(12):
        reply = chat.run(chat.session.send(f"Question {number}: what is the number {number * 37} like?"))
        drops = [e for e in chat.events if isinstance(e, events.TurnsDropped)]
        assert (reply.context_start_id is not None) == bool(drops)
        dropped += [e.n_messages for e in drops]
        if drops:
            assert chat.session.tree[drops[0].context_start_id].role == "user"
            assert chat.session.tree.path[drops[0].n_messages].id == drops[0].context_start_id
        assert reply.stats is not None
        assert reply.stats.prompt_tokens + 24 <= 256 + 1
    assert dropped == sorted(dropped)
    assert len(set(dropped)) < len(dropped)  # the window moves only when it must, so that cached prefixes stay valid
    assert len(chat.texts()) == 24  # the conversation keeps all messages
    stats = chat.session.tree.path[-1].stats
    assert stats is not None
    n_tokens, n_dropped = chat.session.context_usage("one more")
    assert n_tokens < 256
    assert n_dropped >= dropped[-1]


def test_message_longer_than_the_context_is_removed_again(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=0.0, max_tokens=8, n_ctx=256))
    with pytest.raises(ContextOverflowError, match="256"):
        chat.run(chat.session.send("word " * 400))
    assert chat.texts() == []
    assert list(chat.session.store.list_conversations()) == []
    first = chat.run(chat.session.send("Hi"))
    with pytest.raises(ContextOverflowError):
        chat.run(chat.session.send("word " * 400))
    chat.check()
    assert chat.texts() == ["Hi", first.text]
    with pytest.raises(ContextOverflowError):
        chat.session.context_usage("word " * 400)
    n_tokens, n_dropped = chat.session.context_usage("a few words")
    assert 0 < n_tokens < 256
    assert n_dropped == 0


def test_files_are_attached_to_a_message(open_chat: Callable[..., OpenChat], tmp_path: Path) -> None:
    notes, picture, binary = tmp_path / "notes.py", tmp_path / "cat.txt", tmp_path / "tool"
    notes.write_text("x = 1  # ```\n")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    binary.write_bytes(b"\x7fELF\xff\xfe")
    chat = open_chat()
    n_tokens_without_file = chat.session.context_usage("What is this?")[0]
    chat.run(chat.session.send("What is this?", [notes]))
    [attachment] = chat.session.tree.path[0].attachments
    assert (attachment.name, attachment.media_type) == ("notes.py", "text/plain")
    assert chat.session.store.read_attachment(attachment.sha256) == notes.read_bytes()
    stats = chat.session.tree.path[1].stats
    assert stats is not None
    assert stats.prompt_tokens > n_tokens_without_file
    for file, words in (
        (picture, "does not read images"),
        (binary, "is a program"),
        (tmp_path / "no", "Cannot read"),
    ):
        with pytest.raises(AttachmentError, match=words):
            chat.run(chat.session.send("And this?", [file]))
    chat.check()
    new_reply = chat.run(chat.session.edit(chat.session.tree.path[0].id, "Explain it."))
    assert chat.session.tree[new_reply.parent_id or ""].attachments == (attachment,)
    chat.session.store.delete_conversation(chat.session.conversation.id)
    with pytest.raises(StoreError, match="missing"):
        chat.session.store.read_attachment(attachment.sha256)


def test_title_is_generated_in_idle_time_and_interrupted_by_the_next_message(
    open_chat: Callable[..., OpenChat],
) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=200))
    chat.run(chat.session.send("What is two and two?"))
    assert chat.session.conversation.title == "What is two and two?"
    reply = chat.session.tree.path[1]
    cached = chat.run(chat.session.send("And three?")).stats
    chat.session.delete(chat.session.tree.path[2].id)
    title = chat.session.generate_title()
    if reply.finish_reason == "stop" and title is not None:
        assert chat.session.store.conversation(chat.session.conversation.id).title == title
        assert chat.session.generate_title() is None  # the conversation has a title
    chat.session.rename("What is two and two?")
    after = chat.run(chat.session.send("And three?")).stats
    assert cached is not None
    assert after is not None
    assert after.cached_tokens >= cached.cached_tokens - 1  # the title request evicted nothing

    other_chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=200))
    other_chat.run(other_chat.session.send("What is two and two?"))
    titles: list[str | None] = []
    thread = threading.Thread(target=lambda: titles.append(other_chat.session.generate_title()))
    thread.start()
    other_chat.run(other_chat.session.send("And three?"))
    thread.join()
    assert len(titles) == 1


def test_first_line_is_the_initial_title(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, titles=False), store=open_ephemeral_store())
    chat.run(chat.session.send("\n\n  What   about\tthis\nand that?"))
    assert chat.session.conversation.title == "What about this"
    assert chat.session.generate_title() is None


def test_impossible_actions_are_usage_errors(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    for impossible in (chat.session.regenerate, chat.session.continue_reply):
        with pytest.raises(UsageError, match="no messages yet"):
            list(impossible())
    chat.run(chat.session.send("Hi"))
    with pytest.raises(UsageError, match="no message"):
        list(chat.session.edit("nope", "x"))
    with pytest.raises(UsageError, match="Only your own messages"):
        list(chat.session.edit(chat.session.tree.path[1].id, "x"))
    with pytest.raises(UsageError, match="Only a reply"):
        list(chat.session.continue_reply(chat.session.tree.path[0].id))


def test_removed_message_leaves_title_and_head_unchanged(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=0.0, max_tokens=8, n_ctx=256))
    with pytest.raises(ContextOverflowError):
        chat.run(chat.session.send("the wrong name " * 400))
    assert chat.session.conversation.title == ""
    first = chat.run(chat.session.send("Hi"))
    assert chat.session.conversation.title == "Hi"
    chat.run(chat.session.send("More"))
    chat.session.branch_from(first.id)
    with pytest.raises(ContextOverflowError):
        chat.run(chat.session.send("word " * 400))
    assert chat.session.tree.head_id == first.id  # not at the end of the old branch
    chat.check()


def test_context_usage_includes_attached_files(open_chat: Callable[..., OpenChat], tmp_path: Path) -> None:
    chat = open_chat()
    notes = tmp_path / "notes.txt"
    notes.write_text("some words " * 50)
    assert chat.session.context_usage("Hi", [notes])[0] > chat.session.context_usage("Hi")[0] + 50


def test_several_replies_are_generated_in_parallel(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=1.0, seed=1, max_tokens=12, n_ctx=2048))
    first = chat.run_all(chat.session.send("Tell me something.", n_replies=4))
    last = chat.events[-1]
    assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
    assert len({first.text, *(m.text for m in last.alternatives)}) == 4  # each reply has its own seed
    assert chat.session.tree.alternatives(first.id) == [first.id, *(m.id for m in last.alternatives)]
    assert chat.session.tree.head_id == first.id
    chat.run_all(chat.session.regenerate(n_replies=2))
    assert len(chat.session.tree.alternatives(first.id)) == 6
    chat.run(chat.session.send("And then?"))
    with pytest.raises(UsageError, match="at most 8"):
        list(chat.session.regenerate(n_replies=9))
    chat.check()


def test_parallel_greedy_replies_equal_a_single_reply(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=6))
    alone = chat.run(chat.session.send(CERTAIN_PROMPT))
    chat.run_all(chat.session.regenerate(n_replies=3))  # greedy replies are equal
    assert {m.text for m in chat.session.tree.subtree(chat.session.tree.path[0].id) if m.role == "assistant"} == {
        alone.text
    }


def test_reopened_conversation_is_prefilled_before_the_next_message(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat()
    chat.run(chat.session.send("Remember these words: " + " ".join(f"word{n}" for n in range(100))))
    chat.session.close()
    other_chat = open_chat(conversation=chat.session.conversation.id)
    other_chat.session.warm_cache()
    reply = other_chat.run(other_chat.session.send("Which?"))
    assert reply.stats is not None
    assert reply.stats.cached_tokens > reply.stats.prompt_tokens - 20
    assert reply.stats.cached_disk_tokens == 0  # warm_cache has restored it


def test_title_request_keeps_the_cached_conversation(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(msgspec.structs.replace(SHORT_GREEDY, max_tokens=100))
    chat.run(chat.session.send("Say only the word Paris."))
    chat.session.generate_title()
    reply = chat.run(chat.session.send("And now Rome."))
    assert reply.stats is not None
    assert reply.stats.cached_tokens > reply.stats.prompt_tokens - 30
