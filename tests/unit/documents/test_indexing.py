"""Updates of collections: new, changed, deleted and unreadable files; interruptions; equality with a new index."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat import paths
from edgechat.documents.collection import Collection
from edgechat.documents.indexing import IndexProgress
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DocumentError, UnreadableFileError
from edgechat.prefix.shared_prefix import make_folder_name, make_pinned_owner
from tests.unit.documents.collections import TextExtractor, WordEmbedder, read_contents, run, write


@pytest.fixture
def library(tmp_path: Path) -> DocumentLibrary:
    return DocumentLibrary(tmp_path / "documents")


@pytest.fixture
def collection(library: DocumentLibrary) -> Iterator[Collection]:
    with library.create("notes") as collection:
        yield collection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_update_reads_only_new_and_changed_files(collection: Collection, folder: Path) -> None:
    for name in ("a", "b", "c"):
        write(folder / f"{name}.txt", f"text of {name}")
    first = run(collection, folder)
    assert (first.added, first.changed, first.removed, first.unchanged, first.failed) == (3, 0, 0, 0, 0)
    write(folder / "b.txt", "other text of b\n\nsecond part", age_s=30)
    (folder / "c.txt").unlink()
    write(folder / "sub" / "d.txt", "text of d")
    extractor = TextExtractor()
    second = run(collection, extractor=extractor)
    assert (second.added, second.changed, second.removed, second.unchanged) == (1, 1, 1, 1)
    assert [path.name for path in extractor.paths] == ["b.txt", "d.txt"]
    assert read_contents(collection) == {
        str(folder / "a.txt"): [("text of a", 1)],
        str(folder / "b.txt"): [("other text of b", 1), ("second part", 3)],
        str(folder / "sub" / "d.txt"): [("text of d", 1)],
    }
    info = collection.describe()
    assert (info.n_documents, info.n_chunks, info.sources) == (3, 4, (str(folder),))
    assert info.updated_at_ms


def test_file_with_a_new_time_and_the_same_content_is_not_extracted(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text")
    run(collection, folder)
    write(folder / "a.txt", "text", age_s=20)
    extractor = TextExtractor()
    assert run(collection, extractor=extractor).unchanged == 1
    assert run(collection, extractor=extractor).unchanged == 1
    assert extractor.paths == []


def test_change_that_keeps_size_and_time_of_a_recent_file_is_noticed(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text 1", age_s=0)
    times = (folder / "a.txt").stat().st_mtime_ns
    run(collection, folder)
    (folder / "a.txt").write_text("text 2")
    os.utime(folder / "a.txt", ns=(times, times))
    assert run(collection).changed == 1
    assert read_contents(collection) == {str(folder / "a.txt"): [("text 2", 1)]}


def test_file_that_changes_while_it_is_read_is_read_again(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "old")

    def change(path: Path) -> None:
        if len(extractor.paths) == 1:
            path.write_text("newer")

    extractor = TextExtractor(change)
    run(collection, folder, extractor=extractor)
    assert len(extractor.paths) == 2
    assert read_contents(collection) == {str(folder / "a.txt"): [("newer", 1)]}
    assert run(collection).unchanged == 1


def test_file_that_never_stops_changing_is_named_and_tried_again(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "0")
    write(folder / "b.txt", "text")
    extractor = TextExtractor(lambda path: write(path, f"{len(extractor.paths)}") if path.name == "a.txt" else None)
    assert run(collection, folder, extractor=extractor).failed == 1
    (problem,) = collection.describe().problems
    assert problem.path == str(folder / "a.txt")
    assert "being changed while it is read" in problem.reason
    assert run(collection).added == 1
    assert collection.describe().problems == ()


def test_unreadable_file_is_named_and_loses_its_old_text(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text")
    run(collection, folder)
    write(folder / "a.txt", "unreadable", age_s=20)
    assert run(collection).failed == 1
    info = collection.describe()
    assert [problem.reason for problem in info.problems] == ["The file is unreadable."]
    assert (info.n_documents, info.n_chunks) == (0, 0)
    assert read_contents(collection) == {}


def test_file_in_two_sources_is_indexed_once(collection: Collection, folder: Path) -> None:
    write(folder / "sub" / "a.txt", "text")
    assert run(collection, folder, folder / "sub", folder / "sub" / "a.txt").added == 1
    assert collection.remove_source(folder)
    assert read_contents(collection) == {}
    assert run(collection).added == 1
    assert not collection.remove_source(folder)


def test_unreadable_file_is_not_read_again_until_something_changes(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "scan.txt", "scan")
    is_temporary = False

    def refuse(path: Path) -> None:
        raise UnreadableFileError("scan.txt cannot be read.", "It has no text.", is_temporary=is_temporary)

    extractor = TextExtractor(refuse)
    for _ in range(3):
        assert run(collection, folder, extractor=extractor).failed == 1
        assert [problem.reason for problem in collection.describe().problems] == ["It has no text."]
        os.utime(folder / "scan.txt")  # the same content
    assert len(extractor.paths) == 1
    monkeypatch.setattr("edgechat.documents.file_states.__version__", "99")
    assert run(collection, extractor=extractor).failed == 1
    assert len(extractor.paths) == 2
    is_temporary = True
    for n_calls in (3, 4):
        write(folder / "scan.txt", "another scan")
        assert run(collection, extractor=extractor).failed == 1
        assert len(extractor.paths) == n_calls
    assert run(collection).added == 1


def test_cancelled_extraction_keeps_the_old_text(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text")
    run(collection, folder)
    write(folder / "a.txt", "changed", age_s=20)

    def refuse(path: Path) -> None:
        raise UnreadableFileError("Reading it was cancelled.")

    extractor = TextExtractor(refuse)
    summary = run(collection, extractor=extractor, is_cancelled=lambda: bool(extractor.paths))
    assert (summary.failed, summary.is_cancelled) == (0, True)
    assert list(read_contents(collection).values()) == [[("text", 1)]]


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_file_that_became_a_pipe_does_not_block(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text")
    run(collection, folder)
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    assert run(collection).failed == 1
    assert "not a regular file" in collection.describe().problems[0].reason


def test_second_update_at_the_same_time_is_refused(library: DocumentLibrary, folder: Path) -> None:
    write(folder / "a.txt", "text")

    def update_too(path: Path) -> None:
        with library.open("notes") as other, pytest.raises(DocumentError, match="is being updated"):
            run(other)

    extractor = TextExtractor(update_too)
    with library.create("notes") as collection:
        assert run(collection, folder, extractor=extractor).added == 1
    assert len(extractor.paths) == 1


def test_progress_ends_with_all_files(collection: Collection, folder: Path) -> None:
    for i in range(3):
        write(folder / f"{i}.txt", "text")
    reports: list[IndexProgress] = []
    run(collection, folder, on_progress=reports.append, embedder=WordEmbedder())
    assert (reports[0].phase, reports[-1].phase) == ("finding", "embedding")
    reading = [report for report in reports if report.phase == "reading"]
    assert (reading[-1].n_files_done, reading[-1].n_bytes_done) == (3, 12) == (reading[-1].n_files, reading[-1].n_bytes)
    assert (reports[-1].n_chunks_done, reports[-1].n_chunks) == (3, 3)


def test_cancelled_update_keeps_what_it_read_and_the_next_one_continues(collection: Collection, folder: Path) -> None:
    for i in range(4):
        write(folder / f"{i}.txt", f"text {i}")
    extractor = TextExtractor()
    summary = run(collection, folder, extractor=extractor, is_cancelled=lambda: len(extractor.paths) == 2)
    assert (summary.added, summary.is_cancelled) == (2, True)
    assert len(read_contents(collection)) == 2
    assert collection.describe().updated_at_ms == 0
    assert run(collection).added == 2


def test_embeddings_are_computed_once_and_again_for_another_model(collection: Collection, folder: Path) -> None:
    for i in range(70):
        write(folder / f"{i}.txt", f"text {i}\n\nmore of {i}")
    embedder = WordEmbedder()
    assert run(collection, folder, embedder=embedder).n_embedded == 140
    assert run(collection, embedder=embedder).n_embedded == 0
    write(folder / "5.txt", "changed")
    (folder / "6.txt").unlink()
    embedder.texts.clear()
    assert run(collection, embedder=embedder).n_embedded == 1
    assert embedder.texts == ["changed"]
    read_contents(collection)
    info = collection.describe()
    assert (info.n_embedded, info.embedding_model) == (137, "words")
    assert run(collection, embedder=WordEmbedder("other", 8)).n_embedded == 137
    read_contents(collection)
    assert collection.describe().embedding_model == "other"


def test_interrupted_embedding_resumes(collection: Collection, folder: Path) -> None:
    for i in range(100):
        write(folder / f"{i}.txt", f"text {i}")

    class Failing(WordEmbedder):
        def embed(self, texts: Sequence[str], *, is_query: bool) -> list[array[float]]:
            if len(self.texts) >= 64:
                raise DocumentError("The engine ended.")
            return super().embed(texts, is_query=is_query)

    embedder = Failing()
    with pytest.raises(DocumentError, match="engine ended"):
        run(collection, folder, embedder=embedder)
    read_contents(collection)
    assert collection.describe().n_embedded == 64
    assert run(collection, embedder=WordEmbedder("words")).n_embedded == 36


def test_names_and_texts_with_odd_characters(collection: Collection, folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9\xff.txt")
    write(folder / name, "nul \0 and \u202e text")
    run(collection, folder)
    ((path, chunks),) = read_contents(collection).items()
    assert path == str(folder / name)
    assert chunks == [("nul  and \u202e text", 1)]
    assert run(collection).unchanged == 1


class Killed(BaseException):
    """Stands for the end of the process: no transaction that is open then is committed."""


FILES = st.dictionaries(
    st.sampled_from(["a.txt", "b.txt", "sub/c.txt", "sub/d.txt"]),
    st.sampled_from(["one", "one\n\ntwo", "unreadable", "three\n\nfour\n\nfive", ""]),
    min_size=1,  # the documents of an empty folder stay
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(FILES, st.integers(0, 12)), min_size=1, max_size=5))
def test_index_after_any_changes_and_aborts_equals_a_new_one(steps: list[tuple[dict[str, str], int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder, library = Path(root) / "files", DocumentLibrary(Path(root) / "documents")
        folder.mkdir()
        embedder = WordEmbedder()
        library.create("notes").close()
        for contents, n_writes in [*steps, (steps[-1][0], 10**6)]:
            for path in list(folder.rglob("*.txt")):
                if path.relative_to(folder).as_posix() not in contents:
                    path.unlink()
            for name, text in contents.items():
                if not (folder / name).exists() or (folder / name).read_text() != text:
                    write(folder / name, text, age_s=0)
            with library.open("notes") as collection:
                try:
                    _abort_after(collection, n_writes)
                    run(collection, folder, embedder=embedder)
                except Killed:
                    continue
        with library.open("notes") as collection, library.create("new") as new:
            run(new, folder, embedder=embedder)
            assert read_contents(collection) == read_contents(new)
            old_info, new_info = collection.describe(), new.describe()
            assert old_info.n_embedded == new_info.n_embedded == new_info.n_chunks
            assert set(old_info.problems) == set(new_info.problems)


def _abort_after(collection: Collection, n_statements: int) -> None:
    """Make the connection raise Killed after a number of statements that write."""
    database = collection.database
    remaining = n_statements

    class Connection:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

        def execute(self, statement: str, *values: object) -> object:
            nonlocal remaining
            if statement.startswith(("INSERT", "UPDATE", "DELETE", "COMMIT")):
                if not remaining:
                    raise Killed
                remaining -= 1
            return self._connection.execute(statement, *values)  # type: ignore[arg-type]

    database._connection = Connection(database._connection)  # type: ignore[assignment]


def test_cached_prompts_with_text_that_changed_are_deleted(collection: Collection, folder: Path) -> None:
    """Files of the prefix cache contain the text of documents; a new document does not change that of others."""
    segment_folder = paths.prefix_dir() / "weights" / make_folder_name(make_pinned_owner(["notes"]))
    segment_folder.mkdir(parents=True)
    segment_file = segment_folder / "0-100-aa.kv"

    def update_keeps_file() -> bool:
        segment_file.touch()
        run(collection, folder)
        return segment_file.exists()

    write(folder / "a.txt", "text")
    assert update_keeps_file()
    assert update_keeps_file()
    write(folder / "b.txt", "new")
    assert update_keeps_file()
    write(folder / "b.txt", "other text", age_s=30)
    assert not update_keeps_file()
    (folder / "a.txt").unlink()
    assert not update_keeps_file()
