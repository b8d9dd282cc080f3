"""Full-text search over messages and titles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.store import parse_query
from edgechat.store import open_ephemeral_store, search
from edgechat.store.sqlite import SqliteStore

TEXTS = [
    "def reverse_list(items): return items[::-1]",
    "Wie heißt der Fluss durch Köln?",
    "今天天气怎么样? 我们去公园吧。",
    "SELECT * FROM users WHERE name = 'O''Brien' -- \"quoted\"",
    "İstanbul and STRASSE",
    "a NUL \0 in the middle, and then more",
    "",
]


def fill(store: SqliteStore, texts: list[str], title: str = "") -> str:
    conversation = Conversation(id=new_id(), title=title, created_at_ms=1)
    parent = None
    for number, text in enumerate(texts):
        message = Message(id=new_id(), parent_id=parent, role="user", text=text, created_at_ms=number + 1)
        store.append(conversation, [message])
        parent = message.id
    return conversation.id


@pytest.fixture(scope="module")
def store() -> Iterator[SqliteStore]:
    store = open_ephemeral_store()
    fill(store, TEXTS, "Rivers of Germany <b>bold</b>")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("reverse_list", 0), ("ERSE_LI", 0), ("[::-1]", 0), ("köln", 1), ("Fluss Köln", 1), ('"durch Köln"', 1),
        ("天气怎", 2), ("公园", 2), ("吧", 2), ("O''Brien", 3), ("FROM users", 3), ("strasse", 4), ("NUL", 5),
        ("de", 0), ("x", None), ("Köln Fluss nowhere", None), ('"Köln durch"', None), ("ss K", 1),
    ],
)  # fmt: skip
def test_query_finds_expected_text(store: SqliteStore, query: str, text: int | None) -> None:
    hits = [hit for hit in store.search(query) if hit.message_id is not None]
    if text is None:
        assert hits == []
    else:
        assert any(TEXTS[text].replace("\0", " ")[:10] in " ".join(hit.snippet.split()) or hit.marks for hit in hits)
        assert TEXTS[text] in {
            m.text for m in store.messages(hits[0].conversation_id) if m.id in {h.message_id for h in hits}
        }


@given(st.text(max_size=30))
def test_every_hit_contains_every_word_of_any_query(store: SqliteStore, query: str) -> None:
    texts = {m.id: m.text for m in store.messages(store.conversation_ids()[0])}
    for hit in store.search(query):
        text = texts[hit.message_id] if hit.message_id else hit.title
        if text.isascii() and query.isascii() and "\0" not in query:
            assert all(word.lower() in text.lower() for word in parse_query(query)[: search.MAX_WORDS])
        for start, end in hit.marks:
            assert 0 <= start < end <= len(hit.snippet)


@given(st.lists(st.sampled_from(['"', "AND", "NOT", "*", "(", "text:", "NEAR(a b)", "^", "-", "{", "\0"]), max_size=6))
def test_fts5_operators_are_ordinary_words(store: SqliteStore, words: list[str]) -> None:
    store.search(" ".join(words))


def test_search_finds_titles_and_returns_consecutive_pages(store: SqliteStore) -> None:
    assert [h.message_id for h in store.search("Germany")] == [None]
    assert [h.message_id for h in store.search("<b>")] == [None]
    everything = list(store.search("a", limit=100))
    assert list(store.search("a", limit=2)) + list(store.search("a", limit=98, offset=2)) == everything


def test_order_is_newest_first_or_by_term_frequency() -> None:
    store = open_ephemeral_store()
    fill(store, ["whale whale whale", "one whale among many other words that are not about it at all", "nothing"])
    newest = [h.snippet for h in store.search("whale")]
    assert newest[0].startswith("one whale")
    ranked = store.search("whale", order="rank")
    assert ranked[0].snippet == "whale whale whale"
    assert ranked[0].score > ranked[1].score
    store.close()


def test_search_skips_hidden_and_streaming_messages() -> None:
    store = open_ephemeral_store()
    conversation = fill(store, ["elephant"])
    root = store.messages(conversation)[0]
    reply = Message(id=new_id(), parent_id=root.id, role="assistant", text="giraffe", finish_reason="streaming")
    store.append(store.conversation(conversation), [reply])
    assert store.search("giraffe") == []
    store.delete_message(root.id)
    assert store.search("elephant") == []
    store.restore_message(root.id)
    assert len(store.search("elephant")) == 1
    store.delete_conversation(conversation)
    assert store.search("elephant") == []
    store.close()


def test_long_message_is_indexed_by_its_first_million_characters() -> None:
    store = open_ephemeral_store()
    fill(store, ["needle " + "hay " * 500_000 + "pin"])
    assert len(store.search("needle")) == 1
    assert store.search("pin") == []
    store.close()


def test_query_of_short_and_long_words_scans_beyond_the_first_page() -> None:
    store = open_ephemeral_store()
    fill(store, ["the qz is here", *["the rest"] * 1200])
    for number in range(30):
        fill(store, ["-"], f"project {'xy' if number == 0 else number}")
    assert [h.snippet for h in store.search("the qz")] == ["the qz is here"]
    assert [h.title for h in store.search("project xy")] == ["project xy"]


def test_delete_purges_text_from_the_index() -> None:
    store = open_ephemeral_store()
    fill(store, ["some other words"])
    deleted = fill(store, ["zyplw0rugh"])
    blocks = "SELECT block FROM message_search_data"
    assert any(b"zyp" in row["block"] for row in store.database.connection.execute(blocks))
    store.delete_conversation(deleted)
    assert not any(b"zyp" in row["block"] for row in store.database.connection.execute(blocks))
    assert store.search("other")
    store.close()
