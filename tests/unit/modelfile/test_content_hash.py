"""Content hash of model files, remembered until the file changes."""

from __future__ import annotations

import os
from pathlib import Path

from edgechat.modelfile import content_hash


def test_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    model, memo = tmp_path / "model.gguf", tmp_path / "cache" / "weights.json"
    model.write_bytes(b"weights")
    pauses: list[None] = []
    assert content_hash.known_hash(model, memo) is None
    first = content_hash.file_hash(model, memo, lambda: pauses.append(None))
    assert pauses
    assert content_hash.known_hash(model, memo) == first
    pauses.clear()
    assert content_hash.file_hash(model, memo, lambda: pauses.append(None)) == first
    assert not pauses
    model.write_bytes(b"weightz")
    os.utime(model, ns=(1, 1))
    assert content_hash.known_hash(model, memo) is None
    assert content_hash.file_hash(model, memo, lambda: None) != first
    memo.write_text("{garbage")
    assert content_hash.known_hash(model, memo) is None
