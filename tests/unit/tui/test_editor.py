"""External editor: files are opened at a line where the editor can do so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgechat.errors import UsageError
from edgechat.tui.editor import Editor


@pytest.mark.skipif(sys.platform == "win32", reason="the test's editor is a shell script")
@pytest.mark.parametrize(("name", "arguments"), [("vim", "+12 file.txt"), ("unknown-editor", "file.txt")])
def test_file_opens_at_a_line(name: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / name
    editor.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/arguments"\n')
    editor.chmod(0o755)
    (tmp_path / "file.txt").touch()
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.chdir(tmp_path)
    Editor().open_at(Path("file.txt"), 12)
    assert (tmp_path / "arguments").read_text().strip() == arguments


def test_removed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist any more"):
        Editor().open_at(tmp_path / "removed.txt", 3)
