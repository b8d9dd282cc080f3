"""Completion of commands, their arguments and file names in the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.documents.library import DocumentLibrary
from edgechat.tui.completion import can_complete, complete


def test_commands_arguments_and_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "new plan.md").write_text("x")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "deep.py").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "n\x1bx").write_text("x")
    assert [c.text for c in complete("/re", tmp_path)] == ["/retry", "/rename ", "/reasoning "]
    assert [c.text for c in complete("see @n", tmp_path)] == ["@nested/", '@"new plan.md" ', "@notes.md "]
    assert [(c.text, c.n_chars) for c in complete("@nested/d", tmp_path)] == [("@nested/deep.py ", 9)]
    assert [c.text for c in complete("/attach no", tmp_path)] == ["notes.md"]
    assert [c.text for c in complete("/set temp", tmp_path)] == ["temperature"]
    assert complete("@nowhere/x", tmp_path) == []
    assert [c.text for c in complete("@.h", tmp_path)] == ["@.hidden "]


def test_names_of_collections_are_completed(tmp_path: Path, home: Path) -> None:
    for name in ("manuals", "recipes"):
        DocumentLibrary(paths.documents_dir()).create(name).close()
    assert [c.text for c in complete("/docs ", tmp_path)] == ["manuals", "recipes", "off"]
    assert [(c.text, c.n_chars) for c in complete("/docs manuals re", tmp_path)] == [("recipes", 2)]


@pytest.mark.parametrize("before", ["/", "/re", "/set te", "/docs a b", "a @b", "a\n@"])
def test_commands_and_mentions_have_completions(before: str) -> None:
    assert can_complete(before)


@pytest.mark.parametrize("before", ["a", "a/b", "x@y", "a\n/re"])
def test_other_words_have_no_completions(before: str) -> None:
    assert not can_complete(before)
