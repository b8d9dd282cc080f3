"""Searches in documents before the turns of a session, with scripted replies instead of a model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from edgechat import paths
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import message_passages
from edgechat.chat.document_search import DocumentSearch, choose_budget
from edgechat.chat.events import (
    DocumentSearchStarted,
    DocumentsSearched,
    SessionEvent,
    TurnFinished,
    TurnStarted,
    format_notice,
    format_progress,
)
from edgechat.config import Settings
from edgechat.documents import embedding, vector_scan
from edgechat.documents.embedding import TextEmbedder
from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import PassageSet
from edgechat.engine import protocol
from edgechat.errors import ContextOverflowError, DocumentError, EngineError
from edgechat.prefix.shared_prefix import make_folder_name, make_pinned_owner
from edgechat.store import open_ephemeral_store, open_store
from tests.unit.documents.collections import TextExtractor, WordEmbedder, make_reader

SHIPS = {"vasa.txt": "The Vasa sank in 1628.\n\nIt was raised in 1961.", "mary.txt": "The Mary Rose sank in 1545."}


def add_collection(
    tmp_path: Path, name: str = "ships", texts: dict[str, str] = SHIPS, embedder: TextEmbedder | None = None
) -> None:
    """Make or update the collection `name` of the text files `texts`."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for file_name, text in texts.items():
        (folder / file_name).write_text(text)
    library = DocumentLibrary(paths.documents_dir())
    with library.open(name) if name in library.names() else library.create(name) as collection:
        update(collection, add=[folder], reader=make_reader(TextExtractor()), embedder=embedder)


