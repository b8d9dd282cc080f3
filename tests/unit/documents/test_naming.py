"""Names of collections that are made from folders and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.documents.collection import CollectionInfo
from edgechat.documents.library import is_valid_name
from edgechat.documents.naming import choose_name


def test_collection_is_named_after_its_folder_or_file(tmp_path: Path) -> None:
    folder = tmp_path / "My (old) notes"
    folder.mkdir()
    assert choose_name([folder], []) == "My-old-notes"
    assert choose_name([tmp_path / "Report 2024.pdf"], []) == "Report-2024"


def test_folder_that_is_a_collection_keeps_its_name(tmp_path: Path) -> None:
    infos = [CollectionInfo(name="work", sources=(str(tmp_path / "a"), str(tmp_path / "b")))]
    assert choose_name([tmp_path / "b"], infos) == "work"
    assert choose_name([tmp_path / "x" / ".." / "b"], infos) == "work"
    assert choose_name([tmp_path / "b", tmp_path / "c"], infos) == "b"


def test_folders_of_the_same_name_get_different_names(tmp_path: Path) -> None:
    infos = [CollectionInfo(name="Docs", sources=("/elsewhere/docs",))]
    assert choose_name([tmp_path / "project" / "docs"], infos) == "project-docs"
    infos.append(CollectionInfo(name="project-docs", sources=("/else/project/docs",)))
    assert choose_name([tmp_path / "project" / "docs"], infos) == "docs-2"
    infos.append(CollectionInfo(name="docs-2"))
    assert choose_name([tmp_path / "project" / "docs"], infos) == "docs-3"


def test_damaged_collection_that_may_have_the_folder_keeps_its_name(tmp_path: Path) -> None:
    damaged = CollectionInfo(name="Notes", is_damaged=True)
    assert choose_name([tmp_path / "notes"], [damaged]) == "Notes"
    assert choose_name([tmp_path / "other"], [damaged]) == "other"
    known = CollectionInfo(name="Notes", is_damaged=True, sources=("/elsewhere/notes",))
    assert choose_name([tmp_path / "notes"], [known]) == f"{tmp_path.name}-notes"


@pytest.mark.parametrize("name", ["/", "con", "...", "---", "日本語", "a" * 300, "NUL.txt"])
def test_names_are_always_valid(name: str) -> None:
    chosen = choose_name([Path("/") / name], [])
    assert is_valid_name(chosen)
    assert is_valid_name(choose_name([Path("/") / name], [CollectionInfo(name=chosen)]))


@given(st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=80))
def test_any_file_name_gives_a_valid_name(name: str) -> None:
    assert is_valid_name(choose_name([Path("/folder") / name], []))
