"""Conversations on the real starter model: every way to go on, and what is kept of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgechat.chat import events, recorder
from edgechat.chat.messages import Message
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.errors import (
    AttachmentError,
    ContextOverflowError,
    EdgechatError,
    EngineDiedError,
    StoreError,
    UsageError,
)
from edgechat.store import ephemeral_store, open_store
from edgechat.store.sqlite import SqliteStore
from tests.models import write_tiny_llama

QUIET = Settings(temperature=0.0, max_tokens=12, n_ctx=2048)


class Talk:
    """A session that is open, and what it said last."""

    def __init__(self, model: Path, store: SqliteStore, settings: Settings = QUIET, conversation: str = "") -> None:
        known = store.conversation(conversation) if conversation else None
        self.session = Session(store, settings, model, known)
        self.session.open()
        self.seen: list[events.SessionEvent] = []

    def hear(self, answer: Iterator[events.SessionEvent]) -> Message:
        self.seen = list(answer)
        last = self.seen[-1]
        assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
        text = "".join(e.text for e in self.seen if isinstance(e, events.ReplyTextGenerated))
        assert last.reply.text.endswith(text)
        assert last.reply == msgspec.structs.replace(self.session.tree[last.reply.id], active_child_id=None)
        self.check()
        return last.reply

    def hear_all(self, answer: Iterator[events.SessionEvent]) -> Message:
        self.seen = list(answer)
        last = self.seen[-1]
        assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
        for number, each in enumerate((last.reply, *last.alternatives)):
            heard = [e.text for e in self.seen if isinstance(e, events.ReplyTextGenerated) and e.reply_index == number]
            assert each.text == "".join(heard)
        self.check()
        return last.reply

    def check(self) -> None:
        """The store has what the session shows."""
        session = self.session
        stored = session.store.messages(session.conversation.id)
        assert {m.id: m for m in stored} == session.tree._messages
        assert session.store.conversation(session.conversation.id).head_id == session.tree.head_id

    def said(self) -> list[str]:
        return [m.text for m in self.session.tree.path]


@pytest.fixture
def talk(starter: Path) -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def start(settings: Settings = QUIET, store: SqliteStore | None = None, **options: object) -> Talk:
        talks.append(Talk(starter, store or open_store(), settings, **options))  # type: ignore[arg-type]
        return talks[-1]

    yield start
    for t in talks:
        t.session.close()


def test_every_way_to_go_on(talk: Callable[..., Talk]) -> None:
    t = talk()
    first = t.hear(t.session.send("Name a colour."))
    assert first.finish_reason in ("stop", "length")
    assert first.stats is not None
    assert first.n_tokens == first.stats.completion_tokens
    assert isinstance(t.seen[0], events.TurnStarted)
    t.hear(t.session.send("Another one."))
    assert len(t.said()) == 4

    again = t.hear(t.session.regenerate(first.id))
    assert again.text == first.text  # greedy
    assert t.session.tree.alternatives(first.id) == [first.id, again.id]
    assert len(t.said()) == 2
    t.session.select_alternative(first.id)
    assert len(t.said()) == 4  # where that branch was

    asked = t.session.tree.path[0]
    t.hear(t.session.edit(asked.id, "Name an animal."))
    assert t.said()[0] == "Name an animal."
    assert len(t.session.tree.alternatives(asked.id)) == 2
    t.session.branch_from(first.id)
    assert t.said()[0] == "Name a colour."
    t.hear(t.session.send("Why that?"))
    assert len(t.session.tree.alternatives(t.session.tree.path[2].id)) == 2
    t.check()


def test_an_answer_at_its_limit_can_be_continued_and_is_the_same_as_in_one_go(talk: Callable[..., Talk]) -> None:
    t = talk()
    begun = t.hear(t.session.send("Tell me about the sea."))
    assert begun.finish_reason == "length"
    continued = t.hear(t.session.continue_reply())
    assert continued.id == begun.id
    assert continued.text.startswith(begun.text)
    assert len(continued.text) > len(begun.text)
    whole = talk(msgspec.structs.replace(QUIET, max_tokens=24)).session
    *_, last = whole.send("Tell me about the sea.")
    assert isinstance(last, events.TurnFinished)
    assert last.reply.text == continued.text
    # Once the conversation went on, what is continued is a copy.
    t.hear(t.session.send("And then?"))
    copy = t.hear(t.session.continue_reply(begun.id))
    assert copy.id != begun.id
    assert copy.text.startswith(continued.text)


def test_deleting_and_undoing(talk: Callable[..., Talk]) -> None:
    t = talk()
    t.hear(t.session.send("One."))
    t.hear(t.session.send("Two."))
    before = t.said()
    assert t.session.delete(t.session.tree.path[2].id) == 2
    t.check()
    assert len(t.said()) == 2
    assert t.session.undo_delete()
    t.check()
    assert t.said() == before
    assert not t.session.undo_delete()
    assert t.session.delete(t.session.tree.path[0].id) == 4
    assert t.said() == []
    t.hear(t.session.send("From the beginning."))


def test_a_conversation_goes_on_in_another_session_with_another_model(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    t = talk()
    first = t.hear(t.session.send("Name a colour."))
    t.session.close()
    u = talk(conversation=t.session.conversation.id)
    assert u.said() == ["Name a colour.", first.text]
    other = write_tiny_llama(tmp_path / "other.gguf")
    u.session.change_model(str(other), other)
    answer = u.hear(u.session.send("And you?"))
    assert answer.model == "other.gguf"
    assert u.session.store.conversation(u.session.conversation.id).model == str(other)
    with pytest.raises(Exception, match="not a GGUF file"):
        u.session.change_model("x", Path(__file__))
    assert u.session.model_path == other


def test_stopping_keeps_what_was_said_and_it_can_be_continued(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=None))
    pieces = []
    for event in t.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated):
            pieces.append(event.text)
            t.session.stop()
        last = event
    assert isinstance(last, events.TurnInterrupted)
    assert last.reply.finish_reason == "cancelled"
    assert last.reply.text == "".join(pieces)
    t.check()
    t.session.settings = QUIET
    assert len(t.hear(t.session.continue_reply()).text) > len(last.reply.text)


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_an_engine_that_dies_leaves_an_interrupted_answer_and_the_next_turn_works(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=400))
    answer = t.session.send("Tell me a very long story.")
    next(e for e in answer if isinstance(e, events.ReplyTextGenerated))
    assert t.session.engine.pid is not None
    os.kill(t.session.engine.pid, 9)
    with pytest.raises(EngineDiedError):
        list(answer)
    t.check()
    assert t.session.tree.path[1].finish_reason == "interrupted"
    assert t.session.tree.path[1].text
    t.session.settings = QUIET
    assert t.hear(t.session.continue_reply()).finish_reason == "length"
    assert any(isinstance(e, events.ModelLoadProgressed) for e in t.seen)


def test_leaving_the_iteration_stops_the_answer_and_keeps_it(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=400))
    for event in t.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated):
            break
    del event
    import gc

    gc.collect()
    t.check()
    assert t.session.tree.path[1].is_interrupted
    answer = t.session.regenerate()
    assert isinstance(next(answer), events.TurnStarted)
    del answer  # before the engine saw anything
    t.check()
    assert t.session.tree.path[1].finish_reason == "interrupted"


# A context that is full


def test_whole_turns_leave_from_the_front_visibly(talk: Callable[..., Talk]) -> None:
    t = talk(Settings(temperature=0.0, max_tokens=24, n_ctx=256))
    dropped = []
    for number in range(12):
        answer = t.hear(t.session.send(f"Question {number}: what is the number {number * 37} like?"))
        drops = [e for e in t.seen if isinstance(e, events.TurnsDropped)]
        assert (answer.context_start_id is not None) == bool(drops)
        dropped += [e.n_messages for e in drops]
        if drops:
            assert t.session.tree[drops[0].context_start_id].role == "user"
            assert t.session.tree.path[drops[0].n_messages].id == drops[0].context_start_id
        assert answer.stats is not None
        assert answer.stats.prompt_tokens + 24 <= 256 + 1
    assert dropped == sorted(dropped)
    assert len(set(dropped)) < len(dropped)  # the window stays while it fits, so that the cache is of use
    assert len(t.said()) == 24  # nothing left the conversation itself
    stats = t.session.tree.path[-1].stats
    assert stats is not None
    tokens, left = t.session.context_usage("one more")
    assert tokens < 256
    assert left >= dropped[-1]


def test_a_message_that_can_never_fit_is_taken_back(talk: Callable[..., Talk]) -> None:
    t = talk(Settings(temperature=0.0, max_tokens=8, n_ctx=256))
    with pytest.raises(ContextOverflowError, match="256"):
        t.hear(t.session.send("word " * 400))
    assert t.said() == []
    assert list(t.session.store.list_conversations()) == []
    first = t.hear(t.session.send("Hi"))
    with pytest.raises(ContextOverflowError):
        t.hear(t.session.send("word " * 400))
    t.check()
    assert t.said() == ["Hi", first.text]
    with pytest.raises(ContextOverflowError):
        t.session.context_usage("word " * 400)
    tokens, left = t.session.context_usage("a few words")
    assert 0 < tokens < 256
    assert left == 0


# Attachments


def test_files_go_with_a_message(talk: Callable[..., Talk], tmp_path: Path) -> None:
    notes, picture, binary = tmp_path / "notes.py", tmp_path / "cat.txt", tmp_path / "tool"
    notes.write_text("x = 1  # ```\n")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    binary.write_bytes(b"\x7fELF\xff\xfe")
    t = talk()
    asked_tokens = t.session.context_usage("What is this?")[0]
    t.hear(t.session.send("What is this?", [notes]))
    [attachment] = t.session.tree.path[0].attachments
    assert (attachment.name, attachment.media_type) == ("notes.py", "text/plain")
    assert t.session.store.read_attachment(attachment.sha256) == notes.read_bytes()
    stats = t.session.tree.path[1].stats
    assert stats is not None
    assert stats.prompt_tokens > asked_tokens
    for file, words in (
        (picture, "cannot see pictures"),
        (binary, "neither UTF-8 text nor"),
        (tmp_path / "no", "cannot be read"),
    ):
        with pytest.raises(AttachmentError, match=words):
            t.hear(t.session.send("And this?", [file]))
    t.check()
    edited = t.hear(t.session.edit(t.session.tree.path[0].id, "Explain it."))
    assert t.session.tree[edited.parent_id or ""].attachments == (attachment,)
    t.session.store.delete_conversation(t.session.conversation.id)
    with pytest.raises(StoreError, match="missing"):
        t.session.store.read_attachment(attachment.sha256)


# Titles


def test_the_model_names_a_conversation_in_idle_time_and_yields_to_the_next_message(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=200))
    t.hear(t.session.send("What is two and two?"))
    assert t.session.conversation.title == "What is two and two?"
    answer = t.session.tree.path[1]
    cached = t.hear(t.session.send("And three?")).stats
    t.session.delete(t.session.tree.path[2].id)
    title = t.session.generate_title()
    if answer.finish_reason == "stop" and title is not None:
        assert t.session.store.conversation(t.session.conversation.id).title == title
        assert t.session.generate_title() is None  # it has one
    t.session.rename("What is two and two?")
    after = t.hear(t.session.send("And three?")).stats
    assert cached is not None
    assert after is not None
    assert after.cached_tokens >= cached.cached_tokens - 1  # a title costs the next turn nothing

    u = talk(msgspec.structs.replace(QUIET, max_tokens=200))
    u.hear(u.session.send("What is two and two?"))
    made: list[str | None] = []
    thread = threading.Thread(target=lambda: made.append(u.session.generate_title()))
    thread.start()
    u.hear(u.session.send("And three?"))
    thread.join(timeout=20)
    assert len(made) == 1


def test_a_title_is_the_first_line_until_then(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, titles=False), store=ephemeral_store())
    t.hear(t.session.send("\n\n  What   about\tthis\nand that?"))
    assert t.session.conversation.title == "What about this"
    assert t.session.generate_title() is None


# Two at once


def test_two_sessions_in_one_conversation_lose_nothing(talk: Callable[..., Talk]) -> None:
    t = talk()
    root = t.hear(t.session.send("Hello."))
    u = talk(conversation=t.session.conversation.id)
    ours = t.session.send("From here.")
    theirs = u.session.send("From there.")
    for pair in zip(ours, theirs, strict=False):
        assert pair
    list(ours)
    list(theirs)
    stored = {m.text for m in t.session.store.messages(t.session.conversation.id) if m.parent_id == root.id}
    assert stored == {"From here.", "From there."}


def test_an_answer_that_another_process_continues_is_kept_beside_it(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=300))
    other = open_store()
    claimed = False
    for event in t.session.send("Tell me a very long story."):
        if isinstance(event, events.ReplyTextGenerated) and not claimed:
            claimed = True
            answer = t.session.tree.path[1]
            other.claim(answer.id)
            assert other.checkpoint(msgspec.structs.replace(answer, text="theirs", finish_reason="stop"))
        last = event
    assert isinstance(last, events.TurnFinished)
    assert last.reply.id != answer.id
    kept = {m.text for m in other.messages(t.session.conversation.id) if m.role == "assistant"}
    assert kept == {"theirs", last.reply.text}
    assert t.session.tree.head is not None
    assert t.session.tree.head.text == last.reply.text
    other.close()


def test_what_cannot_be_done_is_said(talk: Callable[..., Talk]) -> None:
    t = talk()
    for impossible in (t.session.regenerate, t.session.continue_reply):
        with pytest.raises(UsageError, match="nothing was said"):
            list(impossible())
    t.hear(t.session.send("Hi"))
    with pytest.raises(UsageError, match="no message"):
        list(t.session.edit("nope", "x"))
    with pytest.raises(UsageError, match="only what you said"):
        list(t.session.edit(t.session.tree.path[1].id, "x"))
    with pytest.raises(UsageError, match="only an answer"):
        list(t.session.continue_reply(t.session.tree.path[0].id))


def test_leaving_in_mid_answer_writes_the_last_word(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=400))
    heard: list[str] = []
    begun = threading.Event()

    def hear() -> None:
        for event in t.session.send("Tell me a very long story."):
            if isinstance(event, events.ReplyTextGenerated):
                heard.append(event.text)
                begun.set()

    thread = threading.Thread(target=hear)
    thread.start()
    assert begun.wait(20)
    t.session.close()
    thread.join(timeout=10)
    store = open_store()
    answer = store.messages(t.session.conversation.id)[1]
    assert answer.text == "".join(heard)  # not what the last checkpoint had
    assert answer.is_interrupted
    store.close()


def test_a_stop_that_comes_too_late_does_not_stop_the_next_answer(talk: Callable[..., Talk]) -> None:
    t = talk()
    t.hear(t.session.send("Hello."))
    t.session.stop()
    t.session.clear_stop()
    assert t.hear(t.session.send("Hello again.")).finish_reason != "cancelled"
    t.session.stop()
    assert t.hear(t.session.send("And again.")).finish_reason == "cancelled"  # before it began


def test_a_disk_that_is_full_for_a_while_costs_no_word(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=200))
    store = t.session.store
    assert isinstance(store, SqliteStore)
    notices = []
    n_after = 0
    for event in t.session.send("Tell me a very long story."):
        if isinstance(event, events.TurnStarted):
            store.database.connection.execute("PRAGMA query_only = ON")  # every write fails from here on
        if isinstance(event, events.NotSaved):
            notices.append(event.reason)
        n_after += bool(notices) and isinstance(event, events.ReplyTextGenerated)
        last = event
    assert isinstance(last, events.TurnFinished)
    assert notices
    assert n_after > 1  # it is said while there is time to do something about it
    store.database.connection.execute("PRAGMA query_only = OFF")
    assert store.messages(t.session.conversation.id)[1].text != last.reply.text
    t.session.settings = QUIET
    t.hear(t.session.send("Go on."))  # writes what is owed, and checks
    assert store.messages(t.session.conversation.id)[1].text == last.reply.text


def test_a_message_that_is_taken_back_leaves_no_trace(talk: Callable[..., Talk]) -> None:
    t = talk(Settings(temperature=0.0, max_tokens=8, n_ctx=256))
    with pytest.raises(ContextOverflowError):
        t.hear(t.session.send("the wrong name " * 400))
    assert t.session.conversation.title == ""
    first = t.hear(t.session.send("Hi"))
    assert t.session.conversation.title == "Hi"
    t.hear(t.session.send("More"))
    t.session.branch_from(first.id)
    with pytest.raises(ContextOverflowError):
        t.hear(t.session.send("word " * 400))
    assert t.session.tree.head_id == first.id  # not on the old branch again
    t.check()


def test_what_another_process_deletes_is_gone_here_too(talk: Callable[..., Talk]) -> None:
    t = talk()
    t.hear(t.session.send("Hello."))
    second = t.session.tree
    t.hear(t.session.send("More."))
    other = open_store()
    other.delete_message(second.path[2].id)
    with pytest.raises(StoreError, match="gone"):
        t.hear(t.session.send("And more."))
    t.hear(t.session.send("And more."))
    assert t.said()[0] == "Hello."
    assert "More." not in t.said()
    other.delete_conversation(t.session.conversation.id)
    with pytest.raises(StoreError, match=r"gone|no conversation"):
        t.hear(t.session.send("Still there?"))
    assert list(other.list_conversations()) == []
    other.close()


def test_two_processes_change_different_things_of_a_conversation(talk: Callable[..., Talk]) -> None:
    t = talk()
    t.hear(t.session.send("Hello."))
    other = open_store()
    other.update_conversation(t.session.conversation.id, title="Elsewhere", pinned=True)
    t.session.override_settings(reasoning=True)
    kept = other.conversation(t.session.conversation.id)
    assert (kept.title, kept.pinned, kept.settings["reasoning"]) == ("Elsewhere", True, True)
    other.close()


def test_a_second_interrupt_at_the_last_word_loses_nothing(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    t = talk()
    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", 60.0)

    def interrupted(self: recorder.ReplyRecorder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder.ReplyRecorder, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(t.session.send("Tell me a story."))
    said = t.said()[-1]
    assert said
    t.session.close()
    store = open_store()
    assert [m.text for m in store.messages(t.session.conversation.id)][-1] == said
    store.close()


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(talk: Callable[..., Talk], tmp_path: Path) -> None:
    t = talk()
    t.hear(t.session.send("Hello."))
    before = t.session.model_path
    unknown = write_tiny_llama(tmp_path / "unknown.gguf", architecture="nobodyknows")
    with pytest.raises(EdgechatError):
        t.session.change_model("unknown", unknown)
    assert t.session.model_path == before
    assert t.hear(t.session.send("Still there?")).text


def test_the_context_is_counted_with_files(talk: Callable[..., Talk], tmp_path: Path) -> None:
    t = talk()
    notes = tmp_path / "notes.txt"
    notes.write_text("some words " * 50)
    assert t.session.context_usage("Hi", [notes])[0] > t.session.context_usage("Hi")[0] + 50


def test_prompts_of_two_threads_do_not_mix(talk: Callable[..., Talk]) -> None:
    t = talk()
    counts = {text: t.session.context_usage(text)[0] for text in ("one", "a much longer text than that")}
    wrong: list[int] = []

    def count(text: str) -> None:
        for _ in range(60):
            found = t.session.context_usage(text)[0]
            if found != counts[text]:
                wrong.append(found)

    threads = [threading.Thread(target=count, args=(text,)) for text in counts for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_answers_side_by_side(talk: Callable[..., Talk]) -> None:
    t = talk(Settings(temperature=1.0, seed=1, max_tokens=12, n_ctx=2048))
    first = t.hear_all(t.session.send("Tell me something.", n_replies=4))
    last = t.seen[-1]
    assert isinstance(last, (events.TurnFinished, events.TurnInterrupted))
    assert len({first.text, *(o.text for o in last.alternatives)}) == 4  # with a seed each
    assert t.session.tree.alternatives(first.id) == [first.id, *(o.id for o in last.alternatives)]
    assert t.session.tree.head_id == first.id
    t.hear_all(t.session.regenerate(n_replies=2))
    assert len(t.session.tree.alternatives(first.id)) == 6
    t.hear(t.session.send("And then?"))
    with pytest.raises(UsageError, match="1 to 8"):
        list(t.session.regenerate(n_replies=9))
    t.check()


def test_an_answer_beside_others_is_the_one_alone(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=6))
    alone = t.hear(t.session.send("What is a river?"))
    t.hear_all(t.session.regenerate(n_replies=3))  # greedy: all the same
    assert {m.text for m in t.session.tree.subtree(t.session.tree.path[0].id) if m.role == "assistant"} == {alone.text}


def test_all_answers_are_stopped_and_kept(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=300))
    for event in t.session.send("Tell me a very long story.", n_replies=3):
        if isinstance(event, events.ReplyTextGenerated) and event.reply_index == 2:
            t.session.stop()
        last = event
    assert isinstance(last, events.TurnInterrupted)
    assert [a.finish_reason for a in (last.reply, *last.alternatives)] == ["cancelled"] * 3
    assert all(a.text for a in (last.reply, *last.alternatives))
    t.check()


def test_a_conversation_is_warm_when_it_is_opened_again(talk: Callable[..., Talk]) -> None:
    t = talk()
    t.hear(t.session.send("Remember these words: " + " ".join(f"word{n}" for n in range(100))))
    t.session.close()
    u = talk(conversation=t.session.conversation.id)
    u.session.warm_cache()
    answer = u.hear(u.session.send("Which?"))
    assert answer.stats is not None
    assert answer.stats.cached_tokens > answer.stats.prompt_tokens - 20
    assert answer.stats.cached_disk_tokens == 0  # that was done before


def test_a_title_takes_nothing_from_the_conversation(talk: Callable[..., Talk]) -> None:
    t = talk(msgspec.structs.replace(QUIET, max_tokens=100))
    t.hear(t.session.send("Say only the word Paris."))
    t.session.generate_title()
    answer = t.hear(t.session.send("And now Rome."))
    assert answer.stats is not None
    assert answer.stats.cached_tokens > answer.stats.prompt_tokens - 30
