"""Names of models, resolved to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import library
from edgechat.catalogue.library import scan
from edgechat.catalogue.resolve import find_installed_model, find_model
from edgechat.errors import CatalogueError, ModelFileError
from tests.unit.catalogue.model_stores import write_model


def test_find_model_by_name_catalogue_id_repository_and_alias(user: Path, starter: Path) -> None:
    quants = {
        name: write_model(paths.models_dir() / f"unsloth/Qwen3.5-4B-GGUF/Qwen3.5-4B-{name}.gguf", seed=i)
        for i, name in enumerate(("Q4_K_M", "Q8_0"))
    }
    other = write_model(user / "folder/Qwen3.5-4B-Q8_0.gguf", seed=9)
    library.add_folder(user / "folder")
    assert find_model("starter") == starter
    for name, quant in (
        ("qwen3.5-4b:q8_0", "Q8_0"),
        ("unsloth/Qwen3.5-4B-GGUF:Q4_K_M", "Q4_K_M"),
        ("Qwen3.5-4B-Q4_K_M", "Q4_K_M"),
    ):
        assert find_model(name) == quants[quant]
    assert find_model("qwen3.5-4b") == quants["Q4_K_M"]
    assert find_model("smollm2-135m") == starter
    assert find_model("qwen3.5-4b-q8_0@folder") == other
    library.add_alias("mine", other)
    assert find_model("mine") == other
    assert find_installed_model("mine", scan()).path == other
    library.remove_alias("mine")
    with pytest.raises(ModelFileError):
        find_model("mine")


def test_unknown_names_are_explained_with_the_next_step(user: Path) -> None:
    write_model(paths.models_dir() / "unsloth/Qwen3.5-4B-GGUF/Qwen3.5-4B-Q4_K_M.gguf")
    with pytest.raises(ModelFileError, match=r"models pull qwen3\.5-9b"):
        find_model("qwen3.5-9b")
    with pytest.raises(ModelFileError, match="models pull some/thing:Q4_0"):
        find_model("some/thing:Q4_0")
    with pytest.raises(ModelFileError, match=r"Did you mean qwen3\.5-4b"):
        find_model("qwen35-4b")
    with pytest.raises(ModelFileError, match=r"models list --catalogue` lists others, and `edgechat models pull NAME`"):
        find_model("nosuch")


def test_names_that_cannot_be_aliases_are_refused(user: Path) -> None:
    path = write_model(user / "own.gguf")
    for name in ("starter", "a/b", "", "x.gguf", ".x", "a:b", "a\x1b"):
        with pytest.raises(CatalogueError):
            library.add_alias(name, path)
    with pytest.raises(CatalogueError):
        library.remove_alias("mine")
