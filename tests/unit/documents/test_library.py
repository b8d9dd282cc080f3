"""Names, creation and removal of collections; files that are damaged, too new or of another program."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edgechat.documents.collection import Collection
from edgechat.documents.indexing import update
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DamagedCollectionError, DocumentError
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
    assert sorted(path.name for path in library.root.iterdir()) == ["Alpha.db"]
    assert len(list(folder.iterdir())) == 40
    with pytest.raises(DocumentError, match=r"no collection named beta \(collections: Alpha\)"):
        library.open("beta")
    with pytest.raises(DocumentError, match="no collection named beta"):
        library.remove("beta")


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


def test_collection_whose_sources_are_lost_can_only_be_removed(library: DocumentLibrary) -> None:
    library.create("notes").close()
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
    other = library.root / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(DocumentError, match="another program"):
        library.open("other", rebuild_damaged=True)
