"""Sources of collections that are missing, empty or unreadable: their documents stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgechat.documents.collection import Collection
from edgechat.documents.indexing import FileReader, update
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DocumentError
from tests.unit.documents.collections import (
    FoundTextFile,
    TextExtractor,
    WordEmbedder,
    find_text_files,
    make_reader,
    read_contents,
    run,
    write,
)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with DocumentLibrary(tmp_path / "documents").create("notes") as collection:
        yield collection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_sources_that_do_not_exist(collection: Collection, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        run(collection, tmp_path / "missing")
    assert collection.sources() == []
    write(folder / "disk" / "notes" / "a.txt", "text")
    run(collection, folder / "disk" / "notes")
    (folder / "disk").rename(folder / "unmounted")
    for _ in range(2):
        summary = run(collection)
        assert (summary.removed, summary.failed) == (0, 1)
        assert len(read_contents(collection)) == 1
        (problem,) = collection.describe().problems
        assert problem.path == str(folder / "disk" / "notes")
        assert "cannot be found; 1 document of it stay" in problem.reason
        assert f"`edgechat docs remove notes --source {folder / 'disk' / 'notes'}`" in problem.reason
        (folder / "disk").mkdir(exist_ok=True)  # the mount point


def test_documents_of_an_empty_mount_point_stay(collection: Collection, folder: Path, tmp_path: Path) -> None:
    write(folder / "a.txt", "text")
    run(collection, folder, embedder=WordEmbedder())
    folder.rename(tmp_path / "unmounted")
    folder.mkdir()
    summary = run(collection)
    assert (summary.removed, summary.failed) == (0, 1)
    assert "is empty; 1 document of it stay" in collection.describe().problems[0].reason
    assert collection.describe().n_embedded == 1
    folder.rmdir()
    (tmp_path / "unmounted").rename(folder)
    summary = run(collection)
    assert (summary.removed, summary.added, summary.unchanged) == (0, 0, 1)
    assert collection.describe().problems == ()


def test_documents_in_unreadable_folders_stay(collection: Collection, folder: Path) -> None:
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt", "sub2/d.txt"):
        write(folder / name, f"text of {name}")
    run(collection, folder)
    (folder / "sub2" / "d.txt").unlink()

    def fail_in(path: Path) -> FileReader:
        def find_files(source: Path) -> Iterator[FoundTextFile]:
            yield from (file for file in find_text_files(source) if path not in file.path.parents)
            yield FoundTextFile(path=path, name=path.name, problem="The folder cannot be read: Permission denied.")

        return msgspec.structs.replace(make_reader(TextExtractor()), find_files=find_files)

    summary = update(collection, reader=fail_in(folder / "sub"))
    assert (summary.removed, summary.failed, summary.unchanged) == (1, 1, 1)
    assert len(read_contents(collection)) == 3
    summary = update(collection, reader=fail_in(folder))
    assert (summary.removed, summary.failed) == (0, 1)
    assert len(read_contents(collection)) == 3
    assert run(collection).unchanged == 3
    assert collection.describe().problems == ()


def test_deleted_file_that_is_a_source_is_removed_and_named(collection: Collection, folder: Path) -> None:
    write(folder / "a.txt", "text")
    write(folder / "b.txt", "other text")
    run(collection, folder / "a.txt")
    (folder / "a.txt").unlink()
    summary = run(collection)
    assert (summary.removed, len(summary.warnings)) == (1, 1)
    assert read_contents(collection) == {}
    assert run(collection, folder / "b.txt").added == 1
    folder.rename(folder.with_name("unmounted"))
    summary = run(collection)
    assert (summary.removed, len(read_contents(collection))) == (0, 1)
    assert "cannot be found" in summary.warnings[-1]
