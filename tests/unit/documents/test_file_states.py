"""States of files: hashes, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgechat.documents.file_states import read_state
from edgechat.errors import DocumentError


def test_large_file_is_not_read_for_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    state = read_state(path)
    assert (state.size_bytes, state.matches(path)) == (1 << 40, True)
    os.utime(path, ns=(1, 1))
    assert read_state(path).hash != state.hash
    assert not state.matches(path)


def test_reading_the_state_of_a_file_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DocumentError, match="cancelled"):
        read_state(tmp_path / "a.txt", lambda: True)