def fill(tmp_path: Path, name: str = "long", embedder: TextEmbedder | None = None) -> None:
    """Make a collection that fits into no small context."""
    add_collection(tmp_path, name, {f"{i}.txt": f"Fact {i}: the ship{i} is red. " * 30 for i in range(40)}, embedder)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no embedding model be installed, whatever other programs on this machine have."""
    monkeypatch.setattr(embedding, "_list_models", lambda purpose: [])


@pytest.fixture
def session(tmp_path: Path) -> Iterator[ScriptedSession]:
    add_collection(tmp_path)
    session = ScriptedSession(open_ephemeral_store(), Settings(docs=("ships",)), Script(["In 1628 [1]."]))
    session.open()
    yield session
    session.close()


def run(turn: Iterable[SessionEvent]) -> tuple[list[SessionEvent], DocumentsSearched]:
    """Run a turn to its end; return its events, and the one that describes the passages."""
    seen = list(turn)
    assert isinstance(seen[-1], TurnFinished)
    [searched] = [e for e in seen if isinstance(e, DocumentsSearched)]
    return seen, searched


def saved_sets(session: ScriptedSession) -> list[PassageSet | None]:
    return message_passages.find_readable_passages(session.tree.path, session.store.read_attachment)


def test_documents_that_fit_are_saved_whole_with_the_message(session: ScriptedSession) -> None:
    seen, searched = run(session.send("When did the Vasa sink?"))
    kinds = [type(e) for e in seen[:3]]
    assert kinds == [DocumentSearchStarted, TurnStarted, DocumentsSearched]
    assert format_progress(seen[0]) == "Searching 2 documents"
    assert searched.passages.is_whole
    assert [p.number for p in searched.passages.passages] == [1, 2, 3]
    assert format_notice(searched) == f"Both documents are in the prompt ({searched.n_tokens} tokens)."
    question = session.tree.path[0]
    assert saved_sets(session) == [searched.passages, None]
    assert session.conversation.title == "When did the Vasa sink?"

    _, again = run(session.send("And the Mary Rose?"))
    assert format_notice(again) == ""
    assert session.tree.path[2].attachments == question.attachments  # the same content is stored once


def test_search_in_documents_that_do_not_fit(tmp_path: Path, session: ScriptedSession) -> None:
    fill(tmp_path)
    session.override_settings(docs=("long",), max_tokens=50)
    session.model.builder._model_properties = _shorten_context(session, 2048)
    _, first = run(session.send("What colour is ship7?"))
    assert not first.passages.is_whole
    assert first.passages.passages[0].document == "7.txt"
    assert first.n_tokens <= 2048 // 4 + 100
    assert format_notice(first).startswith("1 passage found in 40 documents (")
    assert "by keywords. Only keywords were searched, because no embedding model is installed." in format_notice(first)
    _, second = run(session.send("Tell me what colour the large ship8 has."))
    assert [p.number for p in second.passages.passages] == [2]
    assert format_notice(second).endswith("by keywords.")  # the hint appears once

    _, nothing = run(session.send("xylophone"))
    assert nothing.passages.passages == ()
    assert format_notice(nothing).startswith("Nothing found in 40 documents (")
    prompt = session._create_prompt_builder().build(session.tree.path[:-1]).prompt.text
    assert "found nothing for this message" in prompt
    assert prompt.index("[1] 7.txt") < prompt.index("What colour") < prompt.index("[2] 8.txt")


def test_result_in_a_short_context_is_cut_and_not_denied(tmp_path: Path, session: ScriptedSession) -> None:
    fill(tmp_path)
    session.override_settings(docs=("long",), max_tokens=50)
    session.model.builder._model_properties = _shorten_context(session, 700)
    _, searched = run(session.send("What colour is ship7?"))
    [passage] = searched.passages.passages
    assert passage.document == "7.txt"
    assert format_notice(searched).startswith("1 passage found in 40 documents (")
    assert searched.n_tokens <= 700 // 4
    n_chars = 4 * (700 - 50 - 64 - 40)  # without the reply and the template, 40 tokens remain for the documents
    _, omitted = run(session.send("What colour is ship7?".ljust(n_chars, ".")))
    assert omitted.passages.passages == ()
    notice = format_notice(omitted)
    assert notice.startswith("1 passage found in 40 documents ("), notice
    assert "by keywords, but none fits in the context beside the message." in notice
    prompt = session._create_prompt_builder().build(session.tree.path[:-1]).prompt.text
    assert "found nothing" not in prompt


def _shorten_context(session: ScriptedSession, n_ctx: int) -> protocol.Loaded:
    return msgspec.structs.replace(session.model.builder._model_properties, n_ctx=n_ctx)


def test_short_question_is_searched_with_the_question_before_it(tmp_path: Path, session: ScriptedSession) -> None:
    fill(tmp_path)
    session.override_settings(docs=("long",), max_tokens=50)
    session.model.builder._model_properties = _shorten_context(session, 2048)
    run(session.send("What colour is ship7?"))
    _, second = run(session.send("And how large is it?"))
    assert second.passages.query == "What colour is ship7?\nAnd how large is it?"
    assert second.passages.passages[0].document == "7.txt"
    _, third = run(session.send("Who built it?"))  # the topic is two questions away
    assert third.passages.query.startswith("What colour is ship7?")
    _, other = run(session.send("Which of the facts says that ship9 is not green?"))
    assert other.passages.query == "Which of the facts says that ship9 is not green?"
    _, thanks = run(session.send("Thank you."))
    assert thanks.passages.query == "Thank you."


class BrokenEmbedder(WordEmbedder):
    """Embedding model whose engine fails."""

    def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
        if is_query:
            raise EngineError("The engine failed.")
        return super().embed(texts, is_query=is_query)

    def close(self) -> None:
        self.texts.append("closed")


def test_failing_embedding_model_leaves_the_search_by_keywords(
    tmp_path: Path, session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vector_scan.load_library() is None:
        pytest.skip("the native bundle has no libedgechat-vectors")
    embedder = BrokenEmbedder()
    fill(tmp_path, embedder=embedder)
    monkeypatch.setattr(embedding, "open_embedder", lambda settings, on_status: embedder)
    session.override_settings(docs=("long",), max_tokens=50)
    session.model.builder._model_properties = _shorten_context(session, 2048)
    _, first = run(session.send("What colour is ship7?"))
    assert first.passages.passages[0].document == "7.txt"
    assert "because the search by meaning failed: The engine failed." in format_notice(first)
    session.close()
    assert embedder.texts[-1] == "closed"


def test_missing_collection_is_an_error_before_the_turn(session: ScriptedSession) -> None:
    run(session.send("When did the Vasa sink?"))
    session.override_settings(docs=("boats",))
    with pytest.raises(
        DocumentError, match=r"no collection of documents called 'boats'\. The collections are: ships\."
    ):
        list(session.send("Hi"))
    assert len(session.tree.path) == 2
    DocumentLibrary(paths.documents_dir()).remove("ships")
    with pytest.raises(DocumentError, match="There are no collections yet"):
        list(session.send("Hi"))
    [*_, finished] = session.regenerate()  # uses the saved passages
    assert isinstance(finished, TurnFinished)
    assert "The Vasa sank in 1628." in session._create_prompt_builder().build(session.tree.path[:1]).prompt.text
    session.override_settings(docs=())
    [*_, finished] = session.send("Hi")
    assert isinstance(finished, TurnFinished)


def test_edited_question_is_searched_again(tmp_path: Path, session: ScriptedSession) -> None:
    run(session.send("When did the Vasa sink?"))
    first = session.tree.path[0]
    add_collection(tmp_path, texts={"vasa.txt": "The Vasa sank on 10 August 1628."})
    run(session.edit(first.id, "When exactly?"))
    edited = session.tree.path[0]
    assert [a.is_passages for a in edited.attachments] == [True]
    assert edited.attachments != first.attachments
    [passages, _] = saved_sets(session)
    assert passages is not None
    assert passages.passages[0].number == 1  # the number of passages on another branch do not count
    assert "10 August" in "".join(p.text for p in passages.passages)


def test_only_new_text_of_documents_gets_new_numbers(tmp_path: Path, session: ScriptedSession) -> None:
    run(session.send("When did the Vasa sink?"))
    add_collection(tmp_path, texts={"cutty.txt": "The Cutty Sark is in Greenwich."})
    _, changed = run(session.send("And where is the Cutty Sark?"))
    assert [p.number for p in changed.passages.passages] == [1, 2, 3, 4]
    assert format_notice(changed).startswith("All 3 documents are in the prompt")
    prompt = session._create_prompt_builder().build(session.tree.path[:-1]).prompt.text
    assert prompt.count("The Vasa sank") == 1


def test_documents_are_searched_if_the_context_cannot_grow(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path)
    session.override_settings(docs=("long",))
    generate = session._scripted_engine.generate

    def refuse_long_prompts(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        if len(request.tokens or ()) >= 4096:
            yield protocol.ContextGrowthRefused(
                id=request.id, n_ctx=4096, refused_n_ctx=8192, needed_bytes=3 << 30, available_bytes=1 << 30
            )
            raise ContextOverflowError("The prompt has more tokens")
        yield from generate(request)

    monkeypatch.setattr(session._scripted_engine, "generate", refuse_long_prompts)
    seen = list(session.send("What colour is ship7?"))
    assert isinstance(seen[-1], TurnFinished)
    assert [e.passages.is_whole for e in seen if isinstance(e, DocumentsSearched)] == [True, False]
    assert len(session.tree) == 2
    [passages, _] = saved_sets(session)
    assert passages is not None
    assert not passages.is_whole


def test_long_conversation_drops_turns_but_not_the_whole_documents(tmp_path: Path, session: ScriptedSession) -> None:
    add_collection(tmp_path, "big", {f"{i}.txt": f"Fact {i}: the ship{i} is red. " * 10 for i in range(20)})
    session.override_settings(docs=("big",), max_tokens=50)
    session.model.builder._model_properties = _shorten_context(session, 2560)
    for i in range(30):
        _, searched = run(
            session.send(f"Question {i} about a ship of the fleet, and some more words to fill the context. " * 2)
        )
        assert searched.passages.is_whole
        assert searched.passages.passages[0].number == 1
    prompt = session._create_prompt_builder().build(session.tree.path[:-1])
    assert prompt.start > 0
    assert prompt.prompt.text.count("Fact 7: the ship7 is red.") == 10
    assert "Question 0 " not in prompt.prompt.text
    assert "Question 29" in prompt.prompt.text
    assert prompt.n_document_tokens > 1500


def test_documents_that_take_long_to_read_are_whole_only_if_cached(tmp_path: Path, session: ScriptedSession) -> None:
    fill(tmp_path)
    budget = choose_budget(32768, 100, None, 1.0)
    search, read = session.documents.search, session.store.read_attachment
    assert search.find_whole(["ships"], [], read, budget) is not None
    assert search.find_whole(["long"], [], read, budget) is None
    found = search.find_whole(["long"], [], read, budget._replace(max_new_tokens=32768))
    assert found is not None
    folder = paths.prefix_dir() / "identity" / make_folder_name(make_pinned_owner(["long"]))
    folder.mkdir(parents=True)
    assert search.find_whole(["long"], [], read, budget) is None
    (folder / "0-100-aa.kv").touch()
    assert search.find_whole(["long"], [], read, budget) == found


def test_collections_are_saved_with_the_conversation(tmp_path: Path, home: Path) -> None:
    add_collection(tmp_path)
    session = ScriptedSession(open_store(home / "h.db"), Settings(), Script(["Yes."]))
    session.open()
    session.override_settings(docs=("ships",))
    run(session.send("When did the Vasa sink?"))
    session.close()
    store = open_store(home / "h.db")
    conversation = store.conversation(store.latest_id() or "")
    session = ScriptedSession(store, Settings(), Script(["Yes."]), conversation=conversation)
    session.open()
    assert session.settings.docs == ("ships",)
    _, searched = run(session.send("And the Mary Rose?"))
    assert not searched.is_new
    session.close()


def test_context_usage_counts_whole_documents_before_the_first_message(
    tmp_path: Path, session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tokens, _ = session.context_usage("When did the Vasa sink?")
    with monkeypatch.context() as patch:
        patch.delattr(DocumentSearch, "find_whole")  # not read again, because the documents have not changed
        assert session.context_usage("When did the Vasa sink?")[0] == n_tokens
    add_collection(tmp_path, texts={"cutty.txt": "The Cutty Sark is in Greenwich. " * 20})
    assert session.context_usage("When did the Vasa sink?")[0] > n_tokens + 100
    _, searched = run(session.send("When did the Vasa sink?"))
    assert searched.n_tokens < session.context_usage()[0]
    session.override_settings(docs=())
    list(session.send("Thanks"))
    assert session.context_usage()[0] > searched.n_tokens  # documents of earlier messages remain


def test_whole_documents_are_read_before_the_first_question(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[protocol.Generate] = []
    monkeypatch.setattr(session._turn_runner.idle_gate, "generate_if_idle", requests.append)
    session.warm_cache()
    [request] = requests
    assert request.shared_prefix is not None
    assert 0 < request.shared_prefix.n_tokens <= len(request.tokens or ())
    session.override_settings(docs=("missing",))
    session.warm_cache()
    assert requests[1].shared_prefix is None


@pytest.mark.parametrize(
    ("n_ctx", "n_message", "max_tokens", "decode_tps", "whole", "retrieved", "reading"),
    [
        (8192, 100, None, None, 6826, 2048, 16384),
        (8192, 3000, None, None, 8192 - 1024 - 3000 - 64, 2048, 16384),
        (32768, 100, 256, 5.0, 27306, 3072, 4096),
        (32768, 100, 256, 60.0, 27306, 3072, 28800),
        (512, 600, None, None, 0, 0, 16384),
    ],
)
def test_budget_leaves_space_for_the_message_and_the_reply(
    n_ctx: int, n_message: int, max_tokens: int | None, decode_tps: float | None, whole: int, retrieved: int,
    reading: int,
) -> None:  # fmt: skip
    assert choose_budget(n_ctx, n_message, max_tokens, decode_tps) == (whole, retrieved, reading)
