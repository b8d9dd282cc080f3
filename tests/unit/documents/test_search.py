"""Search in collections: keywords, embeddings and their fusion, reranking, limits for common words, order of ties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgechat.documents import keyword_search
from edgechat.documents.collection import Collection
from edgechat.documents.indexing import update
from edgechat.documents.keyword_search import find_coverage, find_words, search_keywords
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.search import fuse, search
from edgechat.documents.vector_scan import load_library
from tests.unit.documents.collections import TextExtractor, WordEmbedder, make_reader

TEXTS = {
    "fruit.txt": "Apples and pears grow on trees.\n\nThe harvest of apples starts in September.",
    "ships.txt": "The ship left the harbour in 1912.\n\nIts captain was Edward Smith.",
    "install.txt": "Run pip install edgechat==3.12.1 to install it.\n\nSet snake_case_name to 5.",
    "straße.txt": "Zürich hat eine Bahnhofstraße.\n\nÜber den Fluss führt eine Brücke.",
}
needs_library = pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        update(collection, add=[folder], reader=make_reader(TextExtractor()), embedder=WordEmbedder(n_embd=32))
        yield collection


def find_texts(collection: Collection, query: str, **options: object) -> list[str]:
    return [found.chunk.text for found in search([collection], query, n_results=5, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("Who was the captain?", "Its captain was Edward Smith."),
        ("when does the apple harvest start", "The harvest of apples starts in September."),
        ("version 3.12.1", "Run pip install edgechat==3.12.1 to install it."),
        ("What is snake_case_name?", "Set snake_case_name to 5."),
        ("ZURICH", "Zürich hat eine Bahnhofstraße."),
        ("bahnhofstraße", "Zürich hat eine Bahnhofstraße."),
        ("brucke", "Über den Fluss führt eine Brücke."),
        ("ships", "The ship left the harbour in 1912."),
    ],
)
def test_keywords_find_the_best_chunk(collection: Collection, query: str, text: str) -> None:
    assert find_texts(collection, query)[0] == text


@pytest.mark.parametrize(
    "query",
    ["", "   ", "?!", '"', "'; DROP TABLE chunks; --", "NEAR(", "a AND", "text:", "*", "^", "\0", "{}", "\ud800"],
)
def test_any_text_is_a_query(collection: Collection, query: str) -> None:
    find_texts(collection, query, embedder=WordEmbedder(n_embd=32))


def test_query_words() -> None:
    assert find_words("What is the e-mail address in v2.3?") == ["e", "mail", "address", "v2.3"]
    assert find_words("Who is who?") == ["who", "is"]
    assert find_words('say "hello" hello') == ["say", "hello"]


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ("harvesting", ["The harvest of apples starts in September."]),
        ("grow", ["Apples and pears grow on trees."]),
        ("growing", ["Apples and pears grow on trees."]),
        ("flüsse", []),
        ("edge", ["Run pip install edgechat==3.12.1 to install it."]),
    ],
)
def test_other_forms_of_words_are_found(collection: Collection, query: str, texts: list[str]) -> None:
    assert find_texts(collection, query) == texts


def test_same_word_is_better_than_another_form(collection: Collection) -> None:
    assert find_texts(collection, "ships")[0] == "The ship left the harbour in 1912."  # ships.txt
    assert find_texts(collection, "apples")[0].startswith(("Apples", "The harvest"))


def test_very_long_query(collection: Collection) -> None:
    words = " ".join(f"word{i}" for i in range(5000))
    assert find_texts(collection, f"captain {words}")[0] == "Its captain was Edward Smith."


def test_document_name_is_searched(collection: Collection) -> None:
    assert set(find_texts(collection, "fruit")) == set(TEXTS["fruit.txt"].split("\n\n"))


@needs_library
def test_embeddings_find_chunks_and_are_fused_with_keywords(collection: Collection) -> None:
    embedder = WordEmbedder(n_embd=32)
    found = search([collection], "Its captain was Edward Smith.", embedder=embedder, n_results=8)
    assert len(found) == 8
    best = found[0]
    assert best.chunk.text == "Its captain was Edward Smith."
    assert (best.scores.bm25_rank, best.scores.similarity_rank) == (1, 1)
    assert best.scores.similarity == pytest.approx(1, abs=0.005)
    assert best.scores.fused == pytest.approx(1.05 / 11)
    assert [chunk.scores.fused for chunk in found] == sorted((chunk.scores.fused or 0 for chunk in found), reverse=True)


def test_embeddings_of_another_model_are_not_used(collection: Collection) -> None:
    found = search([collection], "captain", embedder=WordEmbedder("other", 32), n_results=5)
    assert [chunk.scores.similarity for chunk in found] == [None]


def test_reranker_orders_the_best_candidates(collection: Collection) -> None:
    class Lengths:
        name = "lengths"

        def score(self, query: str, texts: Sequence[str]) -> list[float]:
            return [len(text) / 100 for text in texts]

    found = search([collection], "harvest captain bridge ship", reranker=Lengths(), n_results=2)
    assert [chunk.chunk.text for chunk in found] == [
        "The harvest of apples starts in September.", "The ship left the harbour in 1912.",
    ]  # fmt: skip
    assert found[0].scores.relevance == 0.42


def test_fusion_prefers_hits_of_both_parts_and_orders_ties_by_key() -> None:
    keys = [(0, i) for i in range(4)]
    scores = fuse([(5.0, keys[3]), (4.0, keys[1]), (4.0, keys[0])], [(0.9, keys[2]), (0.8, keys[1])], 10, 0.5)
    assert scores[keys[1]].fused == pytest.approx(1 / 13 + 0.5 / 12)
    assert scores[keys[0]].bm25_rank == 2
    assert max(scores, key=lambda key: scores[key].fused or 0) == keys[1]


def test_similarity_counts_more_if_keywords_find_little_of_the_query() -> None:
    exact, similar = (0, 0), (0, 1)
    for coverage, best in ((0.0, similar), (0.2, similar), (0.4, exact), (1.0, exact)):
        scores = fuse([(5.0, exact)], [(0.9, similar)], 10, coverage)
        assert max(scores, key=lambda key: scores[key].fused or 0) == best


def test_coverage_is_the_share_of_the_words_in_a_chunk(collection: Collection) -> None:
    [(chunk_id, _)] = search_keywords(collection.database, "captain", 5)
    for query, coverage in (
        ("captains", 1),
        ("captain Smith", 1),
        ("captain of a boat", 0.5),
        ("", 0),
        ("boat", 0),
        ("Édwards", 1),
    ):
        assert find_coverage(collection.database, query, chunk_id) == coverage


def test_common_words_are_ranked_at_a_bounded_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyword_search, "_MAX_RANKED", 10)
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"common {'frequent' if i % 2 else 'usual'} {'rare' if i == 7 else ''}")
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        update(collection, add=[folder], reader=make_reader(TextExtractor()))
        assert search_keywords(collection.database, "common frequent rare", 100)[0][0] == 8
        assert len(search_keywords(collection.database, "common frequent rare", 100)) == 1
        frequent = search_keywords(collection.database, "common frequent", 100)
        assert sorted(chunk_id for chunk_id, _ in frequent) == [2, 4, 6, 8, 10]
        assert len(search_keywords(collection.database, "common", 5)) == 5
        assert search_keywords(collection.database, "absent", 5) == []


def test_results_of_several_collections_are_merged(collection: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "x.txt").write_text("Another captain sailed the Endeavour.")
    with DocumentLibrary(tmp_path / "documents").create("more") as other:
        update(other, add=[folder], reader=make_reader(TextExtractor()))
        found = search([collection, other], "captain", n_results=5)
    assert {chunk.collection for chunk in found} == {"notes", "more"}
