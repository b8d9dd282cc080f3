"""The records of the user, and the cache of header facts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import library, registry
from edgechat.catalogue.resolve import find_model
from edgechat.errors import CatalogueError
from tests.models import split_tiny, write_tiny_llama
from tests.unit.catalogue.model_stores import installed, write_model


def test_headers_are_read_once_for_each_version_of_a_file(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(paths.models_dir() / "one.gguf")
    first = installed()
    read: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(registry, "read_header", read.append)
        assert installed() == first
    assert read == []
    write_tiny_llama(path, seed=1, architecture="qwen2")
    os.utime(path, ns=(1, 1))
    assert [model.facts.architecture for model in installed()] == ["qwen2"]
    cache = paths.cache_dir() / "models.json"
    for damage in (b"", b"{", b"[]", b'{"version": 99, "facts": {}}', os.urandom(100)):
        cache.write_bytes(damage)
        assert [model.facts.architecture for model in installed()] == ["qwen2"]


def test_missing_part_of_a_split_model_is_noticed(user: Path) -> None:
    paths.models_dir().mkdir(parents=True)
    parts = split_tiny(paths.models_dir())
    (paths.models_dir() / "whole.gguf").unlink()
    assert [model.is_usable for model in installed()] == [True]
    parts[1].unlink()
    [model] = installed()
    assert "missing in its folder" in model.facts.problem


def test_damaged_records_are_never_replaced(user: Path) -> None:
    library.add_folder(user)
    file = paths.data_dir() / "library.json"
    file.write_text("{")
    for work in (installed, lambda: library.add_folder(user), lambda: find_model("x")):
        with pytest.raises(CatalogueError, match=r"library\.json"):
            work()
    registry.record_use(user)  # does not raise
    assert file.read_text() == "{"
