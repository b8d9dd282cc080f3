"""Added files and folders, and deletion of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import library, locations, registry
from edgechat.catalogue.resolve import find_model
from edgechat.errors import CatalogueError
from tests.unit.catalogue.model_stores import installed, write_model


def test_only_downloaded_models_can_be_deleted(user: Path) -> None:
    path = write_model(paths.models_dir() / "owner/repo/m-Q8_0.gguf")
    foreign = write_model(user / ".lmstudio/models/maker/repo/t.gguf", seed=1)
    library.add_alias("mine", path)
    size_bytes = path.stat().st_size
    models = {model.name: model for model in installed()}
    with pytest.raises(CatalogueError, match="lm studio"):
        library.delete_model(models["t"])
    assert foreign.exists()
    assert library.delete_model(models["m-Q8_0"]) == size_bytes
    assert not (paths.models_dir() / "owner").exists()
    assert paths.models_dir().exists()
    assert registry.read_records().aliases == {}


def test_added_file_has_a_name_until_it_is_removed(user: Path) -> None:
    path = write_model(user / "somewhere/own.gguf")
    library.add_file(path)
    [model] = installed()
    assert (model.name, model.source, find_model("own")) == ("own", locations.FILE, path)
    assert library.remove_file(path)
    assert not library.remove_file(path)
    assert installed() == []
    assert path.exists()


def test_model_has_the_name_of_the_list(user: Path, starter: Path) -> None:
    path = write_model(user / ".lmstudio/models/maker/repo/t-Q8_0.gguf")
    managed = write_model(paths.models_dir() / "t-Q8_0.gguf", seed=1)
    names = {model.path: model.name for model in library.scan()}
    assert names[path] != names[managed]
    for file in (path, starter):
        assert library.find_display_name(file) == names[file]
    assert library.find_display_name(managed) == "t-Q8_0"
    assert library.find_display_name(write_model(user / "elsewhere/x-00001-of-00002.gguf", seed=2)) == "x"
    assert library.find_display_name(user / "missing.gguf") == "missing"
