"""Names, creation and removal of collections; files that are damaged, too new or of another program."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.documents.collection import Collection
from edgechat.documents.database import FILE_SUFFIXES, lock_updates, translate_errors
from edgechat.documents.indexing import update
from edgechat.documents.keyword_search import search_keywords
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DamagedCollectionError, DocumentError
from edgechat.prefix.shared_prefix import make_folder_name, make_pinned_owner
from tests.unit.documents.collections import TextExtractor, make_reader, read_contents


@pytest.fixture
def library(tmp_path: Path) -> DocumentLibrary:
    return DocumentLibrary(tmp_path / "data" / "documents")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"text {i} " * 200)
    return folder


def fill(collection: Collection, *add: Path) -> None:
    update(collection, add=add, reader=make_reader(TextExtractor()))


def test_collections_are_created_listed_and_removed(library: DocumentLibrary, folder: Path) -> None:
    assert library.names() == []
    assert library.list() == []
    for name in ("beta", "Alpha"):
        library.create(name).close()
    with library.open("beta") as collection:
        fill(collection, folder)
    assert library.names() == ["Alpha", "beta"]
    assert [(info.name, info.n_documents) for info in library.list()] == [("Alpha", 0), ("beta", 40)]
    with pytest.raises(DocumentError, match="already"):
        library.create("ALPHA")
    library.remove("beta")
    assert library.names() == ["Alpha"]
    files = sorted(path.name for path in library.root.iterdir() if path.suffix != ".lock")
    assert files == ["Alpha.db", "Alpha.db.sources.json"]
    assert len(list(folder.iterdir())) == 40
    with pytest.raises(DocumentError, match=r"no collection of documents called 'beta'\. The collections are: Alpha\."):
        library.open("beta")
    with pytest.raises(DocumentError, match="no collection of documents called 'beta'"):
        library.remove("beta")


def test_cached_prompts_with_removed_text_are_deleted(library: DocumentLibrary, folder: Path) -> None:
    def write_segment_file(name: str) -> Path:
        segment_folder = paths.prefix_dir() / "weights" / make_folder_name(make_pinned_owner([name]))
        segment_folder.mkdir(parents=True, exist_ok=True)
        (segment_folder / "0-100-aa.kv").touch()
        return segment_folder / "0-100-aa.kv"

    (folder / "sub").mkdir()
    with library.create("beta") as collection:
        fill(collection, folder, folder / "sub")
        segment_file, other_file = write_segment_file("beta"), write_segment_file("alpha")
        assert not collection.remove_source(folder / "other")
        assert segment_file.exists()
        assert collection.remove_source(folder / "sub")
        assert not segment_file.exists()
        assert segment_file.parent.exists()  # a running engine writes only to a folder that it has not lost
    write_segment_file("beta")
    library.remove("beta")
    assert not segment_file.parent.exists()
    assert other_file.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", ".hidden", "-x", "a\n", " a", "a ", "con", "x" * 49, "a,b"]
)
def test_bad_names_are_refused(library: DocumentLibrary, name: str) -> None:
    for operation in (library.create, library.open, library.remove):
        with pytest.raises(DocumentError, match="is not a name"):
            operation(name)


@pytest.mark.parametrize("name", ["notes", "My notes 2026", "Verträge", "论文", "a.b-c_d"])
def test_good_names(library: DocumentLibrary, name: str) -> None:
    library.create(name).close()
    assert library.names() == [name]


def test_damaged_page_is_reported_and_rebuilt(library: DocumentLibrary, folder: Path) -> None:
    with library.create("notes") as collection:
        fill(collection, folder)
        expected = read_contents(collection)
        with collection.database.read() as db:
            root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents'").fetchone()[0]
    path = library.root / "notes.db"
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    (info,) = library.list()
    assert "Run `edgechat docs update notes`" in info.problems[0].reason
    with library.open("notes") as collection, pytest.raises(DamagedCollectionError, match="docs update notes"):
        fill(collection)
    with library.open("notes", rebuild_damaged=True) as collection:
        fill(collection)
        assert read_contents(collection) == expected
    with library.open("notes", rebuild_damaged=True) as collection:
        assert len(collection.read_records()) == 40  # not rebuilt again
    assert not list(library.root.glob("*.damaged"))


def test_old_schema_is_rebuilt_by_an_update(library: DocumentLibrary, folder: Path) -> None:
    with library.create("notes") as collection:
        fill(collection, folder)
    db = sqlite3.connect(library.root / "notes.db")
    db.execute("PRAGMA user_version = 0")
    db.close()
    with pytest.raises(DamagedCollectionError, match="docs update notes"):
        library.open("notes")
    with library.open("notes", rebuild_damaged=True) as collection:
        assert collection.sources() == [(1, folder)]
        assert collection.describe().n_documents == 0


@pytest.mark.parametrize("page", [*range(1, 40, 3), None])
def test_update_rebuilds_a_collection_whatever_is_damaged(
    library: DocumentLibrary, folder: Path, page: int | None
) -> None:
    with library.create("notes") as collection:
        fill(collection, folder)
    path = library.root / "notes.db"
    garbage = random.Random(page or 0).randbytes(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(0 if page is None else page * 4096)
        file.write(garbage if page is None else garbage[: 6 * 4096])
    (info,) = library.list()
    assert info.sources == (str(folder),)
    (folder / "0.txt").write_text("changed")
    library.update("notes", fill)
    with contextlib.suppress(DamagedCollectionError), library.open("notes") as collection:
        search_keywords(collection.database, "text", 10)
    library.update("notes", fill)
    with library.open("notes") as collection:
        assert collection.sources() == [(1, folder)]
        assert len(collection.read_records()) == 40
        assert len(search_keywords(collection.database, "changed", 10)) == 1


@pytest.mark.parametrize("moment", ["create", "update"])
def test_new_collection_is_added_again_after_the_disk_was_full(
    library: DocumentLibrary, folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(collection: Collection, *arguments: object) -> None:
        with translate_errors(collection.path):
            raise sqlite3.OperationalError("database or disk is full")

    def run(collection: Collection) -> None:
        fill(collection, folder)

    with monkeypatch.context() as context:
        context.setattr(Collection, "add_sources" if moment == "create" else "replace_documents", fail)
        with pytest.raises(DocumentError, match=r"is full \(.*notes was not created\. .*with `edgechat docs add`"):
            library.update("notes", run, can_create=True)
        assert library.names() == []
    library.update("notes", run, can_create=True)
    with monkeypatch.context() as context:
        context.setattr(Collection, "finish_update", fail)
        (folder / "new.txt").write_text("new")
        with pytest.raises(DocumentError, match=r"is full .*docs update notes"):
            library.update("notes", run, can_create=True)
        with pytest.raises(DocumentError, match=r"is full .*docs update other"):
            library.update("other", run, can_create=True)
    assert library.names() == ["notes", "other"]


def test_damaged_sources_come_from_the_last_update_or_removal(library: DocumentLibrary, folder: Path) -> None:
    odd = folder / os.fsdecode(b"caf\xe9 %41") if os.name != "nt" and sys.platform != "darwin" else folder / "caf\xe9"
    odd.mkdir()
    with library.create("notes") as collection:
        fill(collection, folder, odd)
        fill(collection, folder / "1.txt")
        collection.remove_source(folder)
    (library.root / "notes.db").write_bytes(b"no database" * 1000)
    with library.open("notes", rebuild_damaged=True) as collection:
        assert [source for _, source in collection.sources()] == [odd, folder / "1.txt"]


def test_collection_of_an_earlier_version_saves_its_sources_in_the_next_update(
    library: DocumentLibrary, folder: Path
) -> None:
    with library.create("notes") as collection:
        fill(collection, folder)
        saved_path = library.root / "notes.db.sources.json"
        saved_path.unlink()
        fill(collection)
        content = saved_path.read_bytes()
        saved_path.write_bytes(b"damaged")
        fill(collection)
    assert saved_path.read_bytes() == content


def test_collection_whose_sources_are_lost_can_only_be_removed(library: DocumentLibrary) -> None:
    library.create("notes").close()
    (library.root / "notes.db.sources.json").unlink()
    (library.root / "notes.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DamagedCollectionError, match="docs update"):
        library.open("notes")
    with pytest.raises(DocumentError, match="docs remove notes"):
        library.open("notes", rebuild_damaged=True)
    assert (library.root / "notes.db").exists()
    library.remove("notes")
    assert library.names() == []


def test_files_of_newer_versions_and_other_programs_are_left_alone(library: DocumentLibrary) -> None:
    library.create("notes").close()
    path = library.root / "notes.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(DocumentError, match=r"newer edgechat \(schema version 99.*Update edgechat"):
        library.open("notes", rebuild_damaged=True)
    assert path.read_bytes() == before
    library.remove("notes")
    assert library.names() == []
    other = library.root / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(DocumentError, match="another program"):
        library.open("other", rebuild_damaged=True)
    with pytest.raises(DocumentError, match="another program"):
        library.remove("other")
    assert other.exists()


@pytest.mark.skipif(os.name == "nt", reason="no modes of files")
def test_only_the_owner_can_read_new_and_rebuilt_collections(library: DocumentLibrary, folder: Path) -> None:
    mask = os.umask(0o022)
    try:
        library.create("notes").close()
        path = library.root / "notes.db"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(library.root.stat().st_mode) == 0o700
        path.with_name("notes.db.damaged").touch()
        with library.open("notes", rebuild_damaged=True) as collection:
            fill(collection, folder)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in library.root.glob("notes.db*")}
    finally:
        os.umask(mask)
    assert {"notes.db", "notes.db-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_collection_is_rebuilt_only_once_by_two_processes(
    library: DocumentLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with library.create("notes") as collection:
        fill(collection, folder)
    mark = library.root / "notes.db.damaged"
    mark.touch()
    other = DocumentLibrary(library.root)

    def rebuild_first(path: Path) -> contextlib.AbstractContextManager[None]:
        monkeypatch.undo()
        with other.open("notes", rebuild_damaged=True) as rebuilt:
            fill(rebuilt)
        return lock_updates(path)

    monkeypatch.setattr("edgechat.documents.library.lock_updates", rebuild_first)
    with library.open("notes", rebuild_damaged=True) as collection:
        assert len(collection.read_records()) == 40


def test_collection_is_not_rebuilt_during_an_update(library: DocumentLibrary) -> None:
    with library.create("notes") as collection, collection.lock_for_update():
        (library.root / "notes.db.damaged").touch()
        with pytest.raises(DocumentError, match="is being updated by process"):
            DocumentLibrary(library.root).open("notes", rebuild_damaged=True)
        with pytest.raises(DocumentError, match="is being updated by process"):
            DocumentLibrary(library.root).remove("notes")


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be deleted")
def test_update_of_a_removed_or_replaced_collection_fails(library: DocumentLibrary, folder: Path) -> None:
    with library.create("notes") as collection:
        DocumentLibrary(library.root).remove("notes")
        with pytest.raises(DocumentError, match=r"notes was removed or replaced .*Try again"):
            fill(collection, folder)
        DocumentLibrary(library.root).create("notes").close()
        with pytest.raises(DocumentError, match=r"notes was removed or replaced .*Try again"):
            fill(collection, folder)
    assert library.describe("notes").n_documents == 0


def test_nothing_updates_a_collection_while_it_is_removed(
    library: DocumentLibrary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.create("notes").close()

    def delete(path: Path, suffixes: tuple[str, ...] = FILE_SUFFIXES) -> None:
        collection = DocumentLibrary(library.root).open("notes")
        with collection, pytest.raises(DocumentError, match="is being updated"):
            fill(collection, folder)
        monkeypatch.undo()

    monkeypatch.setattr("edgechat.documents.library._delete_files", delete)
    library.remove("notes")


def test_file_of_a_killed_creation_becomes_an_empty_collection(library: DocumentLibrary, folder: Path) -> None:
    library.root.mkdir(parents=True)
    (library.root / "notes.db").touch()
    with library.open("notes", rebuild_damaged=True) as collection:
        fill(collection, folder)
        assert len(collection.read_records()) == 40


def test_sqlite_without_full_text_search_is_named(library: DocumentLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    library.create("notes").close()
    monkeypatch.setattr("edgechat.documents.database._SEARCH_MODULE", "fts99")
    for operation in (library.open, library.create):
        with pytest.raises(DocumentError, match=r"no full-text search \(fts99\).*another Python"):
            operation("notes" if operation == library.open else "new")
    assert library.names() == ["notes"]
