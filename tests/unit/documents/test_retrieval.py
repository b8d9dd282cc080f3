"""Passages for prompts: budgets in tokens, neighbours in one passage, numbers, whole collections."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.passages import Passage, PassageScores, PassageSet, decode_passages, encode_passages
from edgechat.documents.prompt_text import format_retrieved
from edgechat.documents.retrieval import _make_passage, find_passages, read_whole
from edgechat.documents.search import FoundChunk, search
from edgechat.documents.text import Chunk
from edgechat.documents.vector_scan import load_library
from tests.unit.documents.collections import TextExtractor, WordEmbedder, make_reader


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def library(tmp_path: Path) -> DocumentLibrary:
    library = DocumentLibrary(tmp_path / "documents")
    for name in ("animals", "plants"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(3):
            (folder / f"{i}.txt").write_text(
                f"Title {i} of {name}\n\nThe zebra{i} eats grass.\nIt runs.\n\nThe zebra{i} sleeps.\n\nThe end."
            )
        with library.create(name) as collection:
            update(collection, add=[folder], reader=make_reader(TextExtractor()), embedder=WordEmbedder())
    return library


def test_neighbouring_chunks_become_one_passage(library: DocumentLibrary, tmp_path: Path) -> None:
    found = find_passages(
        library, ["animals"], "What about the zebra1?", count_tokens=count_words, max_tokens=1000, first_number=7
    )
    (passage,) = found.passages
    assert passage.text == "The zebra1 eats grass.\nIt runs.\nThe zebra1 sleeps."
    assert (passage.number, passage.first_line, passage.last_line) == (7, 3, 6)
    assert passage.place == "1.txt, lines 3-6"
    assert passage.path == str(tmp_path / "animals" / "1.txt")
    assert passage.scores.bm25_rank == 1
    assert (found.collections, found.query, found.is_whole) == (("animals",), "What about the zebra1?", False)
    assert found.searched.describe() == "3 documents (12 passages) by keywords"
    assert decode_passages(encode_passages(found)) == found


def test_passages_fit_into_the_budget(library: DocumentLibrary) -> None:
    def find(max_tokens: int) -> list[str]:
        found = find_passages(
            library, ["animals", "plants"], "zebra0 sleeps", count_tokens=count_words, max_tokens=max_tokens
        )
        return [passage.text for passage in found.passages]

    assert find(0) == []
    assert find(20) == ["The zebra0 sleeps."]
    assert find(40) == ["The zebra0 sleeps."] * 2
    assert len(find(1000)) == 6


def find_in_file(folder: Path, text: str, query: str, max_tokens: int) -> PassageSet:
    """Search a collection of one file with one chunk; a token is a word."""
    (folder / "long.txt").write_text(text)
    library = DocumentLibrary(folder / "documents")
    with library.create("long") as collection:
        update(collection, add=[folder / "long.txt"], reader=make_reader(TextExtractor()))
    return find_passages(library, ["long"], query, count_tokens=count_words, max_tokens=max_tokens)


def count_prompt(passage: Passage) -> int:
    return count_words(format_retrieved([passage]))


def test_result_longer_than_the_budget_is_cut_at_the_end_of_a_line(tmp_path: Path) -> None:
    lines = [f"Line {n} about the zebra has eight words." for n in range(1, 101)]
    found = find_in_file(tmp_path, "Title\n\n" + "\n".join(lines), "zebra", 200)
    (passage,) = found.passages
    n_lines = passage.text.count("\n") + 1
    assert passage.text == "\n".join(lines[:n_lines])
    assert 10 < n_lines < 25
    assert (passage.first_line, passage.last_line) == (3, 2 + n_lines)
    assert 200 - 8 <= count_prompt(passage) <= 200
    assert found.n_omitted == 0


def test_long_line_is_cut_at_the_end_of_a_word(tmp_path: Path) -> None:
    words = [f"zebra{n}" for n in range(500)]
    found = find_in_file(tmp_path, " ".join(words), "zebra3", 200)
    (passage,) = found.passages
    assert passage.text.split() == words[: len(passage.text.split())]
    assert count_prompt(passage) == 200
    assert (passage.first_line, passage.last_line) == (1, 1)


def test_text_without_spaces_is_cut_after_any_character(tmp_path: Path) -> None:
    text = "zebra-" * 300
    (tmp_path / "long.txt").write_text(text)
    library = DocumentLibrary(tmp_path / "documents")
    with library.create("long") as collection:
        update(collection, add=[tmp_path / "long.txt"], reader=make_reader(TextExtractor()))
    found = find_passages(library, ["long"], "zebra", count_tokens=len, max_tokens=500)
    (passage,) = found.passages
    assert text.startswith(passage.text)
    assert len(passage.text) >= 200


def test_results_that_do_not_fit_at_all_are_counted(tmp_path: Path) -> None:
    found = find_in_file(tmp_path, "The zebra sleeps. " * 100, "zebra", 10)
    assert (found.passages, found.n_omitted) == ((), 1)
    assert decode_passages(encode_passages(found)) == found
    assert decode_passages(b'{"collections":["long"],"passages":[]}').n_omitted == 0


def test_whole_collections_are_in_order_with_all_text(library: DocumentLibrary, tmp_path: Path) -> None:
    whole = read_whole(library, ["plants", "animals"], count_tokens=count_words, max_tokens=1000, first_number=3)
    assert whole is not None
    assert whole.is_whole
    assert [passage.number for passage in whole.passages] == list(range(3, 27))
    texts: dict[str, str] = {}
    for passage in whole.passages:
        texts[passage.path] = texts.get(passage.path, "") + passage.text
    expected = [tmp_path / name / f"{i}.txt" for name in ("plants", "animals") for i in range(3)]
    assert list(texts) == [str(path) for path in expected]
    assert all("".join(texts[str(path)].split()) == "".join(path.read_text().split()) for path in expected)
    needed = sum(count_words(f"{passage.place}\n{passage.text}") + 12 for passage in whole.passages)
    fits = read_whole(library, ["plants", "animals"], count_tokens=count_words, max_tokens=needed, first_number=3)
    assert fits == whole
    assert read_whole(library, ["plants", "animals"], count_tokens=count_words, max_tokens=needed - 1) is None


def test_collection_far_above_the_budget_is_not_tokenised(library: DocumentLibrary) -> None:
    def fail(text: str) -> int:
        raise AssertionError(text)

    assert read_whole(library, ["animals"], count_tokens=fail, max_tokens=5) is None


def test_document_added_later_comes_last(library: DocumentLibrary, tmp_path: Path) -> None:
    before = read_whole(library, ["animals"], count_tokens=count_words, max_tokens=1000)
    (tmp_path / "animals" / "00.txt").write_text("A new document.")
    (tmp_path / "animals" / "2.txt").write_text("A changed document.")
    with library.open("animals") as collection:
        update(collection, reader=make_reader(TextExtractor()))
    after = read_whole(library, ["animals"], count_tokens=count_words, max_tokens=1000)
    assert before is not None
    assert after is not None
    assert after.passages[:8] == before.passages[:8]
    assert [passage.text for passage in after.passages[8:]] == ["A changed document.", "A new document."]


@pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")
def test_passages_that_are_only_somewhat_similar_are_left_out(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"Part {i} of the pump is made of steel." + " Its number is QX7." * (i == 9))
    library, embedder = DocumentLibrary(tmp_path / "documents"), WordEmbedder()
    with library.create("parts") as collection:
        paths = [tmp_path / f"{i}.txt" for i in range(30)]
        update(collection, add=paths, reader=make_reader(TextExtractor()), embedder=embedder)
        assert len(search([collection], "QX7", embedder=embedder, n_results=48)) == 30

    def find(query: str) -> list[str]:
        found = find_passages(library, ["parts"], query, count_tokens=count_words, max_tokens=10_000, embedder=embedder)
        return [passage.document for passage in found.passages]

    assert find("QX7") == ["9.txt"]
    assert len(find("pump")) > 5


def test_empty_collection(library: DocumentLibrary) -> None:
    library.create("empty").close()
    assert not find_passages(library, ["empty"], "x", count_tokens=count_words, max_tokens=100).passages
    whole = read_whole(library, ["empty"], count_tokens=count_words, max_tokens=100)
    assert whole is not None
    assert whole.passages == ()


def test_passage_has_the_scores_of_its_best_reranked_chunk() -> None:
    group = [
        FoundChunk(
            chunk=Chunk(text=f"text {i}"), collection="notes", document="a.txt", path="/a.txt", scores=scores,
            document_id=1, ordinal=i,
        )
        for i, scores in enumerate([
            PassageScores(fused=0.9), PassageScores(fused=0.1, relevance=-1.5), PassageScores(fused=0.2, relevance=-3.0)
        ])
    ]  # fmt: skip
    passage = _make_passage(group, 1)
    assert passage.scores == PassageScores(fused=0.1, relevance=-1.5)
