"""Vectors of collections: caches in several processes, deletions, and values that are not numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgechat.documents.collection import Collection
from edgechat.documents.library import DocumentLibrary
from edgechat.documents.search import search
from edgechat.documents.vector_scan import load_library
from edgechat.errors import DocumentError
from tests.unit.documents.collections import WordEmbedder, read_contents, run, write

needs_library = pytest.mark.skipif(load_library() is None, reason="the native bundle has no vector search")


@pytest.fixture
def library(tmp_path: Path) -> DocumentLibrary:
    return DocumentLibrary(tmp_path / "documents")


def find_best(collection: Collection, query: str) -> str:
    """Return the text of the chunk with the most similar embedding."""
    results = search([collection], query, embedder=WordEmbedder(), n_results=9)
    return min(results, key=lambda result: result.scores.similarity_rank or 99).chunk.text


@needs_library
def test_vectors_of_a_removed_collection_are_not_used_for_a_new_one(library: DocumentLibrary, tmp_path: Path) -> None:
    for version, folder in enumerate((tmp_path / "first", tmp_path / "second")):
        texts = ["red apples", "green pears"] if not version else ["green pears", "red apples"]
        for i, text in enumerate(texts):
            write(folder / f"{i}.txt", text)
        other = DocumentLibrary(library.root)  # of another process
        if version:
            other.remove("notes")
        with other.create("notes") as collection:
            run(collection, folder, embedder=WordEmbedder())
        with library.open("notes") as collection:
            assert find_best(collection, "apples") == "red apples"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embedding_that_is_not_finite_names_the_model(library: DocumentLibrary, tmp_path: Path, value: float) -> None:
    class Broken(WordEmbedder):
        def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
            return [array("f", [value, *embedding[1:]]) for embedding in super().embed(texts, is_query=is_query)]

    write(tmp_path / "files" / "a.txt", "text")
    with library.create("notes") as collection:
        with pytest.raises(DocumentError, match="embedding model words computed values that are not finite"):
            run(collection, tmp_path / "files", embedder=Broken())
        assert collection.describe().n_documents == 1
        run(collection, embedder=WordEmbedder())
        if load_library() is not None:
            with pytest.raises(DocumentError, match="embedding model words"):
                search([collection], "text", embedder=Broken(), n_results=1)


def test_deletion_of_many_documents_writes_each_block_once(library: DocumentLibrary, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for i in range(60):
        write(folder / f"{i}.txt", f"text {i}")
    with library.create("notes") as collection:
        run(collection, folder, embedder=WordEmbedder())
        for i in range(1, 50):
            (folder / f"{i}.txt").unlink()
        statements: list[str] = []
        collection.database._connection.set_trace_callback(statements.append)
        assert run(collection).removed == 49
        collection.database._connection.set_trace_callback(None)
        assert sum(statement.startswith("UPDATE vector_blocks") for statement in statements) == 1
        assert len(read_contents(collection)) == 11
        assert collection.describe().n_embedded == 11
